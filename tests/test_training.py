"""The trainer's promises: what it learns, the same every time, and what it refuses."""

import math

import pytest
import torch

import halfbridge as hb
from halfbridge.nets import MLP
from halfbridge.training import data, fit_score
from halfbridge.training.losses import sample_times

MEAN = torch.tensor([0.7, -0.4], dtype=torch.float64)
COV = torch.tensor([[0.9, 0.3], [0.3, 0.5]], dtype=torch.float64)
STEPS = hb.DiscreteVP([0.02 + 0.03 * k for k in range(10)])
PROCESSES = [hb.VP(), hb.SubVP(), hb.VE(), hb.EDM(), hb.OU(g=1.4), STEPS]

by_name = {"ids": lambda p: type(p).__name__}


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


def test_a_network_that_says_what_it_predicts_is_trained_as_that_and_refused_as_anything_else():
    net = hb.nets.Precondition(MLP(2, hidden=8))
    assert fit_score(net, data.moons(64, 0), hb.EDM(), steps=2, batch_size=8).field.predicts == "data"
    calls = []
    net.register_forward_pre_hook(lambda module, inputs: calls.append(1))
    for choice in ({"predicts": "noise"}, {"objective": hb.training.objectives.Denoising(hb.EDM())}):
        with pytest.raises(ValueError, match="Precondition predicts 'data'"):
            fit_score(net, data.moons(64, 0), hb.EDM(), steps=2, batch_size=8, **choice)
    assert not calls
