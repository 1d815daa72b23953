"""The numbers of a training step do not depend on how the batch is cut up."""

import pytest
import torch

from halfbridge.kernels import normal
from halfbridge.solvers.draws import TRAINING
from halfbridge.training.noise import StepNoise

X0 = torch.zeros(12, 3)


@pytest.mark.parametrize("step", [0, 7, 2**33])
def test_parts_of_a_batch_draw_what_the_whole_batch_draws(step):
    whole = StepNoise(5, step, 12, X0)
    parts = [StepNoise(5, step, 12, X0[a:b], first=a) for a, b in ((0, 5), (5, 6), (6, 12))]
    for draw in (0, 2):
        assert torch.equal(whole.normal(draw), torch.cat([p.normal(draw) for p in parts]))
        assert torch.equal(whole.signs(draw), torch.cat([p.signs(draw) for p in parts]))
    assert torch.equal(whole.uniform(), torch.cat([p.uniform() for p in parts]))


def test_steps_seeds_and_draws_share_nothing():
    base = StepNoise(5, 1, 12, X0)
    for other in (StepNoise(5, 2, 12, X0), StepNoise(6, 1, 12, X0)):
        assert not torch.equal(base.uniform(), other.uniform())
        assert not torch.isin(base.normal(), other.normal()).any()
    assert not torch.isin(base.normal(0), base.normal(1)).any()
    assert torch.equal(base.normal(1), normal((12, 3), 5, TRAINING + 1, 12))
    assert base.signs().unique().tolist() == [-1.0, 1.0]


def test_times_fall_one_in_each_cell_of_the_batch():
    for step in range(50):
        u = StepNoise(3, step, 12, X0).uniform()
        assert u.dtype == torch.float64
        assert sorted((u * 12).floor().int().tolist()) == list(range(12))


def test_the_place_within_a_cell_is_uniform_over_steps():
    """The mean of n = 2000 uniform numbers has the standard error 1 / sqrt(12 n) = 0.0065; 5 of them are allowed."""
    u = torch.stack([StepNoise(3, step, 1, X0[:1]).uniform() for step in range(2000)]).flatten()
    assert abs(u.mean().item() - 0.5) < 5 / (12 * 2000) ** 0.5
    assert abs((u - 0.5).square().mean().item() - 1 / 12) < 5 / (180 * 2000) ** 0.5


def test_rows_are_chosen_with_their_chance_each_by_itself():
    """Of 500 steps of 12 rows n = 6000 a share p is chosen: standard error sqrt(p (1 - p) / n), 5 of them are allowed. So is
    p^2 of the pairs of neighbours, in a batch and from step to step, with an error of at most sqrt(3 p^2 / n)."""
    p = 0.3
    chosen = torch.stack([StepNoise(3, step, 12, X0).chance(p) for step in range(500)]).double()
    assert abs(chosen.mean().item() - p) < 5 * (p * (1 - p) / 6000) ** 0.5
    for pairs in (chosen[1:] * chosen[:-1], chosen[:, 1:] * chosen[:, :-1]):
        assert abs(pairs.mean().item() - p**2) < 5 * (3 * p**2 / 6000) ** 0.5
    assert not StepNoise(3, 0, 12, X0).chance(0.0).any()
    parts = [StepNoise(3, 7, 12, X0[a:b], first=a).chance(p) for a, b in ((0, 5), (5, 12))]
    assert torch.equal(torch.cat(parts).double(), chosen[7])


def test_modules_are_seeded_by_the_seed_the_step_and_the_first_row():
    seeds = {
        StepNoise(seed, step, 12, X0[first:], first=first).module_seed()
        for seed in (0, 1)
        for step in (0, 1, 2**32)
        for first in (0, 6)
    }
    assert len(seeds) == 12
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**40
    one, two = (StepNoise(5, 3, 12, X0[6:n], first=6).module_seed() for n in (9, 12))
    assert one == two


def test_half_states_draw_float32_normals():
    assert StepNoise(0, 0, 2, X0[:2].bfloat16()).normal().dtype == torch.float32
    assert StepNoise(0, 0, 2, X0[:2].double()).normal().dtype == torch.float64


def test_rows_that_the_batch_has_not_are_refused():
    with pytest.raises(ValueError, match=r"rows 4 \.\. 15 of a batch of 12"):
        StepNoise(0, 0, 12, X0, first=4)
    with pytest.raises(ValueError, match="step = -1"):
        StepNoise(0, -1, 12, X0)
