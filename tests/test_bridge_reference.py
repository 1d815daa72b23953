"""Reference chains: step sizes, DSB's letters, exact and Euler transitions of any process."""

import json
import math

import numpy as np
import pytest
import torch
from bridges import PROCESSES, by_process

import halfbridge as hb
from halfbridge.training.bridge import Direction, ReferenceChain, gammas


def test_schedules_are_the_sequences_that_their_names_say():
    def values(*numbers):
        return torch.tensor(numbers, dtype=torch.float64)

    assert torch.equal(gammas.constant(3, 0.1), values(0.1, 0.1, 0.1))
    torch.testing.assert_close(gammas.symmetric(5, 1.0, 3.0), values(1, 2, 3, 2, 1))
    torch.testing.assert_close(gammas.symmetric(6, 1.0, 3.0), values(1, 2, 3, 3, 2, 1))
    torch.testing.assert_close(gammas.symmetric(5, 1.0, 4.0, rise="geometric"), values(1, 2, 4, 2, 1))
    torch.testing.assert_close(gammas.geometric(4, 1.0, 8.0), values(1, 2, 4, 8))
    torch.testing.assert_close(gammas.geometric(3, 9.0, 1.0), values(9, 3, 1))
    for n in (1, 2):
        assert torch.equal(gammas.symmetric(n, 1.0, 3.0), torch.full((n,), 3.0, dtype=torch.float64))
    assert torch.equal(gammas.geometric(1, 2.0, 5.0), values(2))


def test_dsbs_chain_has_its_own_step_sizes_and_drift():
    sizes = gammas.symmetric(6, 0.01, 0.05)
    for rate in (0.0, 1.0, 0.3):
        chain = ReferenceChain.dsb(sizes, rate)
        np.testing.assert_allclose(chain.gammas, sizes, rtol=1e-13)
        np.testing.assert_allclose(chain.gains, 1 - rate * np.asarray(sizes), rtol=1e-14)
        x = torch.tensor([[2.0], [-1.0]], dtype=torch.float64)
        torch.testing.assert_close(chain.drift(3, x), -rate * x)
        assert chain.process.diffusion(0.1) == math.sqrt(2)
        np.testing.assert_allclose(chain.times, [0.0, *np.cumsum(np.asarray(sizes))], rtol=1e-14)


def test_half_speed_ou_has_f_minus_x_and_gamma_half_a_step():
    """dX = -X/2 dt + dW: f = 2 a x/g^2 = -x and gamma = g^2 Delta/2 = Delta/2 (EQUATIONS.md H.3)."""
    chain = ReferenceChain(hb.OU(0.5, 1.0, 2.0), 8, "euler")
    np.testing.assert_allclose(chain.gammas, 0.125, rtol=1e-14)
    np.testing.assert_allclose(chain.gains, 1 - 0.125, rtol=1e-14)
    assert float(chain.drift(0, torch.tensor(3.0))) == pytest.approx(-3.0)


@by_process
def test_exact_transitions_add_up_to_the_process_and_euler_ones_tend_to_it(process):
    alpha, variance = process.alpha(process.T), process.sigma(process.T) ** 2

    def end(chain):
        gain, total = 1.0, 0.0
        for r, gamma in zip(chain.gains, chain.gammas, strict=True):
            gain, total = gain * r, r**2 * total + 2 * gamma
        return gain, total

    start = process.sigma(0.0) ** 2 if isinstance(process, hb.LinearProcess) else 0.0
    for steps in (1, 7):
        gain, total = end(ReferenceChain(process, steps))
        assert gain == pytest.approx(alpha, rel=1e-12)
        assert total == pytest.approx(variance - alpha**2 * start, rel=1e-9)
    coarse, fine = (end(ReferenceChain(process, n, "euler")) for n in (200, 400))
    for there, here, limit in zip(coarse, fine, (alpha, variance), strict=True):
        scale = max(limit, 1.0)
        assert abs(here - limit) < max(0.6 * abs(there - limit), 1e-9 * scale)  # of order 1 at least
        assert abs(here - limit) < 0.2 * scale


@by_process
@pytest.mark.parametrize("transitions", ["exact", "euler"])
def test_steps_are_shared_out_in_the_ratios_asked_for(process, transitions):
    if isinstance(process, hb.DiscreteVP) and transitions == "euler":
        with pytest.raises(ValueError, match=r"no times give .*its a and g jump.*transitions='exact'"):
            ReferenceChain.spaced(process, gammas.constant(10), transitions)
        return
    steps = 9 if isinstance(process, hb.LinearProcess) else 20  # its functions are slow
    rising = gammas.geometric(steps, 0.4, 1.0)
    for sizes in (rising, rising.flip(0)):
        chain = ReferenceChain.spaced(process, sizes, transitions)
        np.testing.assert_allclose(
            chain.gammas / np.asarray(sizes), math.fsum(chain.gammas) / float(sizes.sum()), rtol=1e-9
        )
        assert (chain.times[0], chain.times[-1]) == (0.0, process.T)
    if isinstance(process, hb.Brownian):
        assert math.fsum(chain.gammas) == pytest.approx(process.g**2 * process.T / 2, rel=1e-12)


def test_a_step_has_one_size_whichever_way_it_is_crossed():
    """gamma_{k+1} from x_k to x_{k+1}, gamma_k from x_k to x_{k-1} (errata K.7)."""
    chain = ReferenceChain.dsb([0.1, 0.2, 0.4])
    forward = [chain.gamma(Direction.FORWARD, k) for k in Direction.FORWARD.leaves(3)]
    backward = [chain.gamma(Direction.BACKWARD, k) for k in Direction.BACKWARD.leaves(3)]
    np.testing.assert_allclose(forward, [0.1, 0.2, 0.4])
    np.testing.assert_allclose(backward, [0.4, 0.2, 0.1])
    assert [(k, Direction.FORWARD.arrives(k)) for k in Direction.FORWARD.leaves(3)] == [(0, 1), (1, 2), (2, 3)]
    assert [(k, Direction.BACKWARD.arrives(k)) for k in Direction.BACKWARD.leaves(3)] == [(3, 2), (2, 1), (1, 0)]
    assert (Direction.FORWARD.start(3), Direction.BACKWARD.start(3)) == (0, 3)


def test_chains_are_equal_where_process_times_and_transitions_are():
    chain = ReferenceChain(PROCESSES["OU"], 4)
    assert chain == ReferenceChain(PROCESSES["OU"], np.array(chain.times))
    assert hash(chain) == hash(ReferenceChain(PROCESSES["OU"], 4))
    for other in (
        ReferenceChain(PROCESSES["OU"], 5),
        ReferenceChain(PROCESSES["OU"], 4, "euler"),
        ReferenceChain(PROCESSES["VP"], 4),
    ):
        assert chain != other
    written = json.loads(json.dumps(chain.config))
    assert written["times"] == list(chain.times)
    assert written["process"] == {"type": "OU", "theta": 0.5, "g": 1.3, "T": 2.0}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: gammas.constant(0, 0.1), ValueError, "`n` = 0 must be a whole number, at least 1"),
        (lambda: gammas.constant(3, 0.0), ValueError, r"`gamma` = 0\.0 must be a positive number"),
        (lambda: gammas.geometric(3, 1.0, -1.0), ValueError, r"`last` = -1\.0 must be a positive number"),
        (lambda: gammas.symmetric(3, 2.0, 1.0), ValueError, "`least` = 2 is above `most` = 1"),
        (lambda: gammas.symmetric(3, 1.0, 2.0, rise="sine"), ValueError, "`rise` = 'sine' is not 'linear' or 'geo"),
        (lambda: ReferenceChain(hb.OU(), 0), ValueError, "`steps` = 0 must be a whole number, at least 1"),
        (lambda: ReferenceChain(hb.OU(), [0.0, 1.0]), ValueError, r"runs from 0\.0 to 1\.0, but .* T = 5\.0"),
        (lambda: ReferenceChain(None, 3), TypeError, "`reference` must be a linear process"),
        (lambda: ReferenceChain(hb.OU(), 3, "milstein"), ValueError, "`transitions` = 'milstein' is not 'exact'"),
        (lambda: ReferenceChain(hb.VP(), 4, "euler"), ValueError, r"step 2 of the chain, .*too long.*more steps, or"),
        (lambda: ReferenceChain.dsb([0.1, 0.0]), ValueError, r"gammas\[1\] = 0 is not positive"),
        (lambda: ReferenceChain.dsb([]), ValueError, r"`gammas` has shape \(0,\)"),
        (lambda: ReferenceChain.dsb([0.1], rate=-1.0), ValueError, r"`rate` = -1\.0 must be a number, at least 0"),
        (lambda: ReferenceChain.spaced(hb.OU(), [1.0, -1.0]), ValueError, r"gammas\[1\] = -1 is not positive"),
        (lambda: ReferenceChain.spaced(hb.OU(), [[1.0]]), ValueError, r"`gammas` has shape \(1, 1\)"),
    ],
)
def test_bad_input_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
