"""The demo in small: that its numbers mean what the table says, and that its files are there."""

import csv
import math

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from matplotlib.image import imread

from halfbridge.demo import Settings, run
from halfbridge.demo.methods import METHODS
from halfbridge.demo.targets import PROCESS, exact_target
from halfbridge.demo.trial import rms
from halfbridge.training.data import digits

SMALL = Settings(
    images=150,
    bandwidth=0.4,
    training_steps=20,
    hidden=32,
    budgets=(2, 10, 20),
    samples=128,
    fresh=512,
    starts=16,
    reference_steps=80,
    curve_budgets=(6, 12, 24, 48),
    curve_starts=16,
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """(folder, trials, what was printed)."""
    folder = tmp_path_factory.mktemp("demo")
    printed = []
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    trials = run(folder, settings=SMALL, seed=3, echo=printed.append)
    assert torch.equal(before, torch.random.get_rng_state())
    return folder, trials, "\n".join(printed)


def test_the_flow_solvers_converge_to_the_exact_flow_at_their_orders(demo):
    curves = demo[1][0].curves
    for name, order in (("DDIM", 1), ("DPM-Solver-2", 2), ("DPM-Solver++(2M)", 2), ("Heun", 2), ("DPM-Solver-3", 3)):
        errors = [error for _, error in curves[name]]
        assert errors == sorted(errors, reverse=True), name
        assert math.log2(errors[-2] / errors[-1]) > order - 0.5, name
        assert errors[-1] > 2.0 * demo[1][0].reference_error / math.sqrt(SMALL.starts), name


def test_the_tables_errors_are_from_the_exact_flow(demo):
    for name in ("DDIM", "DPM-Solver-2", "DPM-Solver++(2M)", "Heun"):
        first, second = (cell.error for cell in demo[1][0].cells[name][1:])
        assert second < first, name
        assert second < 0.2, name
        assert demo[1][0].cells[name][2].median <= second, name


def test_the_exact_law_is_the_digits_with_the_kernels_and_the_noise_of_the_last_time():
    target = exact_target(SMALL, seed=0)
    rows = digits(dtype=torch.float64).images[: SMALL.images].flatten(1)
    spread = torch.cov(rows.T, correction=0) + SMALL.bandwidth**2 * torch.eye(64, dtype=torch.float64)
    alpha, sigma = PROCESS.alpha(PROCESS.t_min), PROCESS.sigma(PROCESS.t_min)
    expected = alpha**2 * spread + sigma**2 * torch.eye(64, dtype=torch.float64)
    torch.testing.assert_close(target.law.cov, expected, rtol=1e-10, atol=1e-12)


def test_ddim_and_dpm_solver_1_are_one_method(demo):
    for trial in demo[1]:
        for a, b in zip(trial.cells["DDIM"], trial.cells["DPM-Solver-1"], strict=True):
            assert a.error == pytest.approx(b.error, rel=1e-3)


def test_more_evaluations_bring_the_stochastic_solvers_closer_to_the_exact_law(demo):
    exact = demo[1][0]
    for name in ("Reverse diffusion", "Ancestral, posterior", "DDIM, eta = 0.5", "Predictor-corrector"):
        few, _, many = exact.cells[name]
        assert many.distance < 0.3 * few.distance, name
        assert name == "Predictor-corrector" or many.distance < 5.0 * exact.floor, name


def test_a_budget_is_never_exceeded_and_one_that_pays_for_no_step_is_a_dash(demo):
    for trial in demo[1]:
        for method in METHODS:
            for budget, cell in zip(SMALL.budgets, trial.cells[method.name], strict=True):
                if method.solver.evals_per_step > budget:
                    assert cell is None
                else:
                    assert budget - method.solver.evals_per_step < cell.evaluations <= budget
    rows = [line for line in demo[2].splitlines() if line.startswith("| DPM-Solver-3")]
    assert len(rows) == 2
    assert all(row.split("|")[3].strip() == "-" for row in rows)


def test_the_printed_table_is_the_written_one_and_names_every_solver(demo):
    folder, _, printed = demo
    table = (folder / "table.md").read_text(encoding="utf-8")
    assert table in printed + "\n"
    for method in METHODS:
        assert table.count(f"| {method.name} ") == 2


def test_the_csv_holds_every_run(demo):
    folder, trials, _ = demo
    with (folder / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    cells = [cell for trial in trials for row in trial.cells.values() for cell in row if cell is not None]
    assert len(rows) == len(cells)
    one = next(r for r in rows if r["solver"] == "DPM-Solver-2" and r["budget"] == "20")
    assert float(one["rms_error"]) == pytest.approx(trials[0].cells["DPM-Solver-2"][2].error, rel=1e-5)
    assert int(one["evaluations"]) == 20


@pytest.mark.parametrize("name", ["samples.png", "work_precision.png", "trajectories.png"])
def test_the_pictures_show_something(demo, name):
    picture = imread(demo[0] / name)
    assert picture.shape[0] > 500
    assert picture.shape[1] > 1500
    assert picture[..., :3].std() > 0.05


def test_rms_is_over_all_coordinates_and_of_the_median_row():
    error = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 1.0]])
    assert rms(error) == (pytest.approx(math.sqrt(27 / 6)), pytest.approx(1.0))
