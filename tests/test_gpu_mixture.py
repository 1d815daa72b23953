"""Gaussian mixtures by the kernel that computes them on a GPU: as exact as by the reference; and their float32 fields."""

import copy
import pickle

import pytest
import torch
from gaussians import MEANS, MIXTURES, VIEWS, WEIGHTS, by_view, random, tensor

from halfbridge.kernels import use
from halfbridge.solvers.processes import EDM, VE, VP
from halfbridge.solvers.reference.mixture import GaussianMixture

pytest.importorskip("triton")

by_kind = pytest.mark.parametrize("kind", ["points", "scalar", "varied"])
FAR = tensor([[1.0, 0.3], [-0.2, -1.0]])


def both(run):
    with use("triton"):
        got = run()
    with use("reference"):
        return got, run()


@by_kind
@pytest.mark.parametrize(
    ("process", "t", "x"),
    [
        (VP(), 0.3, 2 * random(4, 2)),
        (EDM(), 0.01, 1e6 * FAR),
        (VE(), 1.0, 1e12 * FAR),
        (EDM(sigma_max=1e9), 1e8, 1e8 * random(4, 2)),
        (EDM(), 1e-7, MEANS + 1e-7 * random(3, 2)),
    ],
    ids=["middle", "far", "farther", "noisy", "clean"],
)
def test_fields_and_densities_are_those_of_the_reference(kind, process, t, x):
    mixture = MIXTURES[kind]
    for predicts in VIEWS:
        field = mixture.field(process, predicts)
        got, expected = both(lambda f=field: f.evaluate(t, x))
        assert (got - expected).abs().max() < 1e-8 * expected.abs().max()
    got, expected = both(lambda: mixture.at(process, t).log_prob(x))
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


@by_view
def test_float32_fields_are_those_of_rounded_data_about_the_centre(predicts):
    """Their noise errs by ulps of the data over sigma, here 2^-24 / 0.04, and where the data lie does not matter."""
    process, t = VP(), 0.01
    for shift in (0.0, 1e4):
        mixture = GaussianMixture(WEIGHTS, MEANS + shift, 0.0)
        x = mixture.at(process, t).sample(5, seed=1)
        exact = mixture.field(process, predicts).evaluate(t, x)
        with use("triton"):
            got = mixture.field(process, predicts, torch.float32).evaluate(t, x)
        assert got.dtype == torch.float64
        assert 0 < (got - exact).abs().max() / exact.abs().max() < 20 * 2.0**-24 / process.sigma(t)


def test_float32_fields_survive_a_copy_and_pickling():
    field = MIXTURES["scalar"].field
    x = random(3, 2)
    expected = field(VP(), "data", torch.float32).evaluate(0.3, x)
    for again in (copy.deepcopy(MIXTURES["scalar"]), pickle.loads(pickle.dumps(MIXTURES["scalar"]))):
        assert torch.equal(again.field(VP(), "data", torch.float32).evaluate(0.3, x), expected)


@pytest.mark.parametrize(("kind", "dtype"), [("scalar", torch.float16), ("full", torch.float32)])
def test_a_dtype_that_a_field_is_not_computed_in_is_refused(kind, dtype):
    with pytest.raises(ValueError, match=rf"`dtype` = {dtype} is not one"):
        MIXTURES[kind].field(VP(), "noise", dtype)
