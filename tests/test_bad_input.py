"""Bad input: each a clear error that names the argument, the value and the remedy."""

import math

import numpy as np
import pytest
import torch

import halfbridge as hb

P = hb.VP()
GRID = hb.grids.uniform(P, 4)
X = torch.ones(2, 3)


def field(fn=lambda t, x: x, predicts="noise", process=P):
    return hb.Field(process, fn, predicts)


def run(**changes):
    options = {"problem": field(), "solver": hb.DDIM(), "x": X, "grid": GRID, **changes}
    problem, solver, x = (options.pop(name) for name in ("problem", "solver", "x"))
    return hb.solve(problem, solver, x, **options)


def draw(**changes):
    options = {"field": field(), "solver": hb.DDIM(), "grid": GRID, "shape": (2, 3), "seed": 0, **changes}
    f, solver = options.pop("field"), options.pop("solver")
    return hb.sample(f, solver, **options)


BAD_GRIDS = {
    "increasing": ([0.1, 0.5, 1.0], r"decrease"),
    "repeated": ([1.0, 0.5, 0.5, 0.1], r"grid\[1\].*grid\[2\]"),
    "beyond T": ([1.2, 0.5], r"1\.2.*T"),
    "negative": ([1.0, -0.1], r"-0\.1"),
    "empty": ([], r"two times"),
    "one time": ([1.0], r"two times"),
    "integers": (np.array([1, 0]), r"int"),
    "python integers": ([1, 0], r"int"),
    "float32": (np.array([1.0, 0.5], dtype=np.float32), r"float32"),
    "float32 tensor": (torch.tensor([1.0, 0.5]), r"float32"),
    "nan": ([1.0, math.nan], r"nan|finite"),
    "two-dimensional": (np.array([[1.0, 0.5]]), r"1-D|dimension"),
    "text": (["a", "b"], r"grid"),
    "nothing": (None, r"grid"),
}


@pytest.mark.parametrize("name", BAD_GRIDS)
def test_bad_grids(name):
    grid, message = BAD_GRIDS[name]
    for call in (lambda: run(grid=grid), lambda: draw(grid=grid), lambda: hb.plan(hb.DDIM(), P, grid)):
        with pytest.raises((ValueError, TypeError), match=message) as error:
            call()
        assert "grid" in str(error.value)


def test_bad_grids_of_general_problems():
    ode = hb.ODE(lambda t, x: x)
    for grid, message in (
        ([0.0, 1.0, 0.5], "grid"),
        ([0.0, 0.0], "grid"),
        ([0.0], "two times"),
        ([0, 1], "int"),
        ([0.0, math.inf], "finite"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            hb.solve(ode, hb.Heun(), X, grid=grid)


def test_grids_end_at_zero_only_where_there_is_no_noise():
    noisy = hb.LinearProcess(lambda t: torch.exp(-t), lambda t: 0.1 + t, 1.0, 1e-3)
    with pytest.raises(ValueError, match=r"sigma = 0\.1"):
        run(problem=field(process=noisy), grid=[1.0, 0.5, 0.0])
    with pytest.raises(ValueError, match=r"sigma"):
        hb.grids.uniform(noisy, 4, t_end=0.0)
    with pytest.raises(ValueError, match=r"half_log_snr|infinite"):
        hb.grids.half_log_snr(P, 4, t_end=0.0)


def test_the_flow_is_not_defined_where_the_noise_ends():
    """Heun takes EDM's Euler step there; a grid of the flow that starts there has no score."""
    with pytest.raises(ValueError, match="t = 0"):
        hb.solve(field(process=hb.EDM()).probability_flow(), hb.Heun(), X, grid=[0.0, 0.5])


@pytest.mark.parametrize(("make", "message"), [
    (lambda: hb.grids.uniform(P, 0), "n"), (lambda: hb.grids.uniform(P, 2.5), "n"), (lambda: hb.grids.karras(P, 4, rho=0.0), "rho"),
    (lambda: hb.grids.karras(P, 4, rho=-1.0), "rho"), (lambda: hb.grids.uniform(P, 4, t_end=1.5), "t_end"),
    (lambda: hb.grids.uniform(P, 4, t_end=-0.5), "t_end"), (lambda: hb.grids.uniform(P, 4, t_end=1.0), "t_end"),
    (lambda: hb.DDIM(-0.1), "eta"), (lambda: hb.DDIM(1.1), "eta"), (lambda: hb.DDIM(math.nan), "eta"),
    (lambda: hb.Heun(churn=-1.0), "churn"), (lambda: hb.Heun(churn=math.nan), "churn"), (lambda: hb.Heun(s_noise=-1.0), "s_noise"),
    (lambda: hb.Heun(s_min=2.0, s_max=1.0), "s_max"), (lambda: hb.DPMSolver(0), "order"), (lambda: hb.DPMSolver(4), "order"),
    (lambda: hb.DPMSolverPP(3), "order"), (lambda: hb.Ancestral("middling"), "variance"),
    (lambda: hb.Langevin(snr=0.0), "snr"), (lambda: hb.Langevin(snr=-1.0), "snr"), (lambda: hb.Langevin(step_size=0.0), "step_size"),
    (lambda: hb.Langevin(snr=0.1, step_size=0.1), "snr.*step_size"), (lambda: hb.Langevin(norm="max"), "norm"),
    (lambda: hb.Langevin(step_size=0.1, transition=True), "transition"),
    (lambda: hb.PredictorCorrector(hb.DDIM(), hb.Langevin(), -1), "corrector_steps"),
    (lambda: hb.PredictorCorrector(hb.DDIM(), hb.DDIM()), "corrector"), (lambda: hb.PredictorCorrector("ddim", hb.Langevin()), "predictor"),
    (lambda: hb.VP(beta_min=1.0, beta_max=0.5), "beta_max"), (lambda: hb.SubVP(beta_min=-1.0), "beta_min"),
    (lambda: hb.DiscreteVP([0.1, 1.0]), r"betas"), (lambda: hb.DiscreteVP([0.0, 0.1]), "betas"), (lambda: hb.DiscreteVP([]), "betas"),
    (lambda: hb.VE(sigma_min=0.0), "sigma_min"), (lambda: hb.EDM(sigma_min=2.0, sigma_max=1.0), "sigma_max"),
    (lambda: hb.OU(theta=0.0), "theta"), (lambda: hb.Brownian(g=-1.0), "g"),
    (lambda: field(predicts="nois"), "did you mean 'noise'"), (lambda: hb.Field("vp", lambda t, x: x), "process"),
    (lambda: hb.Field(P, 3), "fn"), (lambda: hb.SDE(3, 1.0), "drift"), (lambda: hb.SDE(lambda t, x: x, math.inf), "diffusion"),
    (lambda: hb.SDE(lambda t, x: x, 1.0, noise="full"), "noise"), (lambda: hb.ODE(None), "drift"),
    (lambda: hb.reference.Gaussian([0.0, 0.0], [[1.0, 0.2], [0.1, 1.0]]), "symmetric"),
    (lambda: hb.reference.Gaussian([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]]), "semidefinite"),
    (lambda: hb.reference.GaussianMixture([0.5, 0.4], [[0.0], [1.0]], 0.1), r"0\.9"),
    (lambda: hb.plan(hb.DDIM, P, GRID), "instance"), (lambda: hb.plan(hb.DDIM(), "vp", GRID), "process"),
    (lambda: hb.plan(hb.DDIM(), P, GRID, "colour"), "predicts"),
])  # fmt: skip
def test_parameters_out_of_range(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


@pytest.mark.parametrize(("changes", "message"), [
    ({"solver": "ddim"}, "solver"), ({"problem": lambda t, x: x}, "problem"), ({"x": [1.0]}, "x must be"),
    ({"x": torch.tensor(1.0)}, "batch"), ({"x": torch.ones(2, 3, dtype=torch.int64)}, "int64"),
    ({"solver": hb.EulerMaruyama()}, "seed"), ({"seed": -1}, "seed"), ({"seed": 2**64}, "seed"), ({"seed": 0.5}, "seed"),
    ({"seed": True}, "seed"), ({"first": -1}, "first"), ({"save": "some"}, "save"), ({"save": [0.123]}, r"nearest is grid\["),
    ({"solver": hb.DPMSolver(2), "problem": hb.SDE(lambda t, x: x, 1.0), "grid": [0.0, 1.0]}, "DPMSolver integrates Field problems"),
    ({"solver": hb.Heun(), "problem": hb.SDE(lambda t, x: x, 1.0), "grid": [0.0, 1.0]}, "Heun integrates Field or ODE problems"),
    ({"solver": hb.Heun(churn=1.0), "problem": hb.ODE(lambda t, x: x), "grid": [0.0, 1.0]}, "churn"),
])  # fmt: skip
def test_bad_arguments_of_solve(changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        run(**changes)


@pytest.mark.parametrize(("changes", "message"), [
    ({"shape": ()}, "batch"), ({"shape": 5}, "shape"), ({"shape": (2.0, 3)}, "shape"), ({"shape": (-1, 3)}, "shape"),
    ({"seed": None}, "seed"), ({"seed": -3}, "seed"), ({"seed": 2**64}, "seed"), ({"dtype": torch.int32}, "dtype"),
    ({"dtype": "float32"}, "dtype"), ({"field": lambda t, x: x}, "field"),
    ({"field": field(process=hb.Brownian())}, "prior"),
    ({"prior": hb.reference.Gaussian([0.0], [[1.0]])}, "prior"),
])  # fmt: skip
def test_bad_arguments_of_sample(changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        draw(**changes)


OUTPUTS = {
    "shape": (lambda t, x: x[:, :2], r"shape \(2, 2\).*\(2, 3\)"),
    "batch": (lambda t, x: x.mean(0), r"shape \(3,\)"),
    "doubled channels": (lambda t, x: torch.cat([x, x], 1), r"shape \(2, 6\).*learned variances"),
    "dtype": (lambda t, x: x.double(), r"float64.*float32"),
    "type": (lambda t, x: None, "NoneType"),
    "device": (lambda t, x: x.to("meta"), "device meta"),
}


@pytest.mark.parametrize("plan", [True, False])
@pytest.mark.parametrize("name", OUTPUTS)
def test_wrong_field_outputs_name_step_and_time(name, plan):
    fn, message = OUTPUTS[name]
    late = field(lambda t, x: x if t > 0.6 else fn(t, x))
    with pytest.raises(hb.FieldOutputError, match=message) as error:
        run(problem=late, plan=plan, grid=[1.0, 0.75, 0.5, 0.25])
    assert "step 2" in str(error.value)
    assert "t = 0.5" in str(error.value)
    with pytest.raises(hb.FieldOutputError, match=message):
        hb.solve(hb.ODE(fn), hb.Heun(), X, grid=[0.0, 1.0], plan=plan)


def test_nan_from_a_field_names_step_and_time():
    late = field(lambda t, x: x if t > 0.6 else x * math.nan)
    with pytest.raises(hb.NonFiniteError, match=r"6 of 6 entries.*t = 0\.5 in step 2"):
        run(problem=late, grid=[1.0, 0.75, 0.5, 0.25])


def test_churn_cannot_raise_noise_beyond_a_discrete_chain():
    p = hb.DiscreteVP(np.linspace(1e-4, 0.02, 10))
    with pytest.raises(ValueError, match="s_max"):
        hb.plan(hb.Heun(churn=4.0), p, hb.grids.uniform(p, 4))


def test_unbound_solvers_say_what_they_miss():
    with pytest.raises(ValueError, match=r"solver\.on"):
        hb.Heun(churn=1.0).step(field(), X, 0.5, 0.25, lambda: X)
    with pytest.raises(ValueError, match=r"solver\.on"):
        hb.Langevin(transition=True).correct(field(), X, 0.5, lambda: X)


def test_noise_objects_must_return_normals_like_the_state():
    with pytest.raises(ValueError, match=r"\(3,\).*\(2, 3\)"):
        run(solver=hb.Ancestral(), seed=lambda draw, t, s, like: like[0])


def test_views_that_do_not_exist_say_so():
    with pytest.raises(ValueError, match=r"score.*t = 0"):
        field().score(0.0, X)


def test_a_diffusion_of_the_wrong_shape_says_so():
    for noise, value in (("diagonal", torch.ones(4)), ("matrix", torch.ones(2, 2)), ("scalar", torch.ones(5))):
        sde = hb.SDE(lambda t, x: x, lambda t, value=value: value, noise)
        with pytest.raises(ValueError, match="diffusion"):
            hb.solve(sde, hb.EulerMaruyama(), X, grid=[0.0, 1.0], seed=0)


def test_a_state_of_another_run_is_refused():
    states = []
    run(solver=hb.DPMSolverPP(), callback=states.append)
    with pytest.raises(ValueError, match="outside the grid"):
        run(solver=hb.DPMSolverPP(), x=states[-1]._replace(step=9))
    with pytest.raises(ValueError, match="outside the grid"):
        run(solver=hb.DPMSolverPP(), x=states[0]._replace(step=1.5))
    with pytest.raises(ValueError, match=r"State\.past"):
        run(solver=hb.DPMSolverPP(), x=states[0]._replace(past=None))
    with pytest.raises(ValueError, match=r"State\.past"):
        run(solver=hb.DDIM(), x=states[0])
    with pytest.raises(ValueError, match=r"saved at t = .*grid of the run"):
        run(solver=hb.DPMSolverPP(), x=states[0], grid=hb.grids.quadratic(P, 4))
    with pytest.raises(ValueError, match=r"State\.past"):
        run(solver=hb.DPMSolverPP(), x=states[0]._replace(past=states[0].past._replace(h=0.1)))
    with pytest.raises(ValueError, match="dtype"):
        run(solver=hb.DPMSolverPP(), x=states[0]._replace(past=states[0].past._replace(data=torch.ones(2, 3).double())))


class Returns(hb.Solver):
    """A step that makes `made` of the tensor it should return."""

    def __init__(self, made):
        self.made = made

    def step(self, field, x, t, s, draw):
        return self.made(torch.tanh(x))


@pytest.mark.parametrize(("made", "message"), [
    (lambda y: y.mean(1, keepdim=True), r"shape.*\(?\[?2, 1"), (lambda y: y.double(), "float64"), (lambda y: None, "NoneType"),
    (lambda y: (y, None), "tuple"),
])  # fmt: skip
def test_a_step_that_returns_something_else_is_named(made, message):
    with pytest.raises((ValueError, TypeError), match=message) as error:
        run(solver=Returns(made))
    assert "step 0 of Returns()" in str(error.value)


def test_a_multistep_solver_must_return_its_past():
    class Lost(hb.MultistepSolver):
        def step(self, field, x, t, s, draw, past):
            return x

    class Listed(hb.MultistepSolver):
        def step(self, field, x, t, s, draw, past):
            return x + 0.1 * field.noise(t, x), [x]

    with pytest.raises(TypeError, match=r"Lost\.step must return \(x, past\)"):
        run(solver=Lost())
    with pytest.raises(TypeError, match="past holds a list"):
        run(solver=Listed())


def test_a_plan_keeps_to_the_diffusion_it_was_made_for():
    def drift(t, x):
        return -x

    grid = [0.0, 0.5, 1.0]
    plan = hb.plan(hb.EulerMaruyama(), hb.SDE(drift, 1.0), grid)
    plan.run(hb.SDE(lambda t, x: -2 * x, 1.0), X, 0)  # another drift is a call, not a coefficient
    for other in (hb.SDE(drift, 5.0), hb.SDE(drift, lambda t: 1.0), hb.SDE(drift, 1.0, "diagonal")):
        with pytest.raises(ValueError, match="diffusion"):
            plan.run(other, X, 0)


def test_the_reverse_sde_runs_from_noise_to_data():
    with pytest.raises(ValueError, match=r"problem\.reversed"):
        hb.solve(field().reverse_sde(), hb.EulerMaruyama(), X, grid=[0.1, 0.5, 1.0], seed=0)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: hb.certify(hb.DDIM(), steps=(40,)), "steps"), (lambda: hb.certify(hb.DDIM(), steps=(40, 40, 80)), "steps"),
    (lambda: hb.certify(hb.DDIM(), processes=()), "processes"), (lambda: hb.certify("heun"), "solver"),
    (lambda: hb.certify(hb.Langevin(step_size=0.1)), "no order to certify"),
    (lambda: hb.reference.observed_order(hb.DDIM(), P, hb.reference.GaussianMixture([1.0], [[0.0]], 0.1)), "Gaussian"),
    (lambda: run(save=None), "save"), (lambda: run(save=0.5), "save"), (lambda: run(callback=3), "callback"),
    (lambda: draw(prior=torch.zeros(2, 3)), "prior"), (lambda: hb.DPMSolver(order=2.0), "order"), (lambda: hb.DPMSolver(True), "order"),
    (lambda: hb.DDIM("a"), "eta"), (lambda: hb.Heun(churn="a"), "churn"), (lambda: hb.Langevin(snr=True), "snr"),
    (lambda: hb.SDE(lambda t, x: x, "a"), "diffusion"), (lambda: run(first=2**70), "first"),
])  # fmt: skip
def test_wrong_kinds_of_arguments(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_numpy_integers_are_integers():
    one = draw(solver=hb.Ancestral(), seed=np.int64(3), first=np.int64(2), shape=(np.int64(2), 3))
    assert torch.equal(one, draw(solver=hb.Ancestral(), seed=3, first=2))
