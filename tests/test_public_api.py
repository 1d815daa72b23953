"""The front door: its names, their documentation, and what importing it costs."""

import inspect
import subprocess
import sys

import pytest

import halfbridge as hb

CONTRACT = [
    "DDIM", "EDM", "ODE", "OU", "SDE", "VE", "VP", "Ancestral", "Brownian", "BrownianPath", "CosineVP", "DPMSolver", "DPMSolverPP",
    "DiscreteVP", "EulerMaruyama", "Field", "Heun", "HutchPP", "Hutchinson", "Langevin", "Likelihood", "LinearProcess", "MultistepSolver",
    "PredictorCorrector", "ReverseDiffusion", "Solver", "SubVP", "certify", "divergence", "elbo", "grids", "kernels", "log_likelihood", "nets", "plan",
    "reference", "sample", "solve", "training",
]  # fmt: skip


def test_every_name_of_the_contract_is_there_and_documented():
    for name in CONTRACT:
        assert name in hb.__all__
        assert inspect.getdoc(getattr(hb, name))
    for name in hb.reference.__all__:
        assert inspect.getdoc(getattr(hb.reference, name))
    for name in ("uniform", "quadratic", "half_log_snr", "karras"):
        assert inspect.getdoc(getattr(hb.grids, name))
    for module in (
        hb.kernels,
        hb.nets,
        hb.training,
        hb.training.data,
        hb.training.losses,
        hb.training.objectives,
        hb.training.bridge,
    ):
        for name in module.__all__:
            assert inspect.getdoc(getattr(module, name)), f"{module.__name__}.{name}"


def test_testing_is_there_and_imported_when_asked_for():
    assert inspect.getdoc(hb.testing)
    for name in hb.testing.__all__:
        assert inspect.getdoc(getattr(hb.testing, name))
    with pytest.raises(AttributeError, match="has no attribute 'tests'"):
        _ = hb.tests


def test_the_list_of_names_is_sorted_and_complete():
    constants = [n for n in hb.__all__ if n.isupper()]
    classes = [n for n in hb.__all__ if n[0].isupper() and not n.isupper()]
    functions = [n for n in hb.__all__ if n[0].islower()]
    assert hb.__all__ == sorted(constants) + sorted(classes) + sorted(functions)
    assert all(hasattr(hb, name) for name in hb.__all__)


def test_every_solver_states_order_family_evaluations_and_paper():
    for name in hb.__all__:
        cls = getattr(hb, name)
        if inspect.isclass(cls) and issubclass(cls, hb.Solver) and not inspect.isabstract(cls):
            solver = cls(hb.Ancestral(), hb.Langevin()) if cls is hb.PredictorCorrector else cls()
            assert solver.family in ("ode", "sde", "corrector")
            assert isinstance(solver.order, int)
            assert solver.evals_per_step >= 1
            assert any(c.isdigit() for c in solver.source)  # a year


def test_importing_loads_no_optional_package():
    """Nothing heavier than torch and numpy: what is optional or slow to import comes in when it is first needed."""
    heavy = [
        "matplotlib",
        "sklearn",
        "numba",
        "triton",
        "scipy",
        "tqdm",
        "hypothesis",
        "torchsde",
        "torchdiffeq",
        "diffusers",
        "accelerate",
        "safetensors",
        "tensorboard",
        "yaml",
        "PIL",
        "halfbridge.training",
        "ot",
    ]
    code = (
        "import torch, sys; before = set(sys.modules); import halfbridge; "
        f"new = set(sys.modules) - before; print([m for m in {heavy!r} if m in new], "
        "[m for m in new if m.startswith('torch._dynamo') or m.startswith('torch._inductor')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]"]
