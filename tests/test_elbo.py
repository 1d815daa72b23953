"""`elbo` against the papers' integrals in closed form, exact densities, and the density of the reverse SDE itself."""

import math
from typing import Any

import pytest
import torch
from cases import bounded_field
from scipy.integrate import quad, solve_ivp

import halfbridge as hb
from halfbridge import Hutchinson, HutchPP
from halfbridge.solvers.elbo import elbo
from halfbridge.solvers.likelihood import log_likelihood

F64 = torch.float64
P = hb.VP()
FORMS = [None, "exact"]
M, C = 0.7, 0.3  # of the Gaussian whose field is used, whatever the data


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def normal_law(x: float, mean: float, spread: float, variance: float) -> float:
    """E log N(X; mean, variance) for X of mean x and variance `spread`."""
    return -0.5 * (math.log(2 * math.pi * variance) + ((x - mean) ** 2 + spread) / variance)


def closed_form(process: hb.Process, x0: float, t_min: float, prior: tuple[float, float], reconstruct: bool) -> float:
    """Theorem 3 of Song et al. 2021b in their own letters and in t, for the score -(x - alpha M)/(alpha^2 C + sigma^2)."""

    def law(t: float) -> tuple[float, float]:
        r, v = (process.alpha(t), process.sigma(t) ** 2) if reconstruct else (1.0, 0.0)
        if not reconstruct and t > t_min:
            r, v = process.transition(t_min, t)
        return r * x0, v

    def integrand(log_t: float) -> float:
        t = math.exp(log_t)
        q, g2 = process.alpha(t) ** 2 * C + process.sigma(t) ** 2, process.diffusion(t) ** 2
        mean, v = law(t)
        score2 = ((mean - process.alpha(t) * M) ** 2 + v) / q**2
        return t * (0.5 * g2 * score2 - g2 / q - process.drift_rate(t))

    integral = quad(integrand, math.log(t_min), math.log(process.T), limit=400, epsabs=1e-10)[0]
    value = normal_law(law(process.T)[0], prior[0], law(process.T)[1], prior[1]) - integral
    if reconstruct:
        alpha, var = process.alpha(t_min), process.sigma(t_min) ** 2
        gain = (1 - var / (alpha**2 * C + var)) / alpha  # of the data prediction
        centre = gain * alpha * x0 + var * M / (alpha**2 * C + var)
        value += normal_law(x0, centre, gain**2 * var, var / alpha**2) - normal_law(0.0, 0.0, var, var)
    return value


OTHER = hb.OU(theta=0.8, g=1.3, T=1.5)
CASES: list[tuple[Any, float, Any, bool, bool]] = [  # process, t_min, divergence, reconstruct, a prior of one's own
    (P, 0.01, None, False, False),
    (P, 0.01, "exact", True, True),
    (P, 0.01, "hutchinson", False, True),
    (OTHER, 0.1, None, True, True),
    (OTHER, 0.1, "exact", False, True),
    (OTHER, 0.1, "exact", True, False),
    (hb.VE(), 0.2, None, False, True),
    (hb.VE(), 0.2, None, True, False),
]


@pytest.mark.parametrize(("process", "t_min", "divergence", "reconstruct", "own"), CASES, ids=str)
def test_the_estimate_has_the_mean_of_the_papers_bound(
    process: Any, t_min: float, divergence: Any, reconstruct: bool, own: bool
) -> None:
    """Copies of three points; 7 standard errors of 6 seeds, which are below 0.006 (0.05 with probes)."""
    field = hb.reference.Gaussian([M], [[C]]).field(process, "score")
    points, copies, law = torch.tensor([-1.0, 0.6, 2.0], dtype=F64), 100, (0.4, 1.7 * process.prior_std**2)
    x, runs = points.repeat_interleave(copies)[:, None], []
    for seed in range(6):
        method = Hutchinson(kind="gaussian", seed=seed) if divergence == "hutchinson" else divergence
        prior = hb.reference.Gaussian([law[0]], law[1]) if own else None
        found = elbo(field, x, prior, divergence=method, samples=256, seed=seed, t_min=t_min, reconstruct=reconstruct)
        assert found.nfe == 512 + 256 * reconstruct
        runs.append(found.log_prob.view(3, copies).mean(1))
    got, error = torch.stack(runs).mean(0), torch.stack(runs).std(0) / 6**0.5
    law = law if own else (0.0, process.prior_std**2)
    want = [closed_form(process, float(p), t_min, law, reconstruct) for p in points]
    assert error.max() < (0.05 if divergence == "hutchinson" else 0.006)
    assert ((got - torch.tensor(want, dtype=F64)).abs() < 7 * error).all()


@pytest.mark.parametrize("reconstruct", [False, True])
@pytest.mark.parametrize("divergence", FORMS)
def test_the_noise_drops_out_of_the_bound_of_a_unit_normal_law(divergence: Any, reconstruct: bool) -> None:
    """Copies of a point have noise of their own and one bound, to rounding: its multiple of |z|^2 - d is taken off whole."""
    data = hb.reference.Gaussian([0.0, 0.0], 1.0)
    x = torch.tensor([[0.4, -1.3]], dtype=F64).expand(5, -1)
    found = elbo(data.field(P), x, divergence=divergence, t_min=0.3, reconstruct=reconstruct)
    assert float(found.log_prob.max() - found.log_prob.min()) < 1e-10
    exact = log_likelihood(data.field(P), x, t_min=0.3).log_prob
    gap = exact - found.log_prob  # of the Gaussian decoder, at most: the errors left are those of the times
    assert gap.abs().max() < (1.0 if reconstruct else 5e-3)


@pytest.mark.parametrize("reconstruct", [False, True])
@pytest.mark.parametrize("divergence", FORMS)
def test_a_constant_noise_prediction_costs_its_square_exactly(divergence: Any, reconstruct: bool) -> None:
    """eps = c has no divergence, and z and -z cancel c.z: |c|^2 for each unit of log nu, and half of it to reconstruct."""
    x, c = torch.randn(3, 2, dtype=F64, generator=torch.Generator().manual_seed(0)), 1.7
    found = [
        elbo(
            hb.Field(OTHER, lambda t, x, c=c: c + 0 * x), x, divergence=divergence, samples=4, reconstruct=reconstruct
        ).log_prob
        for c in (0.0, c)
    ]
    span = OTHER.half_log_snr(OTHER.t_min) - OTHER.half_log_snr(OTHER.T)
    want = torch.full((3,), -2 * c**2 * (span + 0.5 * reconstruct), dtype=F64)
    assert torch.allclose(found[1] - found[0], want, rtol=1e-9)


@pytest.mark.parametrize(
    ("process", "d", "divergence"),
    [(hb.VP(), 1, None), (hb.VP(), 4, "exact"), (hb.VP(), 16, None), (hb.EDM(), 4, None), (hb.EDM(), 1, "exact")],
)
def test_with_the_exact_field_and_prior_the_bound_is_the_density_of_the_mixture(process, d, divergence):
    """Each of 50 points within 8 of its standard errors, which have heavy tails; their mean within 6 of 8 seeds' spread."""
    means = torch.randn(2, d, dtype=F64, generator=torch.Generator().manual_seed(1))
    data = hb.reference.GaussianMixture([0.3, 0.7], means, 0.3)
    x, runs = data.at(process, process.t_min).sample(50, seed=0), []
    for seed in range(8):
        found = elbo(data.field(process), x, data.at(process, process.T), divergence=divergence, seed=seed)
        error = found.log_prob - data.at(process, process.t_min).log_prob(x)
        assert (error.abs() < 8 * found.std_error).all()
        runs.append(error.mean())
    overall = torch.stack(runs)
    assert abs(overall.mean()) < 6 * overall.std() / 8**0.5
    assert overall.std() < 0.05 * d**0.5


@pytest.mark.parametrize("divergence", FORMS)
def test_the_bound_is_below_the_density_of_the_reverse_sde(divergence):
    """For a wrong affine score the samples of the reverse SDE are Gaussian; their mean and variance solve two ODEs."""
    process, t_min = OTHER, 0.1

    def rate(t, y):
        q, g2, a = process.alpha(t) ** 2 * C + process.sigma(t) ** 2, process.diffusion(t) ** 2, process.drift_rate(t)
        slope = 2 / q  # of minus the score, twice the exact one
        return [a * y[0] + g2 * slope * (y[0] - process.alpha(t) * M), 2 * (a + g2 * slope) * y[1] - g2]

    end = solve_ivp(rate, (process.T, t_min), [0.0, process.prior_std**2], rtol=1e-10, atol=1e-12).y[:, -1]
    model = hb.reference.Gaussian([end[0]], end[1])
    exact = hb.reference.Gaussian([M], [[C]]).field(process, "score")
    wrong = exact.with_function(lambda t, x: 2 * exact.fn(t, x))
    x = model.sample(100, seed=1)
    found = elbo(wrong, x, divergence=divergence, samples=512, t_min=t_min)
    gap = (model.log_prob(x) - found.log_prob) / found.std_error
    assert gap.min() > -5
    assert gap.median() > 3  # and it is not tight
    flow = log_likelihood(wrong, x, t_min=t_min).log_prob  # the flow's density is another one, above or below
    assert (flow < model.log_prob(x)).any()


def test_the_standard_error_is_the_spread_of_the_estimate():
    """120 seeds of 100 points: mean squares agree within 20 %, some 5 deviations of the squares' means over seeds."""
    data = hb.reference.Gaussian([M], [[C]])
    x = data.at(OTHER, 0.1).sample(100, seed=0)
    runs = [
        elbo(data.field(OTHER), x, data.at(OTHER, OTHER.T), samples=16, seed=s, t_min=0.1, reconstruct=True)
        for s in range(120)
    ]
    spread = torch.stack([run.log_prob for run in runs]).var(0).mean()
    stated = torch.stack([run.std_error for run in runs]).square().mean()  # type: ignore[arg-type]
    assert stated / spread == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("divergence", [None, "exact", Hutchinson(2, kind="gaussian"), HutchPP(4)], ids=str)
@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("reconstruct", [False, True])
def test_a_bound_depends_on_the_seed_and_the_global_index_only(divergence, dtype, reconstruct):
    """Bit for bit, for a field that works elementwise; the prior's copies of a mixture work row by row."""
    x = torch.randn(7, 1, 2, 3, dtype=dtype, generator=torch.Generator().manual_seed(3))
    options: dict[str, Any] = {"divergence": divergence, "samples": 4, "seed": 2**63, "reconstruct": reconstruct}
    whole = elbo(bounded_field(P, "data"), x, first=10, **options)
    part = elbo(bounded_field(P, "data"), x[4:6], first=14, **options)
    assert torch.equal(part.log_prob, whole.log_prob[4:6])
    assert torch.equal(part.std_error, whole.std_error[4:6])
    other = elbo(bounded_field(P, "data"), x[4:6], first=15, **options)
    assert (other.log_prob != part.log_prob).all()
    wide = elbo(bounded_field(P, "data"), x.double(), first=10, **options)
    assert torch.allclose(wide.log_prob, whole.log_prob, rtol=1e-4)
    assert whole.log_prob.dtype == F64


@pytest.mark.parametrize("divergence", [None, "exact", Hutchinson(2)], ids=str)
def test_gradients_are_those_of_the_estimate(divergence):
    """Central differences in the point and in a parameter, at the same seed."""
    x = torch.tensor([[0.4, -1.0]], dtype=F64)
    a = torch.tensor(0.8, dtype=F64)

    def bound(x, a):
        field = hb.Field(P, lambda t, x: torch.tanh(a * x) + 0.1 * x.roll(1, -1))
        return elbo(field, x, divergence=divergence, samples=4, reconstruct=True).log_prob.sum()

    with torch.enable_grad():
        u, b = x.clone().requires_grad_(), a.clone().requires_grad_()
        by_x, by_a = torch.autograd.grad(bound(u, b), (u, b))
    step = torch.tensor([[1e-5, 0.0]], dtype=F64)
    assert float(by_x[0, 0]) == pytest.approx(float(bound(x + step, a) - bound(x - step, a)) / 2e-5, rel=1e-6)
    assert float(by_a) == pytest.approx(float(bound(x, a + 1e-5) - bound(x, a - 1e-5)) / 2e-5, rel=1e-6)


FIELD, X = hb.reference.Gaussian([M], [[C]]).field(P), torch.zeros(3, 1, dtype=F64)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "field": ({"field": FIELD.reverse_sde()}, "field must be a Field, got ReverseSDE"),
    "x0 nan": ({"x0": X / 0.0}, "3 of 3 entries of x0"),
    "x0 dimension": ({"x0": torch.zeros(3, 2)}, "prod.shape. = 1"),
    "prior": ({"prior": 3.0}, "prior must be a law with log_prob"),
    "dimension of the prior": ({"prior": hb.reference.Gaussian([0.0, 1.0], 1.0)}, "prior.log_prob.* failed"),
    "Brownian": ({"field": hb.reference.Gaussian([M], [[C]]).field(hb.Brownian())}, "prior = None"),
    "divergence": ({"divergence": "none"}, "`divergence` = 'none'"),
    "half a sample": ({"samples": 7.5}, "samples = 7.5 must be an int"),
    "no samples": ({"samples": 0}, "samples = 0"),
    "seed": ({"seed": None}, "`seed` must be an integer, got None"),
    "first": ({"first": 2**64}, "`first` = "),
    "t_min": ({"t_min": 1.0}, "t_min = 1.0"),
    "reconstruct": ({"reconstruct": "yes"}, "reconstruct = 'yes'"),
    "field nan": ({"field": hb.Field(P, lambda t, x: x / 0.0)}, "infinite or NaN at t = "),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    changes, message = BAD[name]
    options = {"field": FIELD, "x0": X, **changes}
    with pytest.raises((TypeError, ValueError, FloatingPointError), match=message):
        elbo(options.pop("field"), options.pop("x0"), **options)


def test_no_samples_have_no_bounds():
    found = elbo(FIELD, X[:0])
    assert found.log_prob.shape == found.std_error.shape == (0,)  # type: ignore[union-attr]
    assert found.nfe == 0
