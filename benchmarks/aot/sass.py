"""NVIDIA machine code (SASS) as cuobjdump prints it: instructions, accesses, the pipe that each instruction occupies."""

import re
import subprocess
import tempfile
from pathlib import Path

from benchmarks.aot.code import Access, Instruction, Resources

LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z]\w*(?:\.\w+)*)([^;]*);", re.MULTILINE)
USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")
BYTES = 16  # of one instruction

SPACES = {"LDG": "global", "STG": "global", "LD": "global", "ST": "global", "LDGSTS": "global", "ATOM": "global",
          "ATOMG": "global", "RED": "global", "REDG": "global",
          "LDL": "local", "STL": "local", "LDS": "shared", "STS": "shared", "LDSM": "shared", "STSM": "shared"}  # fmt: skip
WRITES = {"STG", "ST", "STL", "STS", "STSM", "ATOM", "ATOMG", "RED", "REDG"}
WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}

ALU = {"IADD", "IADD3", "VIADD", "LOP3", "LEA", "SHF", "ISETP", "FSETP", "FSEL", "SEL", "PRMT", "MOV", "FMNMX", "IMNMX",
       "VIMNMX", "VIADDMNMX", "PLOP3", "BMSK", "SGXT", "IABS", "VABSDIFF", "FCHK", "FMNMX3", "VIMNMX3", "P2R", "R2P"}  # fmt: skip
FMA = {"FFMA", "FMUL", "FADD", "FFMA2", "FMUL2", "FADD2", "HFMA2", "HADD2", "HMUL2", "HSETP2", "HMNMX2", "FSWZADD"}
XU = {"MUFU", "I2F", "F2I", "I2FP", "F2F", "F2FP", "FRND", "POPC", "FLO", "BREV", "I2I", "I2IP"}
FP64 = {"DADD", "DMUL", "DFMA", "DSETP", "DMNMX"}


def disassemble(cubin: bytes) -> str:
    """cuobjdump's text, with the tool that comes with triton: machine code and use of resources."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [tool, "-sass", "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        )
    return done.stdout


def resources(text: str, shared: int) -> Resources:
    """From cuobjdump's resource usage; `shared`: what the launch asks for, which is not in there."""
    found = USAGE.search(text)
    if found is None:
        raise ValueError("no line `REG:n STACK:n` in cuobjdump's output; its format has changed, mend `sass.USAGE`")
    return Resources(int(found[1]), int(found[2]), shared)


def instructions(text: str) -> list[Instruction]:
    """The kernel's instructions in the order of their addresses, padding included: nothing leads there."""
    lines = [(int(at, 16), bool(guard), op, rest) for at, guard, op, rest in LINE.findall(text)]
    if [at for at, *_ in lines] != [BYTES * i for i in range(len(lines))]:
        raise ValueError("addresses do not follow on each other by 16 bytes; pass the machine code of one kernel")
    ends = [end(op, guard) for _, guard, op, _ in lines]
    return [instruction(guard, op, rest, ends) for _, guard, op, rest in lines]


def instruction(guard: bool, op: str, rest: str, ends: list[str]) -> Instruction:
    base = op.split(".")[0]
    if base in ("EXIT", "RET"):
        return Instruction(op, {"EXIT": "exit", "RET": "return"}[base], conditional=guard)
    if base in ("BRA", "CALL"):
        target = re.search(r"0x([0-9a-f]+)\s*$", rest)
        if target is None:
            raise ValueError(f"`{op}{rest}` has no address; mend `sass.instruction`")
        to = int(target[1], 16) // BYTES
        # ptxas also writes far jumps as calls from which nothing returns
        flow = "call" if base == "CALL" and next((e for e in ends[to:] if e), "") == "return" else "jump"
        return Instruction(op, flow, to, guard or "," in rest)
    if base in ("BRX", "JMP", "JMX"):
        raise ValueError(f"`{op}` jumps to an address in a register; the path through the kernel is not known")
    return Instruction(op)


def end(op: str, guard: bool) -> str:
    base = op.split(".")[0]
    return "" if guard else {"EXIT": "exit", "RET": "return"}.get(base, "")


def access(op: str) -> Access | None:
    """The load or store that an instruction is; None for all others, constant banks included."""
    base, *modifiers = op.split(".")
    if base not in SPACES:
        return None
    width = next((WIDTHS[m] for m in reversed(modifiers) if m in WIDTHS), 4)
    return Access(SPACES[base], base in WRITES, width)


def pipes(op: str) -> dict[str, int]:
    """Slots that one instruction takes in each pipe of `targets`; every one takes a slot of issue."""
    base, *modifiers = op.split(".")
    if base == "IMAD":
        product = 2 if {"WIDE", "HI"} & set(modifiers) else 1
        return {"issue": 1, "imad": product, "fma": product}
    for name, members in (("alu", ALU), ("fma", FMA), ("fp64", FP64), ("xu", XU), ("lsu", SPACES)):
        if base in members:
            return {"issue": 1, name: 1}
    return {"issue": 1, "shuffle": 1} if base == "SHFL" else {"issue": 1}


def is_float64(op: str) -> bool:
    base, *modifiers = op.split(".")
    return base in FP64 or "F64" in modifiers or any(m.endswith("64H") for m in modifiers)


def is_barrier(op: str) -> bool:
    return op.split(".")[0] == "BAR"
