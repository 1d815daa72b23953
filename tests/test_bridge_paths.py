"""Path laws of GaussianBridge: Markov, sampled exactly, the same bits in any batch."""

import itertools
import math

import torch
from bridges import P0, P1, PROCESSES, by_process, close, gaussian

import halfbridge as hb
from halfbridge.solvers.reference.gaussian_bridge import GaussianBridge

F64 = torch.float64


@by_process
def test_the_path_law_is_markov_and_holds_the_ends(process):
    """Cov(X_u, X_t) = Cov(X_u, X_s) Cov(X_s)^-1 Cov(X_s, X_t) for u < s < t, and the reversed times reverse the blocks."""
    bridge = GaussianBridge(P0, P1, process)
    times = [f * process.T for f in (0.0, 0.2, 0.55, 0.7, 1.0)]
    law = bridge.joint(times)
    block = law.cov.reshape(5, 3, 5, 3).permute(0, 2, 1, 3)
    for u, s, t in itertools.combinations(range(5), 3):
        close(block[u, s] @ torch.linalg.solve(block[s, s], block[s, t]), block[u, t], 1e-10)
    ends = torch.cat([law.cov[:3], law.cov[-3:]])[:, [0, 1, 2, 12, 13, 14]]
    close(ends, bridge.coupling().cov, 1e-14)
    back = bridge.joint(times[::-1])
    close(back.cov.reshape(5, 3, 5, 3).flip(0, 2).reshape(15, 15), law.cov, 1e-15)
    close(back.mean.reshape(5, 3).flip(0).reshape(15), law.mean, 1e-15)


def test_paths_have_the_moments_of_the_joint_law():
    """Means and covariances of 40 000 paths within 5.5 standard errors, 12 + 78 numbers."""
    n, bridge = 40_000, GaussianBridge(gaussian(2, 0), gaussian(2, 1), PROCESSES["OU"])
    times = [0.1, 0.5, 1.4, 1.9]
    law = bridge.joint([0.0, *times, 2.0])
    x = bridge.sample_paths(n, [0.0, *times, 2.0], seed=7).permute(1, 0, 2).reshape(n, 12)
    assert bool(((x.mean(0) - law.mean).abs() < 5.5 * (law.cov.diagonal() / n).sqrt()).all())
    moment, c = (x - law.mean).mT @ (x - law.mean) / n, law.cov
    error = ((torch.outer(c.diagonal(), c.diagonal()) + c**2) / n).sqrt()
    assert bool(((moment - c).abs() < 5.5 * error).all())


def test_a_path_is_exact_given_its_normals():
    """The path is linear in its normals: with z the generator's, x_k follows the pinned transitions of Brownian motion."""
    bridge = GaussianBridge(P0, P1, hb.Brownian(0.8, 2.0))
    x = bridge.sample_paths(5, [0.0, 0.5, 1.25, 2.0], seed=3)
    ends = bridge.coupling().sample(5, seed=3)
    close(torch.cat([x[0], x[3]], 1), ends, 1e-15)
    z = [hb.kernels.normal((5, 3), 3, draw=k, dtype=F64) for k in range(1, 4)]
    close(x[1], x[0] + 0.25 * (x[3] - x[0]) + 0.8 * math.sqrt(0.5 * 1.5 / 2) * z[1], 1e-14)
    close(x[2], x[1] + 0.5 * (x[3] - x[1]) + 0.8 * math.sqrt(0.75 * 0.75 / 1.5) * z[2], 1e-14)


def test_a_path_has_the_same_bits_whatever_the_batch_and_the_direction():
    bridge, times = GaussianBridge(P0, P1, hb.VP()), [0.05, 0.3, 0.31, 1.0]
    whole = bridge.sample_paths(50, times, seed=5)
    assert whole.shape == (4, 50, 3)
    for first, n in ((0, 1), (7, 3), (49, 1)):
        assert torch.equal(bridge.sample_paths(n, times, seed=5, first=first), whole[:, first : first + n])
    assert torch.equal(bridge.sample_paths(50, times[::-1], seed=5), whole.flip(0))
    assert not torch.equal(bridge.sample_paths(50, times, seed=6), whole)
