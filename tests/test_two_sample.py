"""Distances between samples, against sums written out and laws whose distance is known."""

import math
import sys

import ot
import pytest
import torch

import halfbridge as hb
from halfbridge.solvers.reference import energy_distance, sliced_w2, two_sample


def gaussian(n, mean, std, seed):
    return mean + std * hb.kernels.normal((n, 3), seed, dtype=torch.float64)


def test_the_energy_distance_is_its_three_sums():
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[5.0], [6.0]])
    assert energy_distance(x, y) == pytest.approx(2 * 4.5 - 2.0 - 1.0, rel=1e-14)
    assert energy_distance(x, y, y_spread=3.0) == pytest.approx(9.0 - 2.0 - 3.0, rel=1e-14)
    assert two_sample.spread(torch.tensor([[0.0], [1.0], [3.0]])) == pytest.approx(2.0, rel=1e-14)


def test_pieces_of_the_distance_matrix_add_up_and_near_points_keep_their_digits(monkeypatch):
    x, y = gaussian(40, 0.0, 1.0, 0), gaussian(30, 0.3, 1.0, 1)
    whole, slices = energy_distance(x, y), sliced_w2(x, y)
    monkeypatch.setattr(two_sample, "ROWS", 64)
    assert energy_distance(x, y) == pytest.approx(whole, rel=1e-13)
    assert sliced_w2(x, y) == pytest.approx(slices, rel=1e-13)
    near = torch.tensor([[1e4], [1e4 + 1e-6]], dtype=torch.float64)
    assert two_sample.spread(near) == pytest.approx(1e-6, rel=1e-5)


def test_the_energy_distance_between_gaussians_on_the_line_is_the_integral_of_their_cdfs():
    """2 int (F - G)^2, by quadrature: 0.166. Mean of 30 estimates of n = 400 each, within 5 standard errors of them."""
    estimates = torch.tensor(
        [
            energy_distance(gaussian(400, 0.0, 1.0, k)[:, :1], gaussian(400, 0.5, 1.5, 1000 + k)[:, :1])
            for k in range(30)
        ]
    )
    u = torch.linspace(-12.0, 12.0, 48001, dtype=torch.float64)
    exact = 2.0 * (torch.special.ndtr(u) - torch.special.ndtr((u - 0.5) / 1.5)).square().sum().item() * 5e-4
    assert abs(estimates.mean().item() - exact) < 5 * estimates.std().item() / math.sqrt(30)
    assert exact > 15 * estimates.std().item() / math.sqrt(30)


def test_a_shift_has_the_sliced_distance_of_its_length_over_root_d():
    """u.Y = u.X + u.m exactly, so the squared distance is the mean of (u.m)^2: |m|^2 / d over all directions. The variance of
    (u.m)^2 on the sphere is 2 (d - 1) / (d^2 (d + 2)) |m|^4, and 5 standard errors of n = 4000 directions are allowed."""
    x, m = gaussian(200, 0.0, 1.0, 0), torch.tensor([1.0, -2.0, 2.0], dtype=torch.float64)
    got = sliced_w2(x, x + m, projections=4000) ** 2
    error = 5 * 9.0 * math.sqrt(2 * 2 / (9 * 5) / 4000)
    assert abs(got - 9.0 / 3) < error < 0.05 * 9.0


def test_the_mean_square_of_few_directions_keeps_the_bound_that_one_value_may_pass():
    """W2 = 3 of the shift in d = 3. Of 200 seeds of 20 directions each: some are above W2^2 / d; their mean is not, by the
    5 standard errors of 4000 directions of the test above."""
    x, m = gaussian(20, 0.0, 1.0, 0), torch.tensor([1.0, -2.0, 2.0], dtype=torch.float64)
    squares = torch.tensor([sliced_w2(x, x + m, projections=20, seed=k) ** 2 for k in range(200)])
    assert squares.max() > 1.1 * 9.0 / 3
    assert squares.mean() < 9.0 / 3 + 5 * 9.0 * math.sqrt(2 * 2 / (9 * 5) / 4000)


def test_a_single_row_has_no_spread_and_is_named():
    one, two = torch.zeros(1, 2), torch.eye(2)
    for x, y, name in ((one, two, "x"), (two, one, "y")):
        with pytest.raises(ValueError, match=f"^{name} has 1 row; .* needs at least 2"):
            energy_distance(x, y)
    assert energy_distance(two, one, y_spread=0.0) == pytest.approx(2.0 - math.sqrt(2.0), rel=1e-6)
    with pytest.raises(ValueError, match=r"^x has 0 rows; "):
        two_sample.spread(one[:0])


@pytest.mark.parametrize("n", [40, 30])
def test_a_sample_sorted_once_is_as_far_away_as_one_sorted_anew_and_as_pot_says(n):
    x, y = gaussian(n, 0.0, 1.0, 0), gaussian(30, 0.3, 1.5, 1)
    known = two_sample.sorted_projections(y, projections=60, seed=4)
    wanted = sliced_w2(x, y, projections=60, seed=4)
    assert sliced_w2(x, y, projections=60, seed=4, y_sorted=known) == wanted
    directions = hb.kernels.normal((60, 3), 4, dtype=torch.float64)
    directions /= directions.norm(dim=1, keepdim=True)
    assert wanted == pytest.approx(float(ot.sliced_wasserstein_distance(x, y, projections=directions.mT)), rel=1e-12)
    with pytest.raises(
        ValueError, match=r"y_sorted has shape \(60, 30\), and 500 projections of 30 rows are asked for"
    ):
        sliced_w2(x, y, y_sorted=known)


def test_samples_of_one_size_need_no_pot_and_others_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    x, y = gaussian(40, 0.0, 1.0, 0), gaussian(30, 0.3, 1.5, 1)
    assert sliced_w2(x[:30], y) > 0
    with pytest.raises(
        ImportError, match=r"different sizes, 40 and 30, needs POT: pip install 'halfbridge\[transport\]'"
    ):
        sliced_w2(x, y)


def test_samples_of_unlike_sizes_are_matched_by_quantiles():
    """On the line: {0, 1} against {0, 0, 1, 1} is 0; {0} against {1, 3} is sqrt((1 + 9) / 2)."""
    line = [torch.tensor(v)[:, None] for v in ([0.0, 1.0], [0.0, 0.0, 1.0, 1.0], [0.0], [1.0, 3.0])]
    assert sliced_w2(line[0], line[1]) == pytest.approx(0.0, abs=1e-12)
    assert sliced_w2(line[2], line[3]) == pytest.approx(math.sqrt(5.0), rel=1e-12)


def test_the_sliced_distance_depends_on_its_seed_only():
    x, y = gaussian(50, 0.0, 1.0, 0), gaussian(60, 0.3, 1.0, 1)
    torch.manual_seed(0)
    first = sliced_w2(x, y, seed=3)
    torch.manual_seed(1)
    assert sliced_w2(x, y, seed=3) == first != sliced_w2(x, y, seed=4)


@pytest.mark.parametrize("distance", [energy_distance, sliced_w2])
def test_unlike_or_broken_samples_are_refused(distance):
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 2\)"):
        distance(torch.zeros(2, 3), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="y has entries that are not finite"):
        distance(torch.zeros(2, 3), torch.full((2, 3), math.nan))


def test_projections_are_sorted_a_few_at_once_to_what_all_at_once_are(monkeypatch):
    y, sizes, one_by_one = gaussian(30, 0.3, 1.5, 1), [], two_sample._sorted
    wanted = two_sample.sorted_projections(y, projections=60, seed=4)
    monkeypatch.setattr(two_sample, "ROWS", 200)
    monkeypatch.setattr(
        two_sample, "_sorted", lambda rows, u: (sizes.append(len(u) * len(rows)), one_by_one(rows, u))[1]
    )
    torch.testing.assert_close(two_sample.sorted_projections(y, projections=60, seed=4), wanted, rtol=1e-12, atol=1e-12)
    assert max(sizes) == 180
