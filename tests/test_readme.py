"""The README's and CONTRIBUTING's code runs as it stands, and what they claim is so."""

import re
from pathlib import Path

import pytest
import torch

import halfbridge as hb

ROOT = Path(__file__).parents[1]


def blocks(name):
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), flags=re.S)


@pytest.fixture(scope="module")
def contributing():
    scope = {}
    for block in blocks("CONTRIBUTING.md"):
        exec(compile(block, "CONTRIBUTING.md", "exec"), scope)
    return scope


def test_the_readme_runs_and_its_solver_passes(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    scope = {}
    for block in blocks("README.md"):
        exec(compile(block, "README.md", "exec"), scope)
    assert "PASSED: order 2.01 seen, 2 declared" in capsys.readouterr().out


def test_the_readmes_table_states_the_attributes():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for solver in (hb.EulerMaruyama(), hb.ReverseDiffusion(), hb.Ancestral(), hb.DDIM(), hb.Heun()):
        row = next(line for line in text.splitlines() if line.startswith(f"| `{type(solver).__name__}("))
        assert [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[2:4]] == [
            str(solver.order),
            str(solver.evals_per_step),
        ]
        assert solver.source in row


def test_the_worked_solver_passes_and_is_ancestral_in_another_guise(contributing):
    solver = contributing["SDEDPMSolverPP1"]()
    assert hb.certify(solver).passed
    data = hb.reference.Gaussian([0.3, 1.0], [[0.5, 0.2], [0.2, 0.7]])
    p = hb.CosineVP()
    grid = hb.grids.half_log_snr(p, 7)
    ours, theirs = (hb.reference.law_of(s, p, grid, data, joint=True) for s in (solver, hb.Ancestral()))
    torch.testing.assert_close(ours.cov, theirs.cov, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(ours.mean, theirs.mean, rtol=1e-11, atol=1e-12)


def test_the_worked_process_is_variance_preserving_and_carries_solvers(contributing):
    p = contributing["sigmoid"]
    for t in (0.01, 0.3, 0.9):
        assert p.alpha(t) ** 2 + p.sigma(t) ** 2 == pytest.approx(1.0, rel=1e-14)
    data = hb.reference.Gaussian([0.2], [[0.5]])
    assert hb.reference.observed_order(hb.DPMSolver(2), p, data, t_end=0.1) == pytest.approx(2.0, abs=0.2)
