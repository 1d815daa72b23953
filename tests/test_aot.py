"""What the Triton kernels compile to for GPUs that are not there: widths, spills, registers, traffic, instructions.

Every kernel of benchmarks/aot is compiled, in one process of its own. A kernel that breaks a rule on purpose is compiled too:
the analysis has to see it.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.aot.cases import BY_DATA  # noqa: E402
from benchmarks.case import KERNELS  # noqa: E402

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton to compile kernels")
NVIDIA = ("sm_80", "sm_90", "sm_100")
UNALIGNED = ("samples of 1023",)  # no 16 bytes of such rows lie together where a thread can move them
DTYPES = ("float32", "bfloat16", "float64")
OCCUPANCY = {"float64": 0.125}  # at least; 0.375 for other types, of a float32 update 0.5
Row = dict[str, Any]


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    file = tmp_path_factory.mktemp("aot") / "rows.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "aot_rows.py"), str(file)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


@pytest.fixture(params=KERNELS)
def kernel_rows(request: pytest.FixtureRequest, rows: list[Row]) -> list[Row]:
    return rows_of(request.param, rows)


@pytest.fixture(params=[kernel for kernel in KERNELS if kernel not in BY_DATA])
def settled_rows(request: pytest.FixtureRequest, rows: list[Row]) -> list[Row]:
    return rows_of(request.param, rows)


def rows_of(kernel: str, rows: list[Row]) -> list[Row]:
    found = [row for row in rows if row["kernel"] == kernel]
    assert found, f"{kernel} has no cases in benchmarks/{kernel}.py"
    assert not any("failure" in row for row in found), found[0]["failure"]
    return found


def of(rows: list[Row], label: str, kernel: str = "sabotaged") -> dict[str, Row]:
    """The rows of a case by target."""
    return {row["target"]: row for row in rows if (row["kernel"], row["case"]) == (kernel, label)}


def name(row: Row) -> str:
    return f"{row['kernel']} {row['case']} on {row['target']}"


def test_a_thread_moves_16_bytes_at_once(settled_rows: list[Row]) -> None:
    """But for a sample's own numbers: below 1 % of the traffic of states of this size. Where tensors of two types meet,
    the wider one's share is moved so."""
    for row in settled_rows:
        if not any(word in row["case"] for word in UNALIGNED):
            types = sum(dtype in row["case"] for dtype in DTYPES)
            assert row["narrow_share"] <= (0.01 if types < 2 else 0.34), name(row)


def test_nothing_spills(kernel_rows: list[Row]) -> None:
    for row in kernel_rows:
        for launch in row["launches"]:
            assert launch["stack"] == 0, (name(row), launch["kernel"])
            assert not [a for a in launch["accesses"] if a["space"] == "local"], (name(row), launch["kernel"])


def test_global_traffic_is_the_minimum(settled_rows: list[Row]) -> None:
    """Each input read once, the output written once: 1 % is for a sample's own numbers and the last tile's rest."""
    for row in settled_rows:
        assert not row["doubts"], name(row)
        assert 1.0 <= row["bytes"] / row["minimum_bytes"] <= 1.01, name(row)


def test_float32_kernels_have_no_float64_instruction(kernel_rows: list[Row]) -> None:
    assert not [name(row) for row in kernel_rows if row["float64_in_float32"]]


def test_enough_warps_are_resident(settled_rows: list[Row]) -> None:
    for row in settled_rows:
        least = 0.5 if (row["kernel"], row["case"]) == ("combine", "float32, 2 inputs, noise") else 0.375
        least = next((bound for word, bound in OCCUPANCY.items() if word in row["case"]), least)
        heaviest = max(row["launches"], key=lambda launch: launch["programs"] * launch["instructions"])
        assert heaviest["occupancy"] >= least, name(row)


def test_a_noisy_float32_update_takes_at_most_64_instructions_an_element(rows: list[Row]) -> None:
    found = of(rows, "float32, 2 inputs, noise", "combine")
    assert {target: found[target]["instructions"] for target in NVIDIA if found[target]["instructions"] > 64} == {}


def test_a_noisy_float32_update_hides_its_arithmetic_behind_memory(rows: list[Row]) -> None:
    found = of(rows, "float32, 2 inputs, noise", "combine")
    assert len(found) == 4
    assert all(row["bound"] == "memory" and row["philox"] for row in found.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_normals_are_made_where_they_are_stored(rows: list[Row], dtype: str) -> None:
    """No exchange between threads through shared memory, no barrier."""
    for row in of(rows, f"{dtype}, 2 inputs, noise", "combine").values():
        assert row["shared_bytes"] == 0, name(row)
        assert row["launches"][0]["barriers"] == 0, name(row)


def test_numbers_in_device_memory_cost_few_instructions(rows: list[Row]) -> None:
    """A captured graph's seed and coefficients are read once a program, not once an element."""
    by_value = of(rows, "float32, 2 inputs, noise", "combine")["sm_90"]["instructions"]
    assert of(rows, "float32, 2 inputs, noise, numbers in memory", "combine")["sm_90"]["instructions"] < by_value + 4


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_the_analysis_sees_misaligned_data(rows: list[Row], target: str) -> None:
    """One of three tensors begins 4 bytes off."""
    assert of(rows, "misaligned")[target]["narrow_share"] == pytest.approx(1 / 3, abs=0.01)


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_the_analysis_sees_narrow_stores_beside_wide_loads_of_masked_lanes(rows: list[Row], target: str) -> None:
    """Every store is narrow, and half of what is loaded by 16 bytes is masked off."""
    assert of(rows, "narrow stores, half masked")[target]["narrow_share"] == pytest.approx(1 / 2)


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_arithmetic_in_a_branch_that_is_taken_is_not_left_out_silently(rows: list[Row], target: str) -> None:
    """The path around it moves the same and is shorter."""
    assert not of(rows, "flag 0")[target]["doubts"]
    assert "branch 1, taken" in of(rows, "flag 5")[target]["doubts"][0]


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_the_narrow_side_of_an_update_is_not_taken_for_the_wide_one(rows: list[Row], target: str) -> None:
    """The side of aligned tensors was looked at: the shorter one. Of the other one the analysis says that it does not know."""
    assert "branch 1, not taken" in of(rows, "misaligned averages")[target]["doubts"][0]


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_the_analysis_sees_float64_in_a_float32_kernel(rows: list[Row], target: str) -> None:
    assert of(rows, "float64")[target]["float64_in_float32"] > 0


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_the_analysis_sees_an_input_that_is_read_twice(rows: list[Row], target: str) -> None:
    row = of(rows, "reads twice")[target]
    assert row["bytes"] / row["minimum_bytes"] == pytest.approx(1.5)


def test_the_analysis_sees_spills(rows: list[Row]) -> None:
    """64 elements a thread do not fit 32 registers."""
    assert of(rows, "spills")["sm_90"]["launches"][0]["stack"] > 0


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_loops_count_as_often_as_the_launch_says(rows: list[Row], target: str) -> None:
    """4 bytes are read for every element whatever the number of turns, and 4 written for every `turns` elements. The
    compilers unroll these loops by 4, so that 7 turns are one of 4 and the rest of 3."""
    for turns in (1, 7, 64):
        row = of(rows, f"{turns} turns")[target]
        assert not row["doubts"]
        assert row["bytes"] == pytest.approx(4 + 4 / turns)
        launch = row["launches"][0]
        loads = sum(access["times"] for access in launch["accesses"] if not access["write"])
        assert loads == turns * 1024 // (4 * launch["threads"])


def test_compiling_is_refused_under_the_interpreter() -> None:
    from benchmarks.aot.capture import compiling
    from benchmarks.aot.targets import H100

    with pytest.raises(RuntimeError, match=r"TRITON_INTERPRET is set.*unset it"), compiling(H100):
        pass


def test_a_case_that_launches_nothing_is_refused(tmp_path: Path) -> None:
    """A launcher that ran its reference instead would otherwise pass every test here."""
    script = (
        "from benchmarks.aot.analysis import analysed\n"
        "from benchmarks.aot.cases import Case\n"
        "from benchmarks.aot.targets import H100\n"
        "analysed(Case('combine', 'nothing', lambda: None, 1, 1), H100)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert "combine 'nothing' launched no Triton kernel" in done.stderr
