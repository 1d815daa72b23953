"""AMD machine code as LLVM writes it: instructions, accesses, the pipe that each instruction occupies."""

import re

from benchmarks.aot.code import Access, Instruction, Resources

LABEL = re.compile(r"^([.\w$]+):")
LINE = re.compile(r"^\t([a-z]\w+)(.*)$")
METADATA = re.compile(r"^\s+(?:- )?\.(\w+):\s+(\d+)\s*$", re.MULTILINE)

GLOBAL = re.compile(r"^(?:global|buffer|flat)_(load|store|atomic)(?:_(?:lds_)?(\w+))?$")
LOCAL = re.compile(r"^scratch_(load|store)_(\w+)$")
SHARED = re.compile(r"^ds_(read|write|add|max|min)(2)?(?:st64)?_\w?(\d+)(?:_\w+)?$")
WIDTHS = {"dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16, "ubyte": 1, "sbyte": 1, "byte": 1, "ushort": 2,
          "sshort": 2, "short": 2}  # fmt: skip
SLOW = re.compile(r"^v_(cvt|rcp|rsq|sqrt|log|exp|sin|cos|frexp|mul_lo_[iu]32|mul_hi_[iu]32|mad_[iu]64_[iu]32)(_|$)")
NO_UNIT = {"s_waitcnt", "s_nop", "s_barrier", "s_endpgm", "s_branch", "s_sleep", "s_setprio", "s_clause"}


def resources(text: str, shared: int) -> Resources:
    """From the metadata at the end of the text: vector registers, accumulation registers included, and bytes of scratch. Spills
    that it counts beside those went to registers of the other kind."""
    found = {name: int(value) for name, value in METADATA.findall(text)}
    try:
        return Resources(found["vgpr_count"], found["private_segment_fixed_size"], shared)
    except KeyError as error:
        raise ValueError(f"the kernel's metadata has no {error}; mend `amdgcn.resources`") from None


def instructions(text: str) -> list[Instruction]:
    """The kernel's instructions, from the label with its name to the end of the function."""
    name = re.search(r"^\s*\.globl\s+(\S+)", text, re.MULTILINE)
    if name is None:
        raise ValueError("no `.globl` names a kernel; pass the text of one kernel")
    body = text[text.index(f"\n{name[1]}:") :]
    ops: list[tuple[str, str]] = []
    labels: dict[str, int] = {}
    for line in body[: body.find("\n.Lfunc_end")].splitlines():
        label, found = LABEL.match(line), LINE.match(line.split(";")[0])
        if label:
            labels[label[1]] = len(ops)
        elif found:
            ops.append((found[1], found[2].strip()))
    return [instruction(op, rest, labels) for op, rest in ops]


def instruction(op: str, rest: str, labels: dict[str, int]) -> Instruction:
    if op == "s_endpgm":
        return Instruction(op, "exit")
    if op == "s_branch" or op.startswith("s_cbranch"):
        return Instruction(op, "jump", labels[rest], op != "s_branch")
    if op in ("s_setpc_b64", "s_swappc_b64", "s_call_b64"):
        raise ValueError(f"`{op}` jumps to an address in a register; the path through the kernel is not known")
    return Instruction(op)


def access(op: str) -> Access | None:
    """The load or store that an instruction is; None for all others, scalar loads of arguments included."""
    if found := GLOBAL.match(op) or LOCAL.match(op):
        kind, width = found[1], next((p for p in (found[2] or "").split("_") if p in WIDTHS), "dword")
        return Access("local" if op.startswith("scratch") else "global", kind != "load", WIDTHS[width])
    if found := SHARED.match(op):
        return Access("shared", found[1] != "read", int(found[3]) // 8 * (2 if found[2] else 1))
    return None


def pipes(op: str) -> dict[str, int]:
    """Slots that one instruction takes in each pipe of `targets`."""
    if op.startswith("v_"):
        return {"valu": 4 if SLOW.match(op) else 1}
    if op.startswith("ds_"):
        return {"lds": 1}
    if op.startswith(("global_", "buffer_", "flat_", "scratch_")):
        return {"vmem": 1}
    return {} if op in NO_UNIT or op.startswith("s_cbranch") else {"salu": 1}


def is_float64(op: str) -> bool:
    return op.startswith("v_") and "f64" in op


def is_barrier(op: str) -> bool:
    return op == "s_barrier"
