"""The `halfbridge` command: what it prints, its exit status, and errors of one line."""

import json
import subprocess
import sys

import pytest
from command import run

import halfbridge as hb
from halfbridge.cli import main
from halfbridge.solvers import names


def test_table_prints_the_plan(capsys):
    status, out, err = run(capsys, "table", "--solver", "dpm3", "--process", "vp", "--steps", "4")
    process = hb.VP()
    plan = hb.plan(hb.DPMSolver(order=3), process, hb.grids.half_log_snr(process, 4))
    assert (status, out, err) == (0, f"{plan}\n", "")


def test_table_as_json_keeps_every_digit_of_the_plan(capsys):
    options = ["--process", "edm", "--grid", "karras(rho=5)", "--steps", "3", "--t-end", "0", "--predicts", "data"]
    status, out, _ = run(capsys, "table", "--solver", "Heun(churn=2)", *options, "--json")
    process = hb.EDM()
    grid = hb.grids.karras(process, 3, rho=5, t_end=0)
    assert status == 0
    assert json.loads(out) == hb.plan(hb.Heun(churn=2), process, grid, predicts="data").to_dict()


@pytest.mark.parametrize(
    ("text", "solver"),
    [
        ("ddim", hb.DDIM()),
        ("DDIM(eta=0.25)", hb.DDIM(eta=0.25)),
        ("DDIM(0.25)", hb.DDIM(0.25)),
        ("dpm-2", hb.DPMSolver(order=2)),
        ("dpm_solver(order=3)", hb.DPMSolver(order=3)),
        ("DPM++", hb.DPMSolverPP()),
        ("euler-maruyama", hb.EulerMaruyama()),
        ("Ancestral(variance='transition')", hb.Ancestral("transition")),
        ("Heun(churn=3, s_max=inf)", hb.Heun(churn=3)),
        (
            "PredictorCorrector(predictor=Ancestral, corrector=Langevin(snr=0.1), corrector_steps=2)",
            hb.PredictorCorrector(hb.Ancestral(), hb.Langevin(snr=0.1), 2),
        ),
    ],
)
def test_a_solver_is_what_its_text_says(text, solver):
    assert names.solver(text) == solver


def test_every_public_solver_and_process_with_literal_arguments_has_a_name():
    def public(kind, without):
        found = (getattr(hb, name) for name in hb.__all__)
        return {c.__name__ for c in found if isinstance(c, type) and issubclass(c, kind) and c not in without}

    assert public(hb.Solver, {hb.Solver, hb.MultistepSolver}) <= names.SOLVERS.keys()
    assert public(hb.Process, {hb.Process, hb.LinearProcess}) <= names.PROCESSES.keys()


def test_the_ddpm_process_has_the_thousand_linear_betas():
    process = names.process("ddpm")
    assert process.T == 1000.0
    assert process.alpha(1.0) ** 2 == pytest.approx(1 - 1e-4, rel=1e-14)
    assert (process.alpha(1000.0) / process.alpha(999.0)) ** 2 == pytest.approx(1 - 0.02, rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table", "--solver", "ddmi"], "there is no solver 'ddmi'; did you mean 'DDIM'?"),
        (["table", "--solver", "dpm3", "--process", "cosine"], "did you mean 'CosineVP'?"),
        (["table", "--solver", "dpm3", "--grid", "karas"], "did you mean 'karras'?"),
        (["table", "--solver", "zzz"], "there are 'EulerMaruyama'"),
        (["table", "--solver", "DDIM(eta=2)"], "eta = 2"),
        (["table", "--solver", "DDIM(steps=2)"], "'steps'"),
        (["table", "--solver", "DDIM(eta=1+x)"], "'1 + x' is not a literal"),
        (["table", "--solver", "__import__('os').system('true')"], "there is no solver"),
        (["table", "--solver", "dpm3", "--steps", "0"], "n"),
        (["table", "--solver", "dpm3", "--predicts", "nois"], "noise"),
        (["table", "--solver", "dpm3", "--steps", "many"], "--steps"),
        (["table"], "--solver"),
        (["tabel"], "there is no 'tabel'; did you mean 'table'?"),
        ([], "command"),
        (["certify", "dpm4"], "did you mean 'dpm3'?"),
        (["certify", "no_such_module:X"], "no_such_module"),
        (["certify", "halfbridge:Heum"], "module 'halfbridge' has no 'Heum'; did you mean 'Heun'?"),
        (["certify", "halfbridge:VP"], "VP, not a solver"),
    ],
)
def test_an_error_is_one_line_that_names_the_trouble(capsys, arguments, message):
    status, out, err = run(capsys, *arguments)
    assert status == 2
    assert out == ""
    assert err.startswith("halfbridge: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert err.endswith("\n")


def test_an_error_of_several_lines_is_put_on_one(capsys, tmp_path, monkeypatch):
    (tmp_path / "two_lines.py").write_text("raise ValueError('first\\nsecond')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert run(capsys, "certify", "two_lines:X") == (2, "", "halfbridge: error: first second\n")


def test_a_demo_that_cannot_write_says_so(capsys, tmp_path):
    file = tmp_path / "taken"
    file.write_text("")
    status, _, err = run(capsys, "demo", "--quick", "--out", str(file))
    assert status == 2
    assert "taken" in err
    assert err.count("\n") == 1


MIDPOINT = """
from dataclasses import dataclass
from math import expm1
import halfbridge as hb

@dataclass(frozen=True)
class Midpoint(hb.Solver):
    order = 2
    evals_per_step = 2
    family = "ode"
    integrates = (hb.Field,)

    def step(self, field, x, t, s, draw):
        p = field.process
        h = p.half_log_snr(s) - p.half_log_snr(t)
        m = p.time_at(p.half_log_snr(t) + h / 2)
        u = p.alpha(m) / p.alpha(t) * x - p.sigma(m) * expm1(h / 2) * field.noise(t, x)
        return p.alpha(s) / p.alpha(t) * x - p.sigma(s) * expm1(h) * field.noise(WHEN, u)
"""


@pytest.mark.parametrize(("when", "status", "verdict"), [("m", 0, "PASSED: order 2."), ("t", 1, "FAILED: order")])
def test_certify_judges_a_solver_of_the_users_own(capsys, tmp_path, monkeypatch, when, status, verdict):
    module = f"midpoint_{when}"
    (tmp_path / f"{module}.py").write_text(MIDPOINT.replace("WHEN", when))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    got, out, err = run(capsys, "certify", f"{module}:Midpoint", "--plot", "verdict.png")
    assert got == status
    assert verdict in out
    assert out.endswith("wrote verdict.png\n")
    assert err == ""
    assert (tmp_path / "verdict.png").read_bytes().startswith(b"\x89PNG")


def test_a_reader_that_goes_away_is_no_error():
    command = f"{sys.executable} -m halfbridge table --solver dpm3 --steps 500 | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("DPMSolver(order=3)")
    assert done.stderr == ""


def test_version_is_the_packages(capsys):
    assert run(capsys, "--version")[:2] == (0, f"halfbridge {hb.__version__}\n")


def test_bench_kernels_writes_a_table_and_a_plot(tmp_path, capsys):
    assert main(["bench", "kernels", "hutchinson_probe", "--device", "cpu", "--out", str(tmp_path)]) == 0
    header, *rows = (tmp_path / "kernels.csv").read_text().splitlines()
    assert header.startswith("kernel,case,form,backend,device,microseconds")
    assert {row.split(",")[0] for row in rows} == {"hutchinson_probe"}
    assert (tmp_path / "kernels.png").stat().st_size > 1000
    assert "hutchinson_probe" in capsys.readouterr().out


def test_bench_names_the_kernels_there_are(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", "kernels", "convolve"])
    assert stop.value.code == 2
    assert "no kernel 'convolve'; there are combine, normal" in capsys.readouterr().err
