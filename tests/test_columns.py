"""The four columns of Karras et al. 2022, table 1, coefficient by coefficient."""

import mpmath
import pytest
import torch

import halfbridge as hb
from halfbridge.nets.columns import COLUMNS, iddpm_levels
from halfbridge.nets.precondition import Precondition

LEVELS = [10.0 ** (k / 7) for k in range(-42, 29)]  # 1e-6 .. 1e4


def paper_levels(M=1000, c1="0.001", c2="0.008"):
    """u_0 .. u_{M-1}, by the recursion as the paper prints it, in 40 digits."""
    c1, c2 = mpmath.mpf(c1), mpmath.mpf(c2)

    def abar(j):
        return mpmath.sin(mpmath.pi / 2 * j / (M * (c2 + 1))) ** 2

    u = [mpmath.mpf(0)]
    for j in range(M, 0, -1):
        u.append(mpmath.sqrt((u[-1] ** 2 + 1) / max(abar(j - 1) / abar(j), c1) - 1))
    return u[:0:-1]


def paper(kind, nu, d=0.5):
    """c_skip, c_out, c_in, c_noise by the table's own letters."""
    n, d = mpmath.mpf(nu), mpmath.mpf(d)
    root = mpmath.sqrt(n**2 + 1)
    if kind == "vp":
        beta_d, beta_min = mpmath.mpf(20) - mpmath.mpf(0.1), mpmath.mpf(0.1)
        time = (mpmath.sqrt(beta_min**2 + 2 * beta_d * mpmath.log(1 + n**2)) - beta_min) / beta_d
        return 1, -n, 1 / root, 999 * time
    if kind == "ve":
        return 1, n, 1, mpmath.log(n / 2)
    if kind == "iddpm":
        distances = [abs(u - n) for u in LEVELS_OF_PAPER]
        return 1, -n, 1 / root, 999 - distances.index(min(distances))
    total = n**2 + d**2
    return d**2 / total, n * d / mpmath.sqrt(total), 1 / mpmath.sqrt(total), mpmath.log(n) / 4


with mpmath.workdps(40):
    LEVELS_OF_PAPER = paper_levels()


@pytest.mark.parametrize("kind", COLUMNS)
def test_every_coefficient_is_the_papers_to_1e_13(kind):
    found = Precondition(torch.nn.Identity(), kind).scalings(torch.tensor(LEVELS, dtype=torch.float64))
    with mpmath.workdps(40):
        for k, nu in enumerate(LEVELS):
            for ours, exact in zip(found, paper(kind, nu), strict=True):
                assert ours.dtype == torch.float64
                assert abs(mpmath.mpf(ours[k].item()) - exact) <= 1e-13 * abs(exact) + 1e-16


def test_other_constants_are_the_papers_too():
    nu = torch.tensor([0.01, 0.7, 3.0, 60.0], dtype=torch.float64)
    assert torch.allclose(
        Precondition(torch.nn.Identity(), "vp", beta_min=0.3, beta_max=7.0, steps=11).scalings(nu).label,
        10 * hb.VP(0.3, 7.0).time_at(-nu.log()),
        rtol=1e-14,
    )
    with mpmath.workdps(30):
        exact = [paper("edm", n, d=1.3) for n in nu.tolist()]
    for ours, column in zip(
        Precondition(torch.nn.Identity(), sigma_data=1.3).scalings(nu), zip(*exact, strict=True), strict=True
    ):
        assert ours.tolist() == pytest.approx([float(c) for c in column], rel=1e-14)


def test_the_levels_of_iddpm_are_the_papers_to_1e_13():
    ours = iddpm_levels()
    assert len(ours) == 1001
    assert ours[-1] == 0.0
    with mpmath.workdps(40):
        assert max(abs(a / b - 1) for a, b in zip(ours, LEVELS_OF_PAPER, strict=False)) < 1e-13
        small = paper_levels(20, "0.2", "0.1")
        assert max(abs(a / b - 1) for a, b in zip(iddpm_levels(20, 0.2, 0.1), small, strict=False)) < 1e-13
    assert ours[8] == pytest.approx(80.2, abs=0.01)  # j_0 = 8, where the paper starts sampling
    assert ours[999] == pytest.approx(0.0064, abs=1e-4)


def test_a_level_between_two_of_iddpm_has_the_label_of_the_nearer_and_no_label_is_outside():
    u, pre = iddpm_levels(), Precondition(torch.nn.Identity(), "iddpm")
    for j in (0, 1, 8, 500, 998):
        low, high = u[j + 1], u[j]
        near_high, near_low = 0.49 * low + 0.51 * high, 0.51 * low + 0.49 * high
        assert pre.scalings([high, near_high, near_low]).label.tolist() == [999 - j, 999 - j, 998 - j]
        assert pre.scalings(torch.tensor((low + high) / 2)).label.shape == ()
    assert pre.scalings([1e-9, u[999] / 3, 1e9]).label.tolist() == [0, 0, 999]


def test_the_edm_column_sees_and_predicts_unit_variance_and_leaves_the_least_to_predict():
    nu, d = torch.tensor(LEVELS, dtype=torch.float64), 0.7
    c = Precondition(torch.nn.Identity(), sigma_data=d).scalings(nu)
    assert torch.allclose(c.into**2 * (d**2 + nu**2), torch.ones_like(nu), rtol=1e-14)

    def target_variance(skip):
        """Of x_0 - c_skip (x_0 + nu n)."""
        return (1 - skip) ** 2 * d**2 + skip**2 * nu**2

    keep = 1 - c.skip
    assert torch.allclose(target_variance(c.skip), c.out**2, rtol=1e-10)
    assert (keep > 0).any()
    assert (target_variance(1.01 * c.skip) > c.out**2 * (1 - 1e-9)).all()
    assert (target_variance(0.99 * c.skip) > c.out**2 * (1 - 1e-9)).all()
