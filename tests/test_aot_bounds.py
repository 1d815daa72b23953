"""What bounds a launch, by hand: occupancy from registers and shared memory, time from bytes and pipes, traffic from the IR."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.aot.code import Resources
from benchmarks.aot.meaning import meaning
from benchmarks.aot.occupancy import occupancy
from benchmarks.aot.roofline import bound
from benchmarks.aot.targets import A100, B200, H100, MI300X, TARGETS, Target


@pytest.mark.parametrize(
    ("target", "registers", "shared", "warps", "expected"),
    [
        (H100, 32, 0, 4, 1.0),
        (H100, 33, 0, 4, 48 / 64),  # 40 registers: 12 warps in each quarter of 16384
        (H100, 64, 0, 4, 32 / 64),
        (H100, 255, 0, 8, 8 / 64),
        (H100, 32, 100 << 10, 4, 8 / 64),  # two blocks of 101 KiB in 228
        (H100, 32, 114 << 10, 4, 4 / 64),  # one of 115
        (A100, 32, 100 << 10, 4, 4 / 64),  # one in 164
        (H100, 32, 0, 1, 32 / 64),  # 32 blocks
        (MI300X, 64, 0, 4, 1.0),  # 512 registers of a lane for 8 waves
        (MI300X, 65, 0, 4, 28 / 32),
        (MI300X, 32, 32 << 10, 4, 8 / 32),
    ],
)
def test_occupancy(target: Target, registers: int, shared: int, warps: int, expected: float) -> None:
    assert occupancy(target, Resources(registers, 0, shared), warps) == expected


def test_peaks_of_the_targets_are_their_vendors() -> None:
    """float32 FMAs at the stated rates and clocks: TFLOP/s, within 2 %; those of H100 and B200 at the lower clock."""
    peaks = [2 * t.units * t.clock * t.rates.get("fma", 128) / 1e12 for t in TARGETS]
    assert peaks == pytest.approx([19.5, 61.8, 70.1, 163.4], rel=0.02)
    assert [t.bandwidth / 1e12 for t in TARGETS] == pytest.approx([2.04, 3.35, 8.0, 5.3], rel=0.01)


def test_the_bound_is_the_slowest_resource() -> None:
    """12 bytes take 1.5 ps on a B200, 64 instructions 64 / (128 * 148 * 1.85 GHz) = 1.83 ps."""
    found = bound(B200, 12, {"issue": 64, "alu": 16})
    assert found.by == "issue"
    assert found.rate == pytest.approx(128 * 148 * 1.85e9 / 64)
    assert found.arithmetic == ("issue", pytest.approx(1.826e-12 / 1.5e-12, rel=1e-3))
    assert bound(H100, 12, {"issue": 64}).by == "memory"
    with pytest.raises(ValueError, match=r"no rates of \['tensor'\] for sm_90"):
        bound(H100, 12, {"tensor": 1})


TTIR = """\
module {
  tt.func public @k(%out: !tt.ptr<f32> {tt.divisibility = 16 : i32} loc("out"(#loc)), %n: i32 loc("n"(#loc))) attributes {noinline = false} {
    %c0 = arith.constant 0 : i32 loc(#loc1)
    %c1 = arith.constant 1 : i32 loc(#loc1)
    %cst = arith.constant dense<256> : tensor<256xi32> loc(#loc1)
    %c256 = arith.constant 256 : i32 loc(#loc1)
    %0 = tt.get_program_id x : i32 loc(#loc1)
    %1 = arith.muli %0, %c256 : i32 loc(#loc1)
    %2 = tt.make_range {end = 256 : i32, start = 0 : i32} : tensor<256xi32> loc(#loc1)
    %3 = tt.splat %1 : i32 -> tensor<256xi32> loc(#loc1)
    %4 = arith.addi %3, %2 : tensor<256xi32> loc(#loc1)
    %5 = tt.splat %n : i32 -> tensor<256xi32> loc(#loc1)
    %6 = arith.cmpi slt, %4, %5 : tensor<256xi32> loc(#loc1)
    %o = tt.splat %out : !tt.ptr<f32> -> tensor<256x!tt.ptr<f32>> loc(#loc1)
    %p = tt.addptr %o, %4 : tensor<256x!tt.ptr<f32>>, tensor<256xi32> loc(#loc1)
    %turns = arith.divsi %n, %c256 : i32 loc(#loc1)
    %s:2 = scf.for %i = %c0 to %turns step %c1 iter_args(%a = %p, %b = %p) -> (tensor<256xf32>, tensor<256xf32>)  : i32 {
      %v = tt.load %p, %6, %p : tensor<256x!tt.ptr<f32>> loc(#loc1)
      scf.yield %v, %v : tensor<256xf32>, tensor<256xf32> loc(#loc1)
    } loc(#loc1)
    %r = "tt.reduce"(%s#0) <{axis = 0 : i32}> ({
    ^bb0(%x: f32 loc(#loc1), %y: f32 loc(#loc1)):
      %z = arith.addf %x, %y : f32 loc(#loc1)
      tt.reduce.return %z : f32 loc(#loc1)
    }) : (tensor<256xf32>) -> f32 loc(#loc1)
    %w = tt.load %out : !tt.ptr<f32> loc(#loc1)
    %last = arith.cmpi eq, %0, %c1 : i32 loc(#loc1)
    scf.if %last {
      %m = arith.cmpi eq, %0, %c1 : i32 loc(#loc1)
      tt.store %out, %r, %m : !tt.ptr<f32> loc(#loc1)
    } else {
      %k = arith.addi %2, %cst : tensor<256xi32> loc(#loc1)
      %m = arith.cmpi sgt, %k, %2 : tensor<256xi32> loc(#loc1)
      tt.store %p, %s#0, %m : tensor<256x!tt.ptr<f32>> loc(#loc1)
    } loc(#loc1)
    tt.return loc(#loc1)
  } loc(#loc)
} loc(#loc)
"""


def test_traffic_of_a_launch_is_summed_over_programs_masks_loops_and_branches() -> None:
    """n = 600, programs 0 to 2: two turns of 256, 256 and 88 lanes; one scalar load each; 256, 1 and 256 elements stored."""
    found = meaning(TTIR, {"n": 600}, 128, (3,))
    assert found.moved == pytest.approx(4 * (2 * (256 + 256 + 88) + 3 + 256 + 1 + 256) / 3)
    assert (found.loads, found.stores, found.scalar) == (
        4 * (2 * 256 + 128),
        4 * 256,
        4 * 128,
    )  # all threads load the scalar
    assert [(loop.count, loop.asked) for loop in found.loops] == [(2, 4 * 256)]
    assert found.unknown == ()


def test_lanes_that_share_an_address_move_it_once() -> None:
    """As where every element of a tile loads its sample's number."""
    of_rows = TTIR.replace(
        "%p = tt.addptr %o, %4 ", "%h = arith.divsi %4, %cst : tensor<256xi32>\n%p = tt.addptr %o, %h "
    )
    assert meaning(of_rows, {"n": 256}, 128, (1,)).moved == 4 * (1 + 1 + 1)


def test_what_the_arguments_do_not_settle_is_said() -> None:
    found = meaning(TTIR, {}, 128, (1,))
    assert found.unknown == ("turns of loop 1", "a mask, counted as full")
    assert [loop.count for loop in found.loops] == [1]
