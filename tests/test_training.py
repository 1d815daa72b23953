"""Losses against their closed-form minimisers, the trainer's promises, the data sets."""

import math

import pytest
import torch

import halfbridge as hb
from halfbridge.nets import MLP
from halfbridge.training import data, fit_score
from halfbridge.training.fit import sample_times
from halfbridge.training.losses import denoising_loss

MEAN = torch.tensor([0.7, -0.4], dtype=torch.float64)
COV = torch.tensor([[0.9, 0.3], [0.3, 0.5]], dtype=torch.float64)
STEPS = hb.DiscreteVP([0.02 + 0.03 * k for k in range(10)])
PROCESSES = [hb.VP(), hb.SubVP(), hb.VE(), hb.EDM(), hb.OU(g=1.4), STEPS]
PREDICTS = ["noise", "score", "data", "velocity"]

by_name = {"ids": lambda p: type(p).__name__}


def exact_sample(n=32):
    """(x0, z) of n pairs whose sample mean and covariance are exactly those of N(MEAN, COV) x N(0, I)."""
    raw = torch.randn(n, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    raw[:, 0] = 1.0
    white = torch.linalg.qr(raw).Q[:, 1:] * math.sqrt(n)
    return MEAN + white[:, :2] @ torch.linalg.cholesky(COV).T, white[:, 2:]


def some_times(process, n):
    """Distinct times, all over [t_min, T]; whole steps for a discrete process."""
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return sample_times(process, u)


def converted(net, process, predicts):
    """`net` predicts the noise; the same belief stated as `predicts`, from x = alpha D + sigma eps."""

    def other(x, t):
        alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
        noise = net(x, t)
        if predicts == "noise":
            return noise
        if predicts == "score":
            return -noise / sigma
        clean = (x - sigma * noise) / alpha
        return clean if predicts == "data" else alpha * noise - sigma * clean

    return other


def crooked(x, t):
    return torch.sin(x.flip(1)) + 0.3 * x + 0.1


@pytest.mark.parametrize("weighting", ["simple", "likelihood", "uniform"])
@pytest.mark.parametrize("process", PROCESSES, **by_name)
def test_one_belief_has_one_loss_however_it_is_stated(process, weighting):
    x0, z = exact_sample()
    t = some_times(process, len(x0))

    def loss(predicts):
        net = converted(crooked, process, predicts)
        return denoising_loss(net, process, x0, t, z, predicts=predicts, weighting=weighting, labels=lambda t: t)

    for predicts in PREDICTS[1:]:
        torch.testing.assert_close(loss(predicts), loss("noise"), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES, **by_name)
def test_the_weights_are_sigma2_g2_and_one_on_the_error_of_the_score(process):
    x0, z = exact_sample()
    t = some_times(process, len(x0))
    alpha, sigma, g = process.alpha(t), process.sigma(t), process.diffusion(t)
    x = alpha[:, None] * x0 + sigma[:, None] * z
    score_error = (converted(crooked, process, "score")(x, t) + z / sigma[:, None]).square().mean(dim=1)
    for weighting, weight in (("simple", sigma**2), ("likelihood", g**2), ("uniform", torch.ones_like(t))):
        got = denoising_loss(crooked, process, x0, t, z, weighting=weighting)
        torch.testing.assert_close(got, weight * score_error, rtol=1e-9, atol=0.0)
    named = denoising_loss(crooked, process, x0, t, z, weighting=lambda t: 1.0 / (1.0 + t))
    torch.testing.assert_close(named, sigma**2 * score_error / (1.0 + t), rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("process", PROCESSES, **by_name)
def test_the_affine_minimiser_on_gaussian_data_is_the_exact_field(process, predicts):
    """On Gaussian data the field is affine in x at each t, so it is what least squares on the loss finds.

    The sample has exactly the moments of the law, and the loss is quadratic in (A, b): one Newton step from anywhere
    is the minimiser of the loss over the law itself, to rounding.
    """
    x0, z = exact_sample()
    probe = torch.tensor([[0.3, -1.0], [2.0, 0.5], [0.0, 0.0]], dtype=torch.float64)
    exact = hb.reference.Gaussian(MEAN, COV).field(process)
    for t in some_times(process, 3).tolist():

        def loss(theta, t=t):
            times = torch.full((len(x0),), t, dtype=torch.float64)
            net = lambda x, _: x @ theta[:4].view(2, 2).T + theta[4:]  # noqa: E731
            return denoising_loss(net, process, x0, times, z, predicts=predicts, weighting="likelihood").mean()

        start = torch.zeros(6, dtype=torch.float64)
        hessian = torch.autograd.functional.hessian(loss, start)
        gradient = torch.autograd.functional.jacobian(loss, start)
        theta = start - torch.linalg.solve(hessian, gradient)
        found = probe @ theta[:4].view(2, 2).T + theta[4:]
        torch.testing.assert_close(found, getattr(exact(t, probe), predicts), rtol=1e-7, atol=1e-7)


def test_at_the_minimiser_the_loss_is_the_conditional_variance_of_the_noise():
    """E|eps - E[eps | x]|^2 / d = tr(I - sigma^2 S^-1) / d, with S = alpha^2 COV + sigma^2 I."""
    process, t = hb.VP(), 0.3
    x0, z = exact_sample()
    exact = hb.reference.Gaussian(MEAN, COV).field(process)
    times = torch.full((len(x0),), t, dtype=torch.float64)
    loss = denoising_loss(lambda x, _: exact.noise(t, x), process, x0, times, z).mean().item()
    total = process.alpha(t) ** 2 * COV + process.sigma(t) ** 2 * torch.eye(2, dtype=torch.float64)
    residual = (torch.eye(2, dtype=torch.float64) - process.sigma(t) ** 2 * torch.linalg.inv(total)).trace().item() / 2
    assert loss == pytest.approx(residual, rel=1e-10)


def test_the_loss_gives_the_network_the_same_labels_as_a_field_does():
    seen = []

    def net(x, t):
        seen.append(t)
        return x

    x0, z = exact_sample(8)
    t = torch.arange(1.0, 9.0, dtype=torch.float64)
    denoising_loss(net, STEPS, x0, t, z)
    denoising_loss(net, STEPS, x0, t, z, labels=STEPS.half_log_snr)
    assert torch.equal(seen[0], t - 1.0)
    assert torch.equal(seen[1], STEPS.half_log_snr(t))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z": torch.zeros(3, 2)}, r"z. has shape \(3, 2\)"),
        ({"t": torch.tensor(0.5)}, r"t has shape \(\)"),
        ({"predicts": "nois"}, "'nois'"),
        ({"weighting": "snr"}, "'snr'.*'simple', 'likelihood', 'uniform'"),
        ({"net": lambda x, t: x[:, :1]}, r"\(4, 1\) for x of shape \(4, 2\)"),
    ],
)
def test_the_loss_refuses_what_does_not_fit(change, message):
    arguments = {"net": crooked, "process": hb.VP(), "x0": torch.zeros(4, 2), "t": torch.full((4,), 0.5)}
    with pytest.raises(ValueError, match=message):
        denoising_loss(**{**arguments, "z": torch.zeros(4, 2), **change})


@pytest.mark.parametrize("process", PROCESSES, **by_name)
@pytest.mark.parametrize("times", ["uniform", "half_log_snr"])
def test_training_times_cover_the_process_and_nothing_else(process, times):
    u = torch.linspace(0.0, 1.0 - 1e-9, 1001, dtype=torch.float64)
    t = sample_times(process, u, times)
    assert t.min() >= process.t_min
    assert t.max() <= process.T
    assert t.min().item() == pytest.approx(process.t_min, rel=1e-6)
    assert t.max().item() == pytest.approx(process.T, rel=1e-6)
    if times == "half_log_snr":
        gaps = process.half_log_snr(t).diff()
        assert gaps[1:-1].std() < 1e-6 * gaps.abs().mean()


def test_discrete_training_times_are_each_step_equally_often():
    t = sample_times(STEPS, (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000)
    steps, counts = t.unique(return_counts=True)
    assert steps.tolist() == [float(k) for k in range(1, 11)]
    assert counts.tolist() == [100] * 10


def small_fit(seed=0, dropout=0.0, steps=30):
    torch.manual_seed(11)
    net = MLP(2, hidden=16, depth=1)
    net.blocks.append(Dropped(dropout))
    torch.seed()  # what the global generator holds must not matter
    return fit_score(net, data.moons(200, 0), hb.VP(), steps=steps, batch_size=32, seed=seed)


class Dropped(torch.nn.Module):
    """A block that only drops out."""

    def __init__(self, rate):
        super().__init__()
        self.drop = torch.nn.Dropout(rate)

    def forward(self, h, time):
        return self.drop(h)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_same_seed_trains_the_same_network_to_the_last_bit(dropout):
    one, two, other = small_fit(1, dropout), small_fit(1, dropout), small_fit(2, dropout)
    assert torch.equal(one.losses, two.losses)
    for a, b in zip(one.net.parameters(), two.net.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one.losses, other.losses)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_training_leaves_the_global_generator_and_the_modes_alone(dropout):
    net = torch.nn.Sequential(MLP(2, hidden=8), torch.nn.Dropout(dropout)).eval()
    net[1].train()
    net.forward = lambda x, t: net[1](net[0](x, t))
    before = torch.random.get_rng_state()
    fit_score(net, data.moons(64, 0), hb.VP(), steps=3, batch_size=8)
    assert torch.equal(before, torch.random.get_rng_state())
    assert [net.training, net[0].training, net[1].training] == [False, False, True]


def test_clip_bounds_the_gradient_that_the_optimiser_sees():
    """Adam divides the gradient by its size plus 1e-8: only a gradient far below that moves nothing."""

    def moved(clip):
        net = MLP(2, hidden=8)
        start = [p.detach().clone() for p in net.parameters()]
        fit_score(net, data.moons(64, 0), hb.VP(), steps=3, batch_size=8, lr=1e-2, clip=clip)
        return max((p - q).abs().max().item() for p, q in zip(net.parameters(), start, strict=True))

    assert moved(1e-14) < 1e-7
    assert moved(1.0) > 1e-2


def test_the_result_is_the_average_and_not_the_last_network():
    torch.manual_seed(0)
    net = MLP(2, hidden=16, depth=1)
    fit = fit_score(net, data.moons(200, 0), hb.VP(), steps=20, batch_size=32)
    x, t = torch.ones(1, 2), torch.full((1,), 0.5)
    assert torch.equal(fit.field.noise(0.5, x), fit.net(x, t))
    assert not torch.equal(fit.net(x, t), net(x, t))
    assert not fit.net.training
    assert all(p.grad is None for p in net.parameters())
    assert fit.losses.shape == (20,)


class GaussianNet(torch.nn.Module):
    """The exact noise sigma S^-1 (x - alpha m) of N(m, L L^T), S = alpha^2 L L^T + sigma^2 I; m and L are trained."""

    def __init__(self, process):
        super().__init__()
        self.process = process
        self.m = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.root = torch.nn.Parameter(torch.eye(2, dtype=torch.float64))

    def forward(self, x, t):
        alpha, sigma = self.process.alpha(t)[:, None], self.process.sigma(t)[:, None]
        total = alpha[..., None] ** 2 * (self.root @ self.root.T) + sigma[..., None] ** 2 * torch.eye(2)
        return sigma * torch.linalg.solve(total, x - alpha * self.m)


def test_training_recovers_the_moments_of_gaussian_data():
    """A network that can be exact becomes exact: within 5 standard errors of what the average's last updates have seen.

    The average remembers about a tenth of the run, 60 batches of 256, and a late time tells little about the data: a
    quarter of those are counted, n = 3840 draws. Then mean and covariance have standard errors sqrt(c_ii / n) and
    sqrt((c_ii c_jj + c_ij^2) / n).
    """
    n = 3840
    rows = hb.reference.Gaussian(MEAN, COV).sample(20000, seed=1)
    net = GaussianNet(hb.VP())
    fit = fit_score(net, rows, hb.VP(), steps=600, batch_size=256, lr=1e-2).net
    variances = COV.diagonal()
    assert ((fit.m - MEAN).abs() < 5.0 * (variances / n).sqrt()).all()
    spread = ((variances[:, None] * variances + COV**2) / n).sqrt()
    assert ((fit.root @ fit.root.T - COV).abs() < 5.0 * spread).all()
    assert ((fit.m - net.m).abs() > 0.0).all()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.zeros(0, 2), r"shape \(0, 2\)"),
        (torch.zeros(5), r"shape \(5,\)"),
        (torch.ones(5, 2), "constant"),
        (
            torch.tensor([[0.0, 1.0], [math.nan, 1.0], [2.0, math.inf]]),
            "2 rows that are not finite, the first is row 1",
        ),
        (torch.tensor([[0, 1], [2, 3]]), "int64"),
        (torch.tensor([[0.0, 1.0], [2.0, 3.0]], dtype=torch.float64), "float64 and the network torch.float32"),
    ],
)
def test_data_that_cannot_be_learned_is_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        fit_score(MLP(2, hidden=8), rows, hb.VP(), steps=1)


@pytest.mark.parametrize("change", [{"steps": 0}, {"batch_size": 0}, {"lr": 0.0}, {"clip": -1.0}, {"ema_decay": 1.0}])
def test_bad_settings_are_refused_by_name(change):
    with pytest.raises(ValueError, match="decay" if "ema_decay" in change else next(iter(change))):
        fit_score(MLP(2, hidden=8), data.moons(16, 0), hb.VP(), **{"steps": 1, **change})


def test_a_loss_that_is_not_finite_stops_training_and_says_where():
    class Breaks(MLP):
        calls = 0

        def forward(self, x, t):
            self.calls += 1
            return super().forward(x, t) * (math.nan if self.calls > 3 else 1.0)

    net = Breaks(2, hidden=8).eval()
    with pytest.raises(FloatingPointError, match="nan at step 3 of 10"):
        fit_score(net, data.moons(64, 0), hb.VP(), steps=10, batch_size=8)
    assert not net.training


def test_every_example_is_seen_once_in_each_pass():
    seen = []
    net = MLP(1, hidden=8)
    rows = torch.arange(10.0)[:, None]
    quiet = hb.LinearProcess(lambda t: torch.ones_like(t), lambda t: 1e-9 * (1.0 + t), T=1.0, t_min=1e-3)
    net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].round().int().flatten()))
    fit_score(net, rows, quiet, steps=5, batch_size=4)
    order = torch.cat(seen).tolist()
    assert sorted(order[:10]) == list(range(10))
    assert sorted(order[10:]) == list(range(10))
    assert order[:10] != order[10:]


def test_digits_are_the_1797_images_between_minus_one_and_one():
    pytest.importorskip("sklearn")
    images, labels = data.digits()
    assert images.shape == (1797, 1, 8, 8)
    assert (images.min().item(), images.max().item()) == (-1.0, 1.0)
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert images.dtype == torch.float32


def test_digits_without_scikit_learn_name_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"halfbridge\[demo\]"):
        data.digits()


def test_noiseless_moons_lie_on_their_two_half_circles():
    points = data.moons(400, seed=3, noise=0.0, dtype=torch.float64)
    upper = (points - torch.tensor([-0.5, -0.25])).norm(dim=1).sub(1.0).abs() < 1e-12
    lower = (points - torch.tensor([0.5, 0.25])).norm(dim=1).sub(1.0).abs() < 1e-12
    assert bool((upper | lower).all())
    assert abs(int(upper.sum()) - 200) < 5.5 * math.sqrt(400 * 0.25)
    assert bool((points[upper, 1] >= -0.25).all())
    assert bool((points[lower, 1] <= 0.25).all())
    assert torch.equal(points, data.moons(400, seed=3, noise=0.0, dtype=torch.float64))


def test_the_ring_has_the_covariance_of_its_circle():
    law = data.ring(6, radius=3.0, std=0.5)
    torch.testing.assert_close(law.mean, torch.zeros(2, dtype=torch.float64), rtol=0.0, atol=1e-14)
    torch.testing.assert_close(law.cov, (9.0 / 2 + 0.25) * torch.eye(2, dtype=torch.float64), rtol=1e-13, atol=1e-13)


def test_losses_of_half_states_are_formed_in_float32():
    x0, z = (v.bfloat16() for v in exact_sample())
    t, process = some_times(hb.VP(), len(x0)), hb.VP()
    given = []

    def net(x, label):
        given.append(x)
        return torch.zeros_like(x)

    for predicts in PREDICTS:
        loss = denoising_loss(net, process, x0, t, z, predicts=predicts)
        assert given[-1].dtype == torch.bfloat16
        assert loss.dtype == torch.float32
        exact = denoising_loss(
            lambda x, label: torch.zeros_like(x), process, x0.double(), t, z.double(), predicts=predicts
        )
        torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-7)


def test_a_bfloat16_network_learns_bfloat16_data():
    torch.manual_seed(0)
    net, x = MLP(2, hidden=32, depth=1).bfloat16(), data.moons(512, seed=0).bfloat16()
    fit = fit_score(net, x, hb.VP(), steps=150, lr=3e-3)
    assert fit.losses[-50:].mean() < 0.7 * fit.losses[:10].mean()
    assert fit.field.noise(0.5, x).dtype == torch.bfloat16


def test_training_on_the_cpu_does_not_depend_on_the_default_device():
    def fit():
        x = data.moons(64, seed=0)
        with torch.device("cpu"):
            torch.manual_seed(0)
            net = MLP(2, hidden=8, depth=1)
        return fit_score(net, x, hb.VP(), steps=3)

    expected, law, digits = fit(), data.ring().sample(5, seed=0), data.digits()
    with torch.device("meta"):
        got, law_there, digits_there = fit(), data.ring().sample(5, seed=0), data.digits()
    assert torch.equal(got.losses, expected.losses)
    assert torch.equal(law, law_there)
    assert torch.equal(digits.images, digits_there.images)
    assert torch.equal(digits.labels, digits_there.labels)
    x = torch.ones(2, 2)
    assert torch.equal(got.field.evaluate(0.5, x), expected.field.evaluate(0.5, x))
