"""What goes into a process and comes out of it: numbers, tensors, arrays; and what is refused, with which words."""

import copy
import dataclasses
import math
import pickle

import numpy as np
import pytest
import torch

from halfbridge.solvers.processes import EDM, OU, VE, VP, Brownian, CosineVP, DiscreteVP, LinearProcess, Process, SubVP

BETAS = np.linspace(1e-4, 0.02, 1000)


def decay(t):
    return torch.exp(-t)


def spread(t):
    return torch.sqrt(-torch.expm1(-2 * t))


LINEAR = LinearProcess(decay, spread, T=3.0, t_min=1e-3)
PROCESSES = [VP(), CosineVP(), SubVP(), VE(), EDM(), OU(), Brownian(), DiscreteVP(BETAS), LINEAR]
FUNCTIONS = ["alpha", "sigma", "half_log_snr", "nu", "drift_rate", "diffusion"]
every_process = pytest.mark.parametrize("p", PROCESSES, ids=repr)


@every_process
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_kind_of_time_gives_the_same_numbers(p, name):
    f = getattr(p, name)
    times = [0.13 * p.T, 0.5 * p.T, 0.97 * p.T]
    floats = [f(t) for t in times]
    assert all(type(value) is float for value in floats)
    assert type(f(np.float32(0.5 * p.T))) is float
    assert type(f(np.float64(0.5 * p.T))) is float
    tensor = f(torch.tensor([times], dtype=torch.float64))
    assert tensor.dtype == torch.float64
    assert tensor.shape == (1, 3)
    np.testing.assert_allclose(tensor[0].numpy(), floats, rtol=1e-14, atol=1e-15)
    array = f(np.array(times))
    assert isinstance(array, np.ndarray)
    np.testing.assert_array_equal(array, tensor[0].numpy())
    scalar = f(torch.tensor(times[1], dtype=torch.float64))
    assert scalar.shape == ()
    assert f(torch.zeros(0, 2)).shape == (0, 2)


@every_process
@pytest.mark.parametrize("name", [*FUNCTIONS, "time_at"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_times_are_computed_in_float64_and_rounded_once(p, name, dtype):
    f = getattr(p, name)
    argument = torch.tensor([0.3, 0.6], dtype=dtype)
    result = f(argument)
    assert result.dtype == dtype
    assert torch.equal(result, f(argument.double()).to(dtype))


@every_process
@pytest.mark.parametrize("name", FUNCTIONS)
def test_integers_are_times_in_float64(p, name):
    if p.T <= 1:
        assert getattr(p, name)(0) == getattr(p, name)(0.0)
        return
    f = getattr(p, name)
    assert f(1) == f(1.0)
    assert torch.equal(f(torch.tensor([1, 2])), f(torch.tensor([1.0, 2.0], dtype=torch.float64)))
    np.testing.assert_array_equal(f(np.array([1, 2])), f(np.array([1.0, 2.0])))


@every_process
@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_in_t_are_those_of_central_differences(p, name):
    f, h = getattr(p, name), 1e-5 * p.T
    t = torch.tensor([0.2113 * p.T, 0.6117 * p.T], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(f(t).sum(), t)
    with torch.no_grad():
        difference = (f(t + h) - f(t - h)) / (2 * h)
    torch.testing.assert_close(slope, difference, rtol=1e-6, atol=1e-7 / p.T)


@every_process
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_values_do_not_depend_on_the_grad_mode(p, mode):
    t = torch.tensor([0.3 * p.T], dtype=torch.float64)
    for name in FUNCTIONS:
        with mode():
            value = getattr(p, name)(t.clone())
        assert torch.equal(value, getattr(p, name)(t))


@every_process
def test_times_beyond_T_are_taken_where_the_process_goes_on(p):
    if isinstance(p, DiscreteVP):
        with pytest.raises(ValueError, match=r"1000\.0001.* beyond T = 1000, .*churn"):
            p.sigma(1000.0001)
        with pytest.raises(ValueError, match=r"half_log_snr.*T = 1000"):
            p.time_at(p.half_log_snr(1000.0) - 0.01)
        return
    t = 1.1 * p.T if not isinstance(p, CosineVP) else 0.999
    assert p.nu(t) > p.nu(p.T)
    assert p.time_at(p.half_log_snr(t)) == pytest.approx(t, rel=1e-12)


@every_process
@pytest.mark.parametrize("t", [-1e-9, math.nan, math.inf])
def test_impossible_times_are_refused_in_every_form(p, t):
    for name in FUNCTIONS:
        for value in (t, torch.tensor([0.5 * p.T, t], dtype=torch.float64), np.array([t])):
            with pytest.raises(ValueError, match=r"`t` = (-1e-09|nan|inf)"):
                getattr(p, name)(value)


@every_process
@pytest.mark.parametrize("level", [math.nan, -math.inf])
def test_impossible_half_log_snr_is_refused(p, level):
    for value in (level, torch.tensor([0.0, level])):
        with pytest.raises(ValueError, match=r"`half_log_snr` = (nan|-inf)"):
            p.time_at(value)


@pytest.mark.parametrize("t", ["1", None, [0.5], True, torch.tensor(True), torch.tensor(1j), np.array(["a"])])
def test_what_is_not_a_real_number_is_a_type_error(t):
    with pytest.raises(TypeError, match="`t`"):
        VP().alpha(t)


@pytest.mark.parametrize("t", [1.0, 1.5])
def test_cosine_refuses_its_singular_end(t):
    with pytest.raises(ValueError, match=r"below 1.*T = 0\.9946"):
        CosineVP().sigma(t)


def test_overflow_names_the_process_and_the_time():
    with pytest.raises(OverflowError, match=r"VP\(beta_min=0.1, beta_max=20.0\).*`t` = 100"):
        VP().nu(100.0)


@every_process
@pytest.mark.parametrize(("s", "t"), [(0.5, 0.5), (0.6, 0.5)])
def test_transition_refuses_to_go_backward(p, s, t):
    with pytest.raises(ValueError, match="not below"):
        p.transition(s * p.T, t * p.T)
    with pytest.raises(ValueError, match="`t` = -1"):
        p.transition(-1.0, t * p.T)


@every_process
def test_perturb_is_alpha_x0_plus_sigma_z_sample_by_sample(p):
    x0, z = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).double()
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64) * p.T
    whole = p.perturb(t, x0, z)
    for i in range(3):
        expected = p.alpha(t[i].item()) * x0[i] + p.sigma(t[i].item()) * z[i]
        torch.testing.assert_close(whole[i], expected, rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(p.perturb(t[i].item(), x0[i : i + 1], z[i : i + 1])[0], expected, rtol=1e-14, atol=0)
        torch.testing.assert_close(p.perturb(t[i], x0, z)[i], expected, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(p.perturb(t.float(), x0, z), p.perturb(t.float().double(), x0, z), rtol=1e-15, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_perturb_keeps_the_states_dtype_and_rounds_it_once(dtype):
    x0, z = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    t = torch.tensor([1e-3, 0.2, 0.9])
    p = VP()
    exact = p.perturb(t.double(), x0.double(), z.double())
    for result in (
        p.perturb(t, x0, z),
        torch.cat([p.perturb(u.item(), x0[i, None], z[i, None]) for i, u in enumerate(t)]),
    ):
        assert result.dtype == dtype
        torch.testing.assert_close(result.double(), exact, rtol=torch.finfo(dtype).eps, atol=3 * torch.finfo(dtype).eps)


def test_perturb_refuses_shapes_that_would_broadcast():
    p, x0 = VP(), torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"`z` has shape \(1, 2\) but `x0` has \(3, 2\)"):
        p.perturb(0.5, x0, torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"`t` has shape \(2,\)"):
        p.perturb(torch.tensor([0.1, 0.2]), x0, x0)
    with pytest.raises(ValueError, match=r"`t` has shape \(3, 1\)"):
        p.perturb(torch.full((3, 1), 0.1), x0, x0)
    with pytest.raises(TypeError, match=r"`x0` has dtype torch\.int64"):
        p.perturb(0.5, x0.long(), x0.long())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: VP(beta_min=20.0, beta_max=0.1), "VP: `beta_max` = 0.1 is below `beta_min` = 20"),
        (lambda: SubVP(beta_min=20.0, beta_max=0.1), "SubVP: `beta_max`"),
        (lambda: VP(beta_min=0.0), "`beta_min` = 0.0 must be positive"),
        (lambda: VP(beta_max=math.nan), "`beta_max` = nan"),
        (lambda: CosineVP(s=0.0), "`s` = 0.0 must be positive"),
        (lambda: CosineVP(s=-0.008), "`s` = -0.008"),
        (lambda: VE(sigma_min=0.0), "VE: `sigma_min` = 0"),
        (lambda: VE(sigma_min=1.0, sigma_max=1.0), "`sigma_min` = 1 must be below `sigma_max` = 1"),
        (lambda: EDM(sigma_min=-0.1), "EDM: `sigma_min` = -0.1"),
        (lambda: EDM(sigma_min=90.0), "`sigma_min` = 90 must be below `sigma_max` = 80"),
        (lambda: OU(theta=0.0), "OU: `theta` = 0.0"),
        (lambda: OU(g=-1.0), "OU: `g` = -1"),
        (lambda: OU(T=1e-3), "OU: `T` = 0.001 must exceed t_min = 0.001"),
        (lambda: Brownian(g=math.inf), "Brownian: `g` = inf"),
        (lambda: Brownian(T=0.0), "Brownian: `T` = 0"),
        (lambda: DiscreteVP([0.1, 1.0]), r"betas\[1\] = 1.0 is not in \(0, 1\)"),
        (lambda: DiscreteVP([0.0, 0.5]), r"betas\[0\] = 0.0"),
        (lambda: DiscreteVP(torch.tensor([0.1, 0.2, -0.1])), r"betas\[2\] = -0.1"),
        (lambda: DiscreteVP(np.array([0.1, math.nan])), r"betas\[1\] = nan"),
        (lambda: DiscreteVP(np.full((2, 2), 0.1)), r"`betas` has shape \(2, 2\)"),
        (lambda: DiscreteVP([]), "`betas` has length 0"),
        (lambda: DiscreteVP([0.1]), "`betas` has length 1"),
    ],
)
def test_impossible_parameters_are_refused_by_name(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("make", [lambda: VP(beta_max="20"), lambda: OU(theta=None), lambda: DiscreteVP(0.1)])
def test_parameters_of_a_wrong_kind_are_type_errors(make):
    with pytest.raises(TypeError):
        make()


def test_betas_are_the_same_process_from_list_array_or_tensor():
    a, b, c = DiscreteVP(list(BETAS)), DiscreteVP(BETAS), DiscreteVP(torch.from_numpy(BETAS))
    assert a == b == c
    assert hash(a) == hash(b) == hash(c)
    assert a != DiscreteVP(BETAS[:-1])
    assert type(a.betas) is tuple
    assert all(type(beta) is float for beta in a.betas)
    float32 = DiscreteVP(torch.linspace(1e-4, 0.02, 10, dtype=torch.float32))
    assert float32.betas[0] == float(np.float32(1e-4))


def test_the_tables_of_a_discrete_process_are_made_once_and_are_no_part_of_its_value(monkeypatch):
    fresh, used = DiscreteVP(BETAS), DiscreteVP(BETAS)
    t = torch.tensor([0.5, 1.0, 2.5], dtype=torch.float64, requires_grad=True)
    with torch.inference_mode():
        used.alpha(t.detach())
    assert not any(table.is_inference() for table in used._on(t.device))
    expected = fresh.time_at(fresh.half_log_snr(t))
    assert (used == fresh, hash(used) == hash(fresh)) == (True, True)
    assert pickle.dumps(used) == pickle.dumps(DiscreteVP(BETAS))
    assert copy.deepcopy(used) == fresh
    monkeypatch.setattr(torch, "tensor", None)  # no copy of a thousand numbers at each call
    again = used.time_at(used.half_log_snr(t))
    assert torch.equal(again, expected)
    (used.diffusion(t) * again).sum().backward()
    assert t.grad.isfinite().all()


@every_process
def test_process_is_a_small_frozen_value(p):
    assert isinstance(p, Process)
    assert len(repr(p)) < 80
    with pytest.raises(dataclasses.FrozenInstanceError):
        p.T = 2.0
    again = pickle.loads(pickle.dumps(p))
    assert again == p
    assert hash(again) == hash(p)
    assert again.alpha(0.3) == p.alpha(0.3)


@every_process
@pytest.mark.parametrize("member", [*FUNCTIONS, "time_at", "transition", "perturb", "prior_std"])
def test_every_member_is_documented(p, member):
    assert getattr(Process, member).__doc__
    assert type(p).__doc__.startswith(("dX =", "The chain x_k ="))


def test_parameters_are_stored_as_floats():
    assert VP(1, 20) == VP(1.0, 20.0)
    assert repr(VP(1, np.float32(20))) == "VP(beta_min=1.0, beta_max=20.0)"
    assert dataclasses.replace(OU(), T=2).T == 2.0


@pytest.mark.parametrize(
    "p",
    [
        VP(beta_min=0.1, beta_max=20.0),
        CosineVP(s=0.008),
        SubVP(beta_min=0.1, beta_max=20.0),
        VE(sigma_min=0.02, sigma_max=100.0),
        EDM(sigma_min=0.002, sigma_max=80.0),
        OU(theta=0.5, g=1.0, T=5.0),
        Brownian(g=1.0, T=1.0),
    ],
    ids=repr,
)
def test_defaults_are_the_contracts(p):
    assert type(p)() == p
