"""Our problems in torchsde and torchdiffeq, and one Brownian motion for their solvers and ours."""

import math

import numpy as np
import pytest
import torch
import torchdiffeq
import torchsde
from cases import bounded_field

import halfbridge as hb
from halfbridge.kernels import normal
from halfbridge.solvers.brownian import BrownianPath
from halfbridge.solvers.engines import TorchsdeBrownian, TorchsdeNoise

X = normal((5, 3), 1, dtype=torch.float64)
GRID = np.linspace(0.0, 1.0, 17)  # in sixteenths, which torchsde's t + dt hits exactly
MIX = torch.tensor([[0.6, -0.2], [0.1, 0.5], [0.3, 0.3]], dtype=torch.float64)
SDES = {
    "scalar": hb.SDE(lambda t, x: -x * (1 + t), lambda t: 0.5 + t),
    "diagonal": hb.SDE(lambda t, x: torch.sin(x), lambda t, x: 0.3 * torch.cos(x) + t, "diagonal"),
    "matrix": hb.SDE(lambda t, x: torch.sin(x) + t, lambda t, x: x.abs().unsqueeze(-1) * MIX, "matrix"),
}


def channels(sde):
    return X.new_empty(5, 2 if sde.noise == "matrix" else 3)


@pytest.mark.parametrize("name", SDES)
def test_torchsdes_euler_on_our_path_is_our_euler_maruyama(name):
    sde, path = SDES[name], BrownianPath(3, 7)
    ours = hb.solve(sde, hb.EulerMaruyama(), X, grid=GRID, seed=path, save="all").trajectory
    bm = TorchsdeBrownian(path, channels(sde))
    theirs = torchsde.sdeint(sde, X, torch.tensor(GRID), bm=bm, method="euler", dt=1 / 16)
    torch.testing.assert_close(theirs, ours, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("kind", ["interval", "tree", "path"])
def test_our_euler_maruyama_on_torchsdes_brownian_is_their_euler(name, kind):
    sde = SDES[name]
    like = channels(sde)
    bm = {
        "interval": lambda: torchsde.BrownianInterval(0.0, 1.0, size=like.shape, dtype=like.dtype, entropy=4),
        "tree": lambda: torchsde.BrownianTree(0.0, torch.zeros_like(like), 1.0, entropy=4),
        "path": lambda: torchsde.BrownianPath(0.0, torch.zeros_like(like)),
    }[kind]()
    theirs = torchsde.sdeint(sde, X, torch.tensor(GRID), bm=bm, method="euler", dt=1 / 16)
    ours = hb.solve(sde, hb.EulerMaruyama(), X, grid=GRID, seed=TorchsdeNoise(bm), save="all").trajectory
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_torchsdes_milstein_takes_our_path_and_nears_the_exact_solution():
    """dX = X/5 dt + X dW/2 at 64 steps: strong order 1, so an error well under Euler's on the same path."""
    sde, x, path = (
        hb.SDE(lambda t, x: 0.2 * x, lambda t, x: 0.5 * x, "diagonal"),
        torch.ones(400, 1).double(),
        BrownianPath(1),
    )
    exact = torch.exp(0.2 - 0.125 + 0.5 * path.increment(0.0, 1.0, x))
    bm = TorchsdeBrownian(path, x)
    ends = [torchsde.sdeint(sde, x, [0.0, 1.0], bm=bm, method=m, dt=1 / 64)[-1] for m in ("euler", "milstein")]
    errors = [float((end.detach() - exact).abs().mean()) for end in ends]
    assert errors[1] < errors[0] / 4 < 0.01


def test_the_reverse_sde_agrees_in_either_engine_on_either_brownian():
    """In tau = T - t for torchsde, down from T for ours: `T` maps one Brownian motion to the other."""
    p = hb.VP()
    field = bounded_field(p, "noise")
    problem, taus = field.reverse_sde(), np.arange(16) / 16
    options = {"method": "euler", "dt": 1 / 16}
    path = BrownianPath(3)
    ours = hb.solve(field, hb.EulerMaruyama(), X, grid=p.T - taus, seed=path, save="all").trajectory
    bm = TorchsdeBrownian(path, X, T=p.T)
    theirs = torchsde.sdeint(problem.reversed(), X, torch.tensor(taus), bm=bm, **options)
    torch.testing.assert_close(theirs, ours, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(bm(0.25), path.increment(1.0, 0.75, X))

    interval = torchsde.BrownianInterval(0.0, 1.0, size=X.shape, dtype=X.dtype, entropy=4)
    theirs = torchsde.sdeint(problem.reversed(), X, torch.tensor(taus), bm=interval, **options)
    for target in (field, problem):
        noise = TorchsdeNoise(interval, T=p.T)
        ours = hb.solve(target, hb.EulerMaruyama(), X, grid=p.T - taus, seed=noise, save="all").trajectory
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_every_kind_of_state_follows_a_flat_torchsde_brownian():
    bm = torchsde.BrownianInterval(0.0, 1.0, size=(2, 12), entropy=4)
    x = torch.zeros(2, 3, 4)
    sde = hb.SDE(lambda t, x: torch.zeros_like(x), 1.0)
    got = hb.solve(sde, hb.EulerMaruyama(), x, grid=[0.0, 0.3, 1.0], seed=TorchsdeNoise(bm)).x
    torch.testing.assert_close(got, bm(0.0, 1.0).view(2, 3, 4), rtol=0, atol=1e-6)
    back = hb.solve(sde, hb.EulerMaruyama(), got, grid=[1.0, 0.3, 0.0], seed=TorchsdeNoise(bm)).x
    torch.testing.assert_close(back, x, rtol=0, atol=1e-6)


def test_a_correctors_draws_come_from_the_seed_given_beside_the_brownian():
    p = hb.VP()
    bm = torchsde.BrownianInterval(0.0, 1.0, size=X.shape, dtype=X.dtype, entropy=4)
    solver = hb.PredictorCorrector(hb.EulerMaruyama(), hb.Langevin(step_size=1e-3))
    run = {"grid": [1.0, 0.5], "seed": TorchsdeNoise(bm, seed=6)}
    zero = hb.Field(p, lambda t, x: torch.zeros_like(x))
    got = hb.solve(zero, solver, X, **run).x
    want = X - 0.5 * p.drift_rate(1.0) * X + p.diffusion(1.0) * -bm(0.5, 1.0)
    want = want + math.sqrt(2e-3) * normal(X.shape, 6, 2, dtype=torch.float64)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"draw 2 .*seed="):
        hb.solve(zero, solver, X, grid=[1.0, 0.5], seed=TorchsdeNoise(bm))


def test_euler_maruyama_refines_along_torchsdes_brownian_at_its_strong_order():
    """GBM on one BrownianInterval: order 1/2 between 8 and 128 steps, and its standard error by the delta method."""
    n, steps = 3000, (8, 128)
    x = torch.ones(n, 1, dtype=torch.float64)
    bm = torchsde.BrownianInterval(0.0, 1.0, size=(n, 1), dtype=x.dtype, entropy=2)
    sde = hb.SDE(lambda t, x: 0.3 * x, lambda t, x: 0.8 * x, "diagonal")
    exact = torch.exp(0.3 - 0.32 + 0.8 * bm(0.0, 1.0))
    coarse, fine = (
        (hb.solve(sde, hb.EulerMaruyama(), x, grid=np.linspace(0, 1, k + 1), seed=TorchsdeNoise(bm)).x - exact).abs()
        for k in steps
    )
    order = math.log(coarse.mean() / fine.mean()) / math.log(16)
    error = float((coarse / coarse.mean() - fine / fine.mean()).std()) / math.sqrt(n) / math.log(16)
    assert error < 0.02
    assert abs(order - 0.5) < 4 * error + 0.04  # 0.04: what 8 steps are away from the limit


@pytest.mark.parametrize(("method", "solver"), [("euler", hb.EulerMaruyama()), ("heun2", hb.Heun())])
@pytest.mark.parametrize("direction", [1, -1])
def test_torchdiffeqs_fixed_steps_are_ours(method, solver, direction):
    grid = np.geomspace(0.1, 2.0, 12)[::direction].copy()
    ode = hb.ODE(lambda t, x: torch.sin(3 * x) * t - x)
    theirs = torchdiffeq.odeint(ode, X, torch.tensor(grid), method=method)
    ours = hb.solve(ode, solver, X, grid=grid, save="all").trajectory
    torch.testing.assert_close(theirs, ours, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("method", "solver"), [("euler", hb.EulerMaruyama()), ("heun2", hb.Heun())])
def test_torchdiffeq_runs_a_probability_flow_down_to_its_end(method, solver):
    flow = bounded_field(hb.EDM(), "data").probability_flow()
    grid = hb.grids.karras(hb.EDM(), 8)
    theirs = torchdiffeq.odeint(flow, X, torch.tensor(grid), method=method)
    ours = hb.solve(flow, solver, X, grid=grid, save="all").trajectory
    torch.testing.assert_close(theirs, ours, rtol=1e-12, atol=1e-12)


def test_dopri5_on_the_flow_is_the_limit_of_our_solvers():
    p = hb.VP()
    field = bounded_field(p, "noise")
    exact = torchdiffeq.odeint(field.probability_flow(), X, torch.tensor([1.0, 0.1]).double(), rtol=1e-10, atol=1e-12)[
        -1
    ]
    for solver, problem, allowed in ((hb.DPMSolver(3), field, 1e-7), (hb.Heun(), field.probability_flow(), 3e-4)):
        got = hb.solve(problem, solver, X, grid=hb.grids.half_log_snr(p, 200, t_end=0.1)).x
        torch.testing.assert_close(got, exact, rtol=0, atol=allowed)


def flow_of_a_network():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()
    p = hb.VP()
    return net, hb.Field(p, lambda t, x: net(p.alpha(t) * x) * p.sigma(t)).probability_flow()


def gradients(end, *of):
    return torch.autograd.grad((end**2).sum(), of)


def test_gradients_through_torchdiffeq_are_those_through_our_solver():
    net, flow = flow_of_a_network()
    grid, x = np.linspace(1.0, 0.2, 9), X.clone().requires_grad_(True)
    ours = gradients(hb.solve(flow, hb.Heun(), x, grid=grid).x, x, *net.parameters())
    theirs = gradients(torchdiffeq.odeint(flow, x, torch.tensor(grid), method="heun2")[-1], x, *net.parameters())
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_the_adjoint_gradients_are_the_limit_of_ours():
    """Heun's gradients at 80 and 160 steps, extrapolated (h^2 away, h^3 left), against torchdiffeq's adjoint at 1e-9."""
    net, flow = flow_of_a_network()
    x = X.clone().requires_grad_(True)
    end = torchdiffeq.odeint_adjoint(
        flow, x, torch.tensor([1.0, 0.6]).double(), rtol=1e-9, atol=1e-11, adjoint_params=tuple(net.parameters())
    )[-1]
    adjoint = gradients(end, x, *net.parameters())
    coarse, fine = (
        gradients(hb.solve(flow, hb.Heun(), x, grid=np.linspace(1.0, 0.6, n + 1)).x, x, *net.parameters())
        for n in (80, 160)
    )
    for a, b, want in zip(coarse, fine, adjoint, strict=True):
        scale = float(want.abs().max())
        torch.testing.assert_close((4 * b - a) / 3, want, rtol=0, atol=1e-4 * scale)
        assert float((b - want).abs().max()) < 1e-3 * scale


INTERVAL = torchsde.BrownianInterval(0.0, 1.0, size=(5, 3), dtype=torch.float64, entropy=1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: TorchsdeNoise(INTERVAL)(1, 0.5, 1.5, X), ValueError, r"0\.5 to 1\.5"),
        (lambda: TorchsdeNoise(INTERVAL)(1, -0.5, 0.5, X), ValueError, r"-0\.5 to 0\.5"),
        (lambda: TorchsdeNoise(INTERVAL, T=0.9)(1, 1.0, 0.5, X), ValueError, r"T - t with T = 0\.9"),
        (lambda: TorchsdeNoise(INTERVAL)(1, 0.0, 0.5, X[:4]), ValueError, r"\(5, 3\).*size=\(4, 3\)"),
        (lambda: TorchsdeNoise(INTERVAL)(1, 0.0, 0.5, X.float()), ValueError, r"float64.*dtype=torch\.float32"),
        (lambda: TorchsdeNoise(INTERVAL)(1, 0.0, 0.5, X.long()), ValueError, "int64"),
        (lambda: TorchsdeNoise(INTERVAL)(1, 0.5, 0.5, X), ValueError, "seed="),
        (lambda: TorchsdeNoise(lambda a, b: X), TypeError, "shape"),
        (lambda: TorchsdeNoise(3), TypeError, "3"),
        (lambda: TorchsdeNoise(INTERVAL, T="end"), ValueError, "T = 'end'"),
        (lambda: TorchsdeNoise(INTERVAL, seed=-1), ValueError, "seed"),
        (lambda: TorchsdeBrownian(3, X), TypeError, "path = 3"),
        (lambda: TorchsdeBrownian(BrownianPath(1), (5, 3)), TypeError, "like"),
        (lambda: TorchsdeBrownian(BrownianPath(1), X, T=math.nan), ValueError, "T = nan"),
        (lambda: TorchsdeBrownian(BrownianPath(1), X)(0.5, 0.25), ValueError, r"ta = 0\.5.*tb = 0\.25"),
        (lambda: TorchsdeBrownian(BrownianPath(1), X)(0.0, 0.5, return_U=True), ValueError, "Levy"),
        (lambda: TorchsdeBrownian(BrownianPath(1), X)(0.0, math.inf), ValueError, "inf"),
        (lambda: torchsde.sdeint(SDES["scalar"], X, [0.0, 1.0], bm=TorchsdeBrownian(BrownianPath(1), X)), ValueError, "levy_area"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_our_brownian_has_what_torchsde_reads():
    bm = TorchsdeBrownian(BrownianPath(1), X.float(), T=1.0)
    assert (bm.shape, bm.size(), bm.dtype, bm.device) == ((5, 3), (5, 3), torch.float32, X.device)
    assert bm(torch.tensor(0.25), torch.tensor(0.5)).dtype == torch.float32
    assert bm(0.3, 0.3).count_nonzero() == 0
    assert repr(bm) == "TorchsdeBrownian(BrownianPath(seed=1, first=0, depth=16), shape=(5, 3), T=1.0)"
