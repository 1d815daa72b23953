"""EDM's loss: the output of its network, the columns of its table, and minimisers."""

import math
from types import SimpleNamespace

import pytest
import torch
from exact_moments import (
    COV,
    LAW,
    PREDICTS,
    PROBE,
    PROCESSES,
    by_name,
    converted,
    crooked,
    exact_sample,
    minimiser,
    some_times,
)

import halfbridge as hb
from halfbridge.kernels.edm_precondition import edm_precondition
from halfbridge.nets.precondition import Precondition
from halfbridge.training.losses import EDM_COLUMNS, denoising_loss, edm_loss, noise_weight, sample_times
from halfbridge.training.objectives import EDMDenoising

WIDTH = 0.8


def scalings(nu):
    root = torch.sqrt(nu**2 + WIDTH**2)
    return (WIDTH / root) ** 2, nu * WIDTH / root, 1.0 / root, nu.log() / 4.0


def test_the_loss_is_the_squared_error_of_the_networks_own_output():
    """|F - (x0 - c_skip x)/c_out|^2/d for D = c_skip x + c_out F: Karras et al. 2022, eq. 8 with the weight 1/c_out^2."""
    process, (x0, z) = hb.EDM(), exact_sample(12)
    nu = torch.logspace(-2.0, 1.5, 12, dtype=torch.float64)
    inner = lambda y, label: torch.sin(3.0 * y) + label[:, None]  # noqa: E731
    got = edm_loss(lambda x, t: edm_precondition(inner, x, t, WIDTH), process, x0, nu, z, sigma_data=WIDTH)
    skip, out, into, label = (c[:, None] for c in scalings(nu))
    x = x0 + nu[:, None] * z
    expected = (inner(into * x, label[:, 0]) - (x0 - skip * x) / out).square().mean(dim=1)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=0.0)


@pytest.mark.parametrize("nu", [0.01, 0.5, 40.0])
def test_a_network_that_returns_nothing_has_the_loss_one_at_every_level(nu):
    """On data of mean 0 and standard deviation sigma_data: the target of F has unit variance at every level."""
    zero = torch.zeros(2, dtype=torch.float64)
    x0, z = exact_sample(32, zero, WIDTH**2 * torch.eye(2, dtype=torch.float64))
    net = lambda x, t: edm_precondition(lambda y, _: torch.zeros_like(y), x, t, WIDTH)  # noqa: E731
    loss = edm_loss(net, hb.EDM(), x0, torch.full((32,), nu, dtype=torch.float64), z, sigma_data=WIDTH)
    assert loss.mean().item() == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize("process", PROCESSES, **by_name)
def test_the_affine_minimiser_is_the_exact_denoiser_and_the_least_loss_the_posterior_variance(process):
    x0, z = exact_sample()
    exact = LAW.field(process)
    for t in some_times(process, 3).tolist():
        times = torch.full((len(x0),), t, dtype=torch.float64)
        found = minimiser(lambda net, s=times: edm_loss(net, process, x0, s, z, sigma_data=WIDTH).mean())
        torch.testing.assert_close(found, exact.data(t, PROBE), rtol=1e-7, atol=1e-7)
        nu2 = process.nu(t) ** 2
        c = torch.linalg.eigvalsh(COV)
        least = (nu2 + WIDTH**2) / (nu2 * WIDTH**2) * (c * nu2 / (c + nu2)).mean().item()
        loss = edm_loss(lambda x, _, t=t: exact.data(t, x), process, x0, times, z, sigma_data=WIDTH).mean().item()
        assert loss == pytest.approx(least, rel=1e-7)


@pytest.mark.parametrize("predicts", PREDICTS[1:])
def test_one_belief_has_one_loss_however_it_is_stated(predicts):
    process, (x0, z) = hb.VP(), exact_sample()
    t = some_times(process, len(x0))
    expected = edm_loss(crooked, process, x0, t, z, predicts="noise")
    got = edm_loss(converted(crooked, process, predicts), process, x0, t, z, predicts=predicts)
    torch.testing.assert_close(got, expected, rtol=1e-7, atol=0.0)


@pytest.mark.parametrize("kind", EDM_COLUMNS)
def test_columns_weigh_the_error_of_the_data_as_the_table_says(kind):
    process, (x0, z) = hb.EDM(), exact_sample(9)
    law, weighting = EDM_COLUMNS[kind]
    u = (torch.arange(9, dtype=torch.float64) + 0.5) / 9
    nu = sample_times(process, u, law)
    net = lambda x, t: 0.3 * x + t[:, None]  # noqa: E731
    error = (net(x0 + nu[:, None] * z, nu) - x0).square().mean(dim=1)
    weight = (nu**2 + 0.25) / (0.5 * nu) ** 2 if kind == "edm" else nu**-2
    got = denoising_loss(net, process, x0, nu, z, predicts="data", weighting=weighting)
    torch.testing.assert_close(got, weight * error, rtol=1e-8, atol=0.0)
    assert noise_weight(EDMDenoising(kind=kind).weighting, process, nu).equal(noise_weight(weighting, process, nu))


@pytest.mark.parametrize("kind", EDM_COLUMNS)
def test_the_loss_of_a_preconditioned_network_is_that_of_its_output_in_every_column(kind):
    """Weight 1/c_out^2 in all four: |F - (x0 - c_skip x)/c_out|^2/d, the target (-1)^k n of VP, VE and iDDPM among them."""

    class Inner(torch.nn.Module):
        def forward(self, x, label):
            self.output = torch.cos(2.0 * x)
            return self.output

    inner = Inner()
    x0, z = exact_sample(9)
    u = (torch.arange(9, dtype=torch.float64) + 0.5) / 9
    objective = EDMDenoising(kind=kind)
    nu = sample_times(objective.process, u, EDM_COLUMNS[kind][0])[:, None]
    net = Precondition(inner, kind)
    skip, out = (
        (0.25 / (nu**2 + 0.25), 0.5 * nu / (nu**2 + 0.25).sqrt())
        if kind == "edm"
        else (1.0, nu * (1 if kind == "ve" else -1))
    )
    noise = SimpleNamespace(uniform=lambda: u, normal=lambda draw=0: z)
    loss = objective(net, x0, noise)
    expected = (inner.output - (x0 - skip * (x0 + nu * z)) / out).square().mean(dim=1)
    torch.testing.assert_close(loss, expected, rtol=1e-7, atol=0.0)


def test_the_noise_levels_of_vp_are_those_of_its_process():
    u = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    vp = hb.VP()
    expected = vp.sigma(1e-5 + (1 - 1e-5) * u) / vp.alpha(1e-5 + (1 - 1e-5) * u)
    torch.testing.assert_close(sample_times(hb.EDM(), u, EDM_COLUMNS["vp"][0]), expected, rtol=1e-10, atol=0.0)
    assert sample_times(hb.EDM(), u[2:3], EDM_COLUMNS["edm"][0]).item() == pytest.approx(math.exp(-1.2), rel=1e-9)
