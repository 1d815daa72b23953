"""Objectives: what they estimate, that they can be written down, and that they do not care how a batch is cut up."""

import json

import pytest
import torch
from exact_moments import STEPS, crooked, every_time, exact_sample, quadrature
from small_training import network
from torch.utils._python_dispatch import TorchDispatchMode

import halfbridge as hb
from halfbridge.nets import MLP
from halfbridge.nets.labels import scaled, steps
from halfbridge.training import fit_score, objectives
from halfbridge.training.losses import (
    Discretised,
    EDMWeight,
    IDDPMLevels,
    LearnedSchedule,
    LogNormal,
    LogUniform,
    MinSNR,
    VPLevels,
    ddpm_elbo,
    denoising_loss,
    prior_kl,
    reconstruction,
    vdm_discrete_loss,
    vdm_loss,
)
from halfbridge.training.noise import StepNoise

VP = hb.VP()
LEVELS = Discretised(5)
MADE = {
    "denoising": (VP, {"weighting": MinSNR(3.0), "times": "likelihood", "predicts": "velocity"}),
    "denoising-edm": (hb.EDM(), {"weighting": EDMWeight(0.7), "times": LogNormal(0.0, 2.0)}),
    "denoising-integral": (VP, {"weighting": "likelihood", "integral": True}),
    "ddpm": (STEPS, {"predicts": "data"}),
    "ddpm_elbo": (STEPS, {"variance": "transition", "times": "likelihood"}),
    "ddpm_elbo-given": (STEPS, {"variance": [0.1] * 10}),
    "ddpm_elbo-learned": (STEPS, {"learned": True, "levels": LEVELS}),
    "hybrid": (STEPS, {"vlb_weight": 0.01, "levels": LEVELS}),
    "vdm": (VP, {"times": "likelihood", "levels": LEVELS}),
    "vdm-learned": (None, {"schedule": {"gamma_0": -5.0, "gamma_1": 4.0, "hidden": 8}, "interior": "bound"}),
    "vdm_discrete": (VP, {"steps": 7}),
    "vdm_discrete-learned": (None, {"steps": 7, "schedule": LearnedSchedule(-5.0, 4.0, hidden=8)}),
    "edm": (None, {"sigma_data": 0.7, "times": {"type": "log_normal", "mean": -0.4, "std": 1.0}}),
    "edm-vp": (hb.EDM(), {"kind": "vp", "predicts": "noise"}),
    "ncsn": (None, {"levels": [2.0, 0.5, 0.1], "labels": "index"}),
    "implicit": (VP, {"weighting": MinSNR(3.0), "divergence": "hutchinson", "kind": "gaussian"}),
    "sliced": (VP, {"times": "likelihood", "labels": scaled(999.0)}),
    "high_order": (hb.EDM(), {"times": LogNormal(0.0, 2.0), "lambda2": 0.0}),
    "denoising-labels": (VP, {"labels": hb.OU().half_log_snr}),
    "ddpm-labels": (STEPS, {"labels": scaled(0.1)}),
    "hybrid-labels": (STEPS, {"labels": steps(STEPS, 20)}),
    "vdm-labels": (VP, {"labels": VP.half_log_snr}),
    "edm-labels": (hb.EDM(), {"labels": hb.EDM().half_log_snr}),
}
FALLING = ("vdm-learned", "vdm_discrete-learned", "ncsn", "denoising-labels", "vdm-labels", "edm-labels")
"""Whose labels fall as t rises."""
each = pytest.mark.parametrize("case", MADE)


def made(case):
    process, options = MADE[case]
    return objectives.make(case.split("-")[0], process, **options)


def states(n):
    """Data on five levels."""
    return (2.0 * exact_sample(n)[0]).round().clamp(-2, 2) / 2.0


def net_of(case):
    doubled = case.startswith("hybrid") or (case.endswith("learned") and case.startswith("ddpm"))
    base = lambda x, t: crooked(x, t) + 0.1 * t[:, None]  # noqa: E731
    return (lambda x, t: torch.cat([base(x, t), 0.2 * x], dim=1)) if doubled else base


class Given:
    """Noise with these numbers."""

    def __init__(self, u, z):
        self.u, self.z = u, z

    def uniform(self):
        return self.u

    def normal(self, draw=0):
        return self.z


@each
def test_an_objective_made_from_its_config_gives_the_same_bits(case):
    first = made(case)
    config = json.loads(json.dumps(first.config))
    assert config == first.config
    kind = config.pop("type")
    assert kind == case.split("-")[0]
    learned = config.get("schedule") is not None
    second = objectives.make(kind, None if learned else first.process, **config)
    x0 = states(6)
    noise = StepNoise(1, 2, 6, x0)
    assert torch.equal(first(net_of(case), x0, noise), second(net_of(case), x0, noise))
    assert second.config == first.config
    if not isinstance(first, torch.nn.Module) and not hasattr(first.labels, "__self__"):  # two methods of equals differ
        assert second == first


@each
def test_parts_of_a_batch_have_the_losses_of_the_whole(case):
    objective, x0 = made(case), states(6)
    whole = objective(net_of(case), x0, StepNoise(1, 2, 6, x0))
    assert whole.shape == (6,)
    parts = [objective(net_of(case), x0[a:b], StepNoise(1, 2, 6, x0[a:b], first=a)) for a, b in ((0, 1), (1, 6))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-12)
    halves = objective(net_of(case), x0.float(), StepNoise(1, 2, 6, x0.float()))
    assert halves.dtype == torch.float32


@each
def test_the_field_tells_the_network_the_labels_of_training_and_predicts_the_same(case):
    objective, seen = made(case), []

    def net(x, label):
        seen.append(label)
        return net_of(case)(x, label)

    x0 = states(3)
    objective(net, x0, StepNoise(0, 0, 3, x0))
    trained = seen[-1].detach()
    assert case != "ncsn" or torch.equal(trained, trained.round())  # indices, not levels
    field = objective.field(net)
    assert field.predicts == objective.predicts
    process = objective.process
    assert type(field.process) is type(process)
    times = torch.linspace(process.t_min, process.T, 4001, dtype=torch.float64)
    if isinstance(process, hb.DiscreteVP):
        times = torch.arange(1.0, process.T + 1.0, dtype=torch.float64)
    labels = []
    for t in times[:: max(1, len(times) // 40)].tolist():
        field(t, x0)
        labels.append(seen[-1][0].item())
    margin = 0.05 * (max(labels) - min(labels))
    if case not in ("denoising-edm", "edm", "edm-vp", "edm-labels", "high_order"):  # whose levels have no ends
        assert min(labels) - margin <= trained.min().item()
        assert trained.max().item() <= max(labels) + margin
    assert (labels[0] < labels[-1]) == (case not in FALLING)


class Reads(TorchDispatchMode):
    """Counts the numbers that the host asks tensors for: on a GPU it waits for each."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.count, tolist = 0, torch.Tensor.tolist
        monkeypatch.setattr(torch.Tensor, "tolist", lambda x: (setattr(self, "count", self.count + 1), tolist(x))[1])

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.count += "_local_scalar_dense" in str(function)
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize(
    "objective",
    [objectives.Denoising(VP), objectives.DDPMBound(STEPS, times="likelihood"), objectives.Hybrid(STEPS)],
    ids=lambda o: type(o).__name__,
)
def test_a_step_looks_at_its_times_once(monkeypatch, objective):
    x0 = states(8)
    noise = Given(StepNoise(0, 0, 8, x0).uniform(), x0.flip(0))
    net = net_of("hybrid" if isinstance(objective, objectives.Hybrid) else "ddpm")
    with Reads(monkeypatch) as reads:
        objective(net, x0, noise)
    assert reads.count == 1


def over(objective, net, x0, z, u, weights):
    """The weighted mean of an objective over u, for each row of (x0, z)."""
    x, v, noise = every_time(u, x0, z)
    with torch.no_grad():
        losses = objective(net, x, Given(v, noise)).view(len(u), -1)
    return (weights[:, None] * losses).sum(dim=0)


def cells(n):
    """The middles of n cells of u, each as likely."""
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n, torch.full((n,), 1.0 / n, dtype=torch.float64)


def test_ddpms_bound_is_the_sum_of_its_terms_over_d():
    x0, z = exact_sample(6)
    steps = torch.arange(1.0, 11.0, dtype=torch.float64)
    terms = sum(ddpm_elbo(crooked, STEPS, x0, i.expand(6), z) for i in steps)
    got = over(objectives.DDPMBound(STEPS), crooked, x0, z, *cells(10))
    torch.testing.assert_close(got, (prior_kl(STEPS, x0) + terms) / 2.0, rtol=1e-10, atol=0.0)
    by_importance = over(objectives.DDPMBound(STEPS, times="likelihood"), crooked, x0, z, *cells(20_000))
    torch.testing.assert_close(by_importance, got, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("times", ["uniform", "likelihood"])
def test_vdms_bound_is_its_integral_and_both_ends_over_d(times):
    process = hb.OU(g=1.4)
    x0, z = exact_sample(6)
    got = over(objectives.VDM(process, times=times), crooked, x0, z, *quadrature(400 if times == "uniform" else 60))
    span = process.T - process.t_min
    v, weights = quadrature(300)
    x, t, noise = every_time(process.t_min + span * v**4, x0, z)
    losses = vdm_loss(crooked, process, x, t, noise).view(300, 6)
    total = (4.0 * v**3 * weights * span)[:, None].mul(losses).sum(dim=0)
    expected = (prior_kl(process, x0) + reconstruction(process, x0) + total) / 2.0
    torch.testing.assert_close(got, expected, rtol=2e-3 if times == "uniform" else 1e-7, atol=0.0)


def test_vdms_discrete_bound_is_the_sum_of_its_steps_and_both_ends_over_d():
    x0, z = exact_sample(6)
    total = sum(vdm_discrete_loss(crooked, VP, x0, torch.full((6,), i).double(), z, steps=5) for i in range(1, 6))
    got = over(objectives.VDMDiscrete(VP, steps=5), crooked, x0, z, *cells(5))
    expected = (prior_kl(VP, x0) + reconstruction(VP, x0) + total) / 2.0
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=0.0)


def test_importance_sampled_denoising_has_the_mean_of_uniform_times_and_the_integral_is_span_times_it():
    x0, z = exact_sample(6)
    process, u = hb.OU(g=1.4), quadrature(300)[0]

    def mean(**options):
        return over(objectives.Denoising(process, **options), crooked, x0, z, *quadrature(300))

    plain = mean()
    torch.testing.assert_close(mean(times="likelihood"), plain, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(mean(integral=True), (process.T - process.t_min) * plain, rtol=1e-12, atol=0.0)
    one = objectives.Denoising(process)(crooked, x0, Given(u[:6], z))
    assert torch.equal(
        one, denoising_loss(crooked, process, x0, process.t_min + u[:6] * (process.T - process.t_min), z)
    )


@pytest.mark.parametrize("case", ["vdm-learned", "vdm_discrete-learned"])
def test_a_learned_schedule_is_trained_and_kept_by_its_state(case):
    objective, x0 = made(case), states(8)
    config = objective.config
    objective(net_of(case), x0, StepNoise(0, 0, 8, x0)).mean().backward()
    for name, p in objective.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all() and p.grad.any(), name  # noqa: PT018
    torch.optim.Adam(objective.parameters(), lr=0.1).step()
    assert objective.config == config  # what a run goes on with: the arguments as they were given
    assert config["schedule"] == {"gamma_0": -5.0, "gamma_1": 4.0, "hidden": 8, "ends": True}
    again = objectives.make(config.pop("type"), None, **config)
    assert again.process.sigma(0.5) != objective.process.sigma(0.5)
    again.load_state_dict(objective.state_dict())
    for t in (1e-3, 0.5, 1.0):
        assert again.process.sigma(t) == objective.process.sigma(t)


def test_a_run_with_a_learned_schedule_resumes_with_the_same_call(tmp_path):
    objective = objectives.VDM(schedule=LearnedSchedule(-5.0, 4.0, hidden=4))
    options = {"objective": objective, "out": tmp_path, "batch_size": 8, "save_every": 1}
    fit_score(network(), states(16), steps=1, **options)
    assert objective.schedule.gamma_0.item() != -5.0
    assert fit_score(network(), states(16), steps=2, resume=True, **options).step == 2


def test_options_of_an_objective_do_not_change_what_equals_it():
    """A tensor of variances is kept as numbers, that can be compared and hashed."""
    one, other = (objectives.DDPMBound(STEPS, variance=torch.full((10,), v)) for v in (0.1, 0.2))
    again = objectives.DDPMBound(STEPS, variance=[0.1] * 10)
    assert (one == objectives.DDPMBound(STEPS, variance=torch.full((10,), 0.1)), one == other) == (True, False)
    assert hash(again) == hash(objectives.DDPMBound(STEPS, variance=(0.1,) * 10))


@each
def test_a_batch_of_no_rows_has_no_losses(case):
    x0 = states(6)[:0]
    assert made(case)(net_of(case), x0, StepNoise(0, 0, 6, x0)).shape == (0,)


@pytest.mark.parametrize(
    "levels", [LogNormal(), LogUniform(), LogUniform(1e-3, 2.0), VPLevels(), IDDPMLevels()], ids=repr
)
@pytest.mark.parametrize("process", [STEPS, LearnedSchedule(-3.0, 3.0, hidden=4).process()], ids=["steps", "learned"])
def test_levels_that_a_process_does_not_have_are_refused_when_an_objective_is_made(process, levels):
    """Not at the step that draws one: 9e-8 of the samples of a log-normal law are past T on the chain of DDPM."""
    for name in ("denoising", "edm", "sliced"):
        with pytest.raises(
            ValueError, match=r"times = .* draws noise levels that are not in .*pass times = 'half_log_snr'"
        ):
            objectives.make(name, process, times=levels)
    kept = LogUniform(0.5, 0.8)  # within both
    for name in ("denoising", "edm", "sliced"):
        assert objectives.make(name, process, times=kept).times == kept


def test_every_named_law_of_times_is_kept_on_processes_whose_noise_has_no_end():
    for process in (VP, hb.SubVP(), hb.EDM(), hb.VE(), hb.OU()):
        for name in ("uniform", "likelihood", "half_log_snr", "log_normal"):
            objectives.Denoising(process, times=name)
        for kind in ("edm", "vp", "ve", "iddpm"):
            objectives.EDMDenoising(process, kind=kind)


@pytest.mark.parametrize("name", objectives.NAMES)
@pytest.mark.parametrize("process", ["vp", hb.VP, 3.0])
def test_what_is_no_process_is_refused_when_an_objective_is_made(name, process):
    with pytest.raises(
        TypeError, match=r"process = 'vp' is a str|process is the class VP; pass an inst|process = 3\.0 is a float"
    ):
        objectives.make(name, process)


@pytest.mark.parametrize("case", [case for case in MADE if "-" not in case])
def test_labels_that_are_no_function_are_refused_when_an_objective_is_made(case):
    process, options = MADE[case]
    for labels, error, message in (
        (3.0, TypeError, r"labels = 3\.0 is a float; pass a function of t"),
        ({"type": "step", "n": 3}, ValueError, "type = 'step' is unknown; did you mean 'steps'"),
        ({"type": "scaled", "factr": 3.0}, ValueError, "'scaled' has no 'factr'; did you mean 'factor'"),
        ({"type": "steps"}, ValueError, "'steps' lacks 'n'"),
    ):
        with pytest.raises(error, match=message):
            objectives.make(case, process, **{**options, "labels": labels})
    if case != "ncsn":
        with pytest.raises(
            TypeError, match=r"labels = 'half_log_snr' is a str; pass a function of t such as process\.half_"
        ):
            objectives.make(case, process, **{**options, "labels": "half_log_snr"})


def test_a_chain_has_no_bound_in_continuous_time():
    """Its steps sum to another number than the integral: 22 % off for 1000 steps, below the entropy for 20."""
    with pytest.raises(ValueError, match="'vdm_discrete' with steps = 9, or 'ddpm_elbo'"):
        objectives.VDM(STEPS)
    x0, z = exact_sample(6)
    bounds = [objectives.VDMDiscrete(STEPS, steps=9), objectives.DDPMBound(STEPS)]
    discrete, chain = (over(o, crooked, x0, z, *cells(n)) for o, n in zip(bounds, (9, 10), strict=True))
    first = (ddpm_elbo(crooked, STEPS, x0, torch.ones(6).double(), z) - reconstruction(STEPS, x0)) / 2.0
    torch.testing.assert_close(discrete + first, chain, rtol=1e-10, atol=0.0)


def test_a_network_trains_on_the_bound_with_a_learned_schedule():
    """On two points the bound falls, and the schedule ends with less noise."""
    torch.manual_seed(0)
    net = MLP(2, hidden=32, depth=1)
    objective = objectives.VDM(schedule={"gamma_0": -4.0, "gamma_1": 4.0, "hidden": 16})
    optimizer = torch.optim.Adam([*net.parameters(), *objective.parameters()], lr=5e-3)
    points = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]).repeat(64, 1)
    found = []
    for step in range(120):
        loss = objective(net, points, StepNoise(0, step, 128, points)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert sum(found[-40:]) / 40 < 0.8 * sum(found[:10]) / 10
    assert objective.schedule.gamma_0.item() < -4.05  # points want less noise at the end


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: objectives.make("denosing", VP), "'denosing'.*did you mean 'denoising'"),
        (lambda: objectives.make("denoising"), "'denoising' needs a process"),
        (lambda: objectives.make("denoising", VP, weigting="simple"), "no option 'weigting'; did you mean 'weighting'"),
        (lambda: objectives.make("denoising", VP, weighting="likelyhood"), "'likelyhood'.*did you mean 'likelihood'"),
        (lambda: objectives.make("denoising", VP, weighting={"type": "min_srn"}), "'min_srn'.*did you mean 'min_snr'"),
        (lambda: objectives.make("denoising", VP, weighting={"type": "min_snr", "g": 1}), "'min_snr' has no 'g'; there are 'gamma'"),
        (lambda: objectives.make("denoising", VP, times="half_log_snr", integral=True), "integral = True"),
        (lambda: objectives.make("denoising", VP, predicts="noice"), "'noice'.*did you mean 'noise'"),
        (lambda: objectives.Denoising(VP, weighting=torch.ones_like).config, "weighting = .* cannot be written down"),
        (lambda: objectives.Denoising(VP, labels=torch.log).config, "labels = .* cannot be written down"),
        (lambda: objectives.make("ddpm", VP), "has no steps; pass hb.DiscreteVP"),
        (lambda: objectives.make("ddpm_elbo", STEPS, times="half_log_snr"), "times = 'half_log_snr' is unknown; there are 'uniform', 'likelihood'"),
        (lambda: objectives.make("ddpm_elbo", STEPS, times="uniforn"), "did you mean 'uniform'"),
        (lambda: objectives.make("ddpm_elbo", STEPS, variance="posteriour"), "did you mean 'posterior'"),
        (lambda: objectives.make("hybrid", STEPS, vlb_weight=0.0), "vlb_weight = 0.0"),
        (lambda: objectives.make("hybrid", STEPS, vlb_weight=float("inf")), "vlb_weight = inf must be finite"),
        (lambda: objectives.make("vdm"), "pass a process, or a LearnedSchedule"),
        (lambda: objectives.make("vdm", VP, schedule={}), "pass a process, or a LearnedSchedule"),
        (lambda: objectives.make("vdm", None, schedule={}, times="likelihood"), "a learned schedule finds its own"),
        (lambda: objectives.make("vdm", VP, interior="x"), "interior = 'x' is unknown; there are 'variance', 'bound'"),
        (lambda: objectives.make("vdm", None, schedule={}, interior="varience"), "did you mean 'variance'"),
        (lambda: objectives.make("vdm_discrete", VP, steps=0), "steps = 0"),
        (lambda: objectives.make("edm", kind="edn"), "kind = 'edn' is unknown; did you mean 'edm'"),
        (lambda: objectives.make("edm", kind="idpm"), "did you mean 'iddpm'"),
        (lambda: objectives.make("edm", kind="vp", sigma_data=0.5), "sigma_data = 0.5 is not in the loss of kind = 'vp'"),
        (lambda: objectives.make("edm", times="uniform"), "times = 'uniform' must be a law of levels"),
    ],
)  # fmt: skip
def test_bad_objectives_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
