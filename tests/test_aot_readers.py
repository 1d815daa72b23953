"""The readers of machine code and the common path, on a few lines written by hand whose counts are known."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.aot import amdgcn, sass
from benchmarks.aot.code import Access, Instruction, Resources
from benchmarks.aot.controlflow import Loop, Wanted, common_path, loops
from benchmarks.aot.launchcode import moved_by, turns
from benchmarks.aot.meaning import Turns


def cuobjdump(*lines: str) -> str:
    """As the tool prints them: an address, the instruction, its two encoded words."""
    code = "".join(
        f"        /*{16 * i:04x}*/ {line:>60s} ;   /* 0x000fe20000000800 */\n{'':80s}/* 0x000fc800078e00ff */\n"
        for i, line in enumerate(lines)
    )
    return f"Resource usage:\n Function k:\n  REG:40 STACK:16 SHARED:0 LOCAL:0\n\t\tFunction : k\n{code}"


SLOW_PATH = cuobjdump(
    "S2R R0, SR_TID.X",
    "@P0 LDG.E.128 R4, desc[UR8][R2.64]",
    "@P1 BRA 0x50",  # over the slow path
    "MOV R9, 0x40",
    "CALL.REL.NOINC 0x90",
    "FFMA R4, R4, R5, R6",
    "@P0 STG.E.128 desc[UR8][R2.64], R4",
    "EXIT",
    "NOP",
    "DFMA R8, R8, R8, R8",  # what the slow path calls
    "RET.REL.NODEC R12 0x0",
    "BRA 0xb0",
    "NOP",
)
LOOP = cuobjdump(
    "MOV R0, RZ",
    "ISETP.GE.AND P0, PT, R1, 0x1, PT",
    "@!P0 BRA 0x70",  # no turn at all
    "LDG.E.64 R4, [R2.64]",
    "IMAD.WIDE.U32 R6, R4, 0x10, R8",
    "@!P1 CALL.REL.NOINC 0x70",  # a jump that looks like a call: nothing returns from there
    "BRA 0x30",
    "STG.E [R2.64], R4",
    "EXIT",
)


def counted(text: str, reader: Any, turns: list[int], loads: int, stores: int) -> dict[str, int]:
    """How often each instruction of the common path with that traffic is executed."""
    code = reader.instructions(text)
    path = common_path(code, moved_by(reader), turns, Wanted(loads, loads, stores))
    assert (path.loads, path.stores) == (loads, stores)
    found: dict[str, int] = {}
    for i, n in path.times.items():
        found[code[i].op] = found.get(code[i].op, 0) + n
    return found


def test_padding_slow_paths_and_what_they_call_are_not_executed() -> None:
    found = counted(SLOW_PATH, sass, [], 16, 16)
    assert found == {"S2R": 1, "LDG.E.128": 1, "BRA": 1, "FFMA": 1, "STG.E.128": 1, "EXIT": 1}


def test_a_function_that_cannot_be_avoided_is_counted() -> None:
    found = counted(SLOW_PATH.replace("@P1 BRA 0x50", "  FADD R1, R1"), sass, [], 16, 16)
    assert (found["CALL.REL.NOINC"], found["DFMA"], found["RET.REL.NODEC"]) == (1, 1, 1)


def test_a_loop_is_counted_as_often_as_it_turns() -> None:
    code = sass.instructions(LOOP)
    assert loops(code) == [Loop(3, 6)]
    found = counted(LOOP, sass, [10], 80, 4)
    assert (found["LDG.E.64"], found["IMAD.WIDE.U32"], found["MOV"], found["STG.E"]) == (10, 10, 1, 1)


def test_the_rest_of_an_unrolled_loop_is_not_counted_twice() -> None:
    """Seven turns of 4 bytes: one of the loop that makes four at once, three of the one that follows."""
    code = sass.instructions(
        cuobjdump(*["LDG.E R4, [R2.64]"] * 4, "@P0 BRA 0x0", "LDG.E R4, [R2.64]", "@P0 BRA 0x50", "EXIT")
    )
    assert turns(code, moved_by(sass), loops(code), [Turns(count=7, asked=4 * 128)], 0, 128) == [1, 3]


def test_a_loop_that_does_not_turn_moves_nothing() -> None:
    assert "LDG.E.64" not in counted(LOOP, sass, [0], 0, 4)


def test_a_loop_that_is_left_at_its_top_runs_through_its_body() -> None:
    code = cuobjdump("MOV R0, RZ", "@P0 BRA 0x40", "LDG.E R4, [R2.64]", "BRA 0x10", "STG.E [R2.64], R4", "EXIT")
    found = counted(code, sass, [6], 24, 4)
    assert (found["LDG.E"], found["STG.E"], found["EXIT"]) == (6, 1, 1)


def test_of_the_paths_with_the_wanted_traffic_the_shortest_is_taken() -> None:
    """An early return is shorter and moves nothing, so it is not the common path unless nothing is to be moved."""
    code = [
        Instruction("ISETP"), Instruction("BRA", "jump", 4, True), Instruction("STG.E.128"), Instruction("EXIT", "exit"),
        Instruction("EXIT", "exit"),
    ]  # fmt: skip
    assert sorted(common_path(code, moved_by(sass), [], Wanted(0, 0, 16)).times) == [0, 1, 2, 3]
    assert sorted(common_path(code, moved_by(sass), [], Wanted(0, 0, 0)).times) == [0, 1, 4]


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("LDG.E.128", Access("global", False, 16)),
        ("LDG.E.ENL2.256", Access("global", False, 32)),
        ("LDG.E.U16.CONSTANT", Access("global", False, 2)),
        ("LDG.E.64.STRONG.GPU", Access("global", False, 8)),
        ("STG.E", Access("global", True, 4)),
        ("RED.E.ADD.F32.FTZ.RN.STRONG.GPU", Access("global", True, 4)),
        ("STL.64", Access("local", True, 8)),
        ("LDS.U8", Access("shared", False, 1)),
        ("LDC.64", None),
        ("ULDC.128", None),
    ],
)
def test_sass_accesses(op: str, expected: Access | None) -> None:
    assert sass.access(op) == expected


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("buffer_load_dwordx4", Access("global", False, 16)),
        ("global_store_dwordx2", Access("global", True, 8)),
        ("global_load_ushort", Access("global", False, 2)),
        ("buffer_load_short_d16_hi", Access("global", False, 2)),
        ("global_load_dword", Access("global", False, 4)),
        ("scratch_store_dwordx4", Access("local", True, 16)),
        ("ds_read2st64_b64", Access("shared", False, 16)),
        ("ds_write_b128", Access("shared", True, 16)),
        ("ds_read_u16", Access("shared", False, 2)),
        ("ds_bpermute_b32", None),
        ("s_load_dwordx8", None),
    ],
)
def test_amdgcn_accesses(op: str, expected: Access | None) -> None:
    assert amdgcn.access(op) == expected


@pytest.mark.parametrize(
    ("op", "pipes"),
    [
        ("FFMA", {"issue": 1, "fma": 1}),
        ("IMAD.MOV.U32", {"issue": 1, "imad": 1, "fma": 1}),
        ("IMAD.WIDE.U32", {"issue": 1, "imad": 2, "fma": 2}),
        ("LOP3.LUT", {"issue": 1, "alu": 1}),
        ("MUFU.RSQ", {"issue": 1, "xu": 1}),
        ("DFMA", {"issue": 1, "fp64": 1}),
        ("UIADD3", {"issue": 1}),
        ("SHFL.BFLY", {"issue": 1, "shuffle": 1}),
        ("LDG.E.128", {"issue": 1, "lsu": 1}),
    ],
)
def test_sass_pipes(op: str, pipes: dict[str, int]) -> None:
    assert sass.pipes(op) == pipes


@pytest.mark.parametrize(
    ("op", "pipes"),
    [
        ("v_pk_fma_f32", {"valu": 1}),
        ("v_mul_hi_u32", {"valu": 4}),
        ("v_cvt_f32_i32_e32", {"valu": 4}),
        ("v_mul_f32_e32", {"valu": 1}),
        ("s_mul_hi_u32", {"salu": 1}),
        ("s_waitcnt", {}),
        ("s_cbranch_scc1", {}),
        ("ds_bpermute_b32", {"lds": 1}),
        ("buffer_load_dwordx4", {"vmem": 1}),
    ],
)
def test_amdgcn_pipes(op: str, pipes: dict[str, int]) -> None:
    assert amdgcn.pipes(op) == pipes


def test_float64_is_found_whatever_the_instruction() -> None:
    assert all(map(sass.is_float64, ("DADD", "F2F.F64.F32", "MUFU.RCP64H", "I2F.F64", "DSETP.GT.AND")))
    assert not any(map(sass.is_float64, ("FADD", "LDG.E.64", "IMAD.WIDE", "DEPBAR.LE")))
    assert all(map(amdgcn.is_float64, ("v_fma_f64", "v_cvt_f64_f32_e32", "v_cmp_lt_f64_e32")))
    assert not any(map(amdgcn.is_float64, ("v_pk_fma_f32", "s_mov_b64", "v_lshlrev_b64")))


AMD = """\
	.text
	.globl	k
	.type	k,@function
k:                                      ; @k
; %bb.0:
	s_load_dwordx4 s[0:3], s[4:5], 0x0
	s_branch .LBB0_2
.LBB0_1:
	v_add_f64 v[0:1], v[0:1], v[0:1]   ; v_mul_f64 in a comment
	s_endpgm
	.p2align	8
.LBB0_2:                                ; =>This Inner Loop Header: Depth=1
	buffer_load_dwordx4 v[0:3], v4, s[0:3], 0 offen
	v_mul_hi_u32 v5, v4, s6
	v_pk_fma_f32 v[0:1], v[0:1], v[2:3], v[0:1]
	s_cbranch_scc1 .LBB0_2
; %bb.3:
	s_cbranch_execz .LBB0_5
	global_store_dwordx4 v4, v[0:3], s[0:1]
.LBB0_5:
	s_endpgm
.Lfunc_end0:
	.size	k, .Lfunc_end0-k
	v_add_f64 v[0:1], v[0:1], v[0:1]
	.amdgpu_metadata
amdhsa.kernels:
  - .agpr_count:     0
    .private_segment_fixed_size: 8
    .sgpr_spill_count: 0
    .vgpr_count:     26
    .vgpr_spill_count: 3
"""


def test_amdgcn_is_read_between_the_kernels_label_and_its_end() -> None:
    assert counted(AMD, amdgcn, [4], 64, 16) == {
        "s_load_dwordx4": 1, "s_branch": 1, "buffer_load_dwordx4": 4, "v_mul_hi_u32": 4, "v_pk_fma_f32": 4,
        "s_cbranch_scc1": 4, "s_cbranch_execz": 1, "global_store_dwordx4": 1, "s_endpgm": 1,
    }  # fmt: skip


def test_resources() -> None:
    assert sass.resources(SLOW_PATH, 4096) == Resources(registers=40, stack=16, shared=4096)
    assert amdgcn.resources(AMD, 0) == Resources(registers=26, stack=8, shared=0)
    with pytest.raises(ValueError, match="vgpr_count"):
        amdgcn.resources("", 0)
    with pytest.raises(ValueError, match="REG:n"):
        sass.resources("", 0)
