"""Processes written down and built again."""

import dataclasses
import json
import math

import pytest
import torch

import halfbridge as hb
from halfbridge.solvers.processes import __all__ as NAMES
from halfbridge.solvers.processes import described
from halfbridge.solvers.processes.described import build, describe

THIRD = 1.0 / 3.0  # no short decimal
PROCESSES = [
    hb.VP(THIRD, 20.0 + THIRD),
    hb.CosineVP(THIRD),
    hb.SubVP(math.nextafter(0.1, 1.0), 7.0),
    hb.VE(1e-3 * THIRD, 1e5 * THIRD),
    hb.EDM(THIRD, 81.0),
    hb.OU(THIRD, math.pi, 7.1),
    hb.Brownian(math.e, 0.7),
    hb.DiscreteVP([0.1, THIRD, 1e-300, 0.999]),
]


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_a_process_comes_back_from_json_with_every_bit(process):
    again = build(json.loads(json.dumps(describe(process))))
    assert type(again) is type(process)
    for field in dataclasses.fields(process):
        assert getattr(again, field.name) == getattr(process, field.name)
    times = torch.linspace(process.t_min, process.T, 9, dtype=torch.float64)
    for formula in ("alpha", "sigma", "half_log_snr", "drift_rate", "diffusion"):
        assert torch.equal(getattr(again, formula)(times), getattr(process, formula)(times))


def test_every_process_that_numbers_alone_define_can_be_written_down():
    assert set(described.TYPES) == set(NAMES) - {"Process", "LinearProcess"}
    assert {type(process) for process in PROCESSES} == set(described.TYPES.values())


def test_what_is_left_out_has_its_default():
    assert build({"type": "VP", "beta_max": 10}) == hb.VP(beta_max=10.0)


def test_betas_of_a_tensor_are_written_as_the_numbers_that_are_used():
    betas = torch.tensor([0.1, 0.2, 0.3])
    assert describe(hb.DiscreteVP(betas)) == {"type": "DiscreteVP", "betas": betas.double().tolist()}


def test_a_process_made_of_functions_or_of_the_users_own_class_is_refused_with_the_remedy():
    linear = hb.LinearProcess(lambda t: torch.exp(-t), lambda t: torch.sqrt(-torch.expm1(-2 * t)), 3.0, 1e-3)

    @dataclasses.dataclass(frozen=True)
    class VP(hb.VP):
        def _beta(self, t):
            return 2.0 * super()._beta(t)

    for process in (linear, VP()):
        with pytest.raises(ValueError, match=rf"keep the {type(process).__name__} in your code.* process=.* net="):
            describe(process)
    with pytest.raises(TypeError, match="process is a str"):
        describe("vp")


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"type": "CosinVP"}, "type = 'CosinVP', which is no process; did you mean 'CosineVP'"),
        ({"type": "LinearProcess"}, "'LinearProcess', which is no process"),
        ({"beta_min": 0.1}, "type = None, which is no process; there are 'VP', 'CosineVP'"),
        ({"type": ["VP"]}, r"type = \['VP'\], which is no process"),
        (
            {"type": "VP", "beta_mx": 3.0},
            "VP has no argument 'beta_mx'; did you mean 'beta_max'",
        ),
        ({"type": "VP", "T": 2.0}, "VP has no argument 'T'"),
        ({"type": "DiscreteVP"}, "lacks 'betas'"),
        ({"type": "VP", "beta_min": -1.0}, "beta_min"),
    ],
)
def test_a_description_of_no_process_is_refused_by_what_is_wrong(description, message):
    with pytest.raises(ValueError, match=message):
        build(description)
    with pytest.raises(TypeError, match="description is a str"):
        build("VP")
