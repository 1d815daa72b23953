"""NCSN: the ladder of levels, the loss over it, and Langevin sampling down it."""

import math

import pytest
import torch
from exact_moments import COV, LAW, PROBE, crooked, exact_sample, minimiser

import halfbridge as hb
from halfbridge.training.losses import LevelLabels, geometric_levels, level_times, ncsn_loss
from halfbridge.training.objectives import NCSN

LEVELS = geometric_levels(3.0, 0.05, 6)
ALL = torch.arange(1.0, 7.0, dtype=torch.float64)
PROCESSES = [hb.EDM(0.05, 3.0), hb.VE(0.01, 10.0), hb.Brownian(2.0, T=3.0)]
each = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)


def test_levels_fall_by_one_ratio_from_the_largest_to_the_smallest():
    assert (LEVELS[0].item(), LEVELS[-1].item()) == (3.0, 0.05)
    ratios = LEVELS[1:] / LEVELS[:-1]
    torch.testing.assert_close(ratios, torch.full((5,), (0.05 / 3.0) ** 0.2, dtype=torch.float64), rtol=1e-13, atol=0.0)


@each
def test_the_loss_is_that_of_the_paper_at_each_level(process):
    x0, z = exact_sample(6)
    got = ncsn_loss(crooked, process, LEVELS, x0, ALL, z)
    sigma = LEVELS[:, None]
    expected = (sigma**2 * (crooked(x0 + sigma * z, None) + z / sigma).square()).mean(dim=1)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=0.0)


@each
def test_the_minimiser_at_each_level_is_the_score_of_the_blurred_data(process):
    x0, z = exact_sample()
    for i, sigma in zip(ALL, LEVELS.tolist(), strict=True):
        found = minimiser(lambda net, i=i: ncsn_loss(net, process, LEVELS, x0, i.expand(len(x0)), z).mean())
        blurred = COV + sigma**2 * torch.eye(2, dtype=torch.float64)
        exact = torch.linalg.solve(blurred, (LAW.mean - PROBE).T).T
        torch.testing.assert_close(found, exact, rtol=1e-8, atol=1e-8)


def test_networks_are_told_the_level_or_its_index():
    seen = []

    def net(x, label):
        seen.append(label)
        return x

    x0, z = exact_sample(6)
    ncsn_loss(net, PROCESSES[0], LEVELS, x0, ALL, z)
    torch.testing.assert_close(seen[0], LEVELS, rtol=1e-14, atol=0.0)
    for process in PROCESSES:
        ncsn_loss(net, process, LEVELS, x0, ALL, z, labels=LevelLabels(process, tuple(LEVELS.tolist())))
        assert torch.equal(seen[-1], ALL - 1.0)
    nearest = LevelLabels(PROCESSES[0], (1.0, 0.1))
    assert (nearest(0.33), nearest(0.31), nearest(3.0), nearest(0.033)) == (0.0, 1.0, 0.0, 1.0)


@pytest.mark.parametrize("t", [0.0, 1e-6, 0.002, 3.3, 50.0, torch.tensor([0.5, 50.0])], ids=str)
def test_a_noise_beyond_the_ladder_has_no_index(t):
    with pytest.raises(ValueError, match=r"is near none of the levels 1 \.\. 0\.01; sample on a grid between these"):
        LevelLabels(hb.EDM(0.001, 80.0), (1.0, 0.1, 0.01))(t)


def test_one_level_has_its_index_and_nothing_else():
    only = LevelLabels(hb.EDM(), (0.5,))
    assert only(0.5) == 0.0
    with pytest.raises(ValueError, match="is near none of the levels"):
        only(0.51)


def test_langevin_down_the_ladder_ends_near_the_data():
    """With the exact score, 60 corrections at each level: moments of the data blurred by the last level, at five standard errors
    of 2048 samples, and 4 % for the step's own bias."""
    objective = NCSN(levels=LEVELS)
    exact = LAW.field(objective.process, "score")
    field = objective.field(lambda x, t: exact(t[0].item(), x).score)
    x = hb.sample(field, hb.DDIM(), grid=objective.times[:2].tolist(), shape=(2048, 2), seed=0, dtype=torch.float64)
    for k in range(1, len(LEVELS)):
        sigma = LEVELS[k].item()
        blur = LAW.at(objective.process, sigma).eigenvalues[0].item()
        corrector = hb.Langevin(step_size=0.04 * blur)
        grid = [sigma * (1.0 + 1e-9 * (60 - j)) for j in range(60)] + [sigma]
        x = hb.solve(field, corrector, x, grid=grid, seed=k).x
    n = len(x)
    total = COV + 0.05**2 * torch.eye(2, dtype=torch.float64)
    assert ((x.mean(dim=0) - LAW.mean).abs() < 5.0 * (total.diagonal() / n).sqrt() + 0.04).all()
    spread = torch.cov(x.T) - total
    assert (spread.abs() < 5.0 * total.max() * math.sqrt(2.0 / n) + 0.04 * total.max()).all()


def test_the_default_is_the_papers_ladder_and_its_process_starts_there():
    objective = NCSN()
    assert objective.levels == pytest.approx(geometric_levels(1.0, 0.01, 10).tolist())
    assert (objective.process.t_min, objective.process.T) == (0.01, 1.0)
    assert objective.process.prior_std == 1.0
    torch.testing.assert_close(objective.times, torch.tensor(objective.levels, dtype=torch.float64))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: geometric_levels(1.0, 2.0, 4), r"sigma_max = 1\.0 must be finite and above sigma_min = 2\.0"),
        (lambda: geometric_levels(2.0, 1.0, 1), "n = 1 must be an int of at least 2"),
        (lambda: level_times(hb.EDM(), [0.1, 1.0]), r"levels must decrease, but levels\[0\] = 0.1 and levels\[1\] = 1"),
        (lambda: level_times(hb.EDM(), [1.0, -1.0]), "must be positive finite"),
        (lambda: level_times(hb.VP(), [1.0, 0.1]), "scales the data; pass one with alpha = 1"),
        (lambda: level_times(hb.EDM(0.1, 2.0), [3.0, 0.1]), "levels start at 3, above 2"),
        (lambda: ncsn_loss(crooked, hb.EDM(), LEVELS, PROBE[:1], ALL[:1] + 6.0, PROBE[:1]), "i holds 7, but the levels are numbered 1 .. 6"),
        (lambda: NCSN(labels="level"), "labels = 'level' is no known name.*there are 'index'"),
        (lambda: NCSN(labels="indx"), "did you mean 'index'"),
    ],
)  # fmt: skip
def test_bad_ladders_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
