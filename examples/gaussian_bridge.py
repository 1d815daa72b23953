"""A diffusion Schrödinger bridge between two Gaussians by networks, against its closed form.

    python examples/gaussian_bridge.py [--dim 5] [--steps 1000] [--iterations 6] [--variance matched] [--method dsb]

Prints both couplings' errors: |mean| and covariance, relative in the Frobenius norm, over 200 000 pairs each.
"""

from __future__ import annotations

import argparse
import time

import torch

import halfbridge as hb
from halfbridge.training.bridge import ReferenceChain, fit_bridge


def gaussian(d: int, seed: int, spread: float) -> hb.reference.Gaussian:
    """A random Gaussian with eigenvalues of at least 0.3 spread^2."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(d, d, generator=generator, dtype=torch.float64)
    mean = 0.5 * torch.randn(d, generator=generator, dtype=torch.float64)
    return hb.reference.Gaussian(mean, spread**2 * (a @ a.mT / d + 0.3 * torch.eye(d)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=5)
    parser.add_argument("--chain", type=int, default=12, help="steps of the chain")
    parser.add_argument("--steps", type=int, default=1000, help="optimiser steps of a half-bridge")
    parser.add_argument("--iterations", type=int, default=6)
    parser.add_argument("--variance", default="matched")
    parser.add_argument("--method", default="dsb")
    parser.add_argument("--out", default=None)
    chosen = parser.parse_args()

    d, process = chosen.dim, hb.OU(0.5, 1.0, 1.0)
    laws = gaussian(d, 0, 1.0), gaussian(d, 1, 1.2)
    torch.manual_seed(0)
    nets = [hb.nets.MLP(d, hidden=64, depth=1) for _ in range(2)]
    data = [law.sample(100_000, 10 + k).float() for k, law in enumerate(laws)]
    started = time.process_time()
    made = fit_bridge(
        *nets, *data, ReferenceChain(process, chosen.chain), method=chosen.method, variance=chosen.variance, form="full",
        iterations=chosen.iterations, steps=chosen.steps, batch_size=512, lr=3e-3, schedule="cosine", ema_decay=0.99,
        cache_paths=4096, covariance_paths=65536, out=chosen.out, progress=True,
    )  # fmt: skip
    seconds = time.process_time() - started

    star = hb.reference.GaussianBridge(*laws, process).coupling()
    for law, to in zip(laws, ("end", "start"), strict=True):
        x = law.sample(200_000, 99).float()
        y = made.translate(x, 7, to=to)
        z = torch.cat([x, y] if to == "end" else [y, x], 1).double()
        mean = (z.mean(0) - star.mean).abs().max()
        cov = (torch.cov(z.mT) - star.cov).norm() / star.cov.norm()
        print(f"to the {to}: mean within {float(mean):.4f}, covariance {100 * float(cov):.2f} %")
    print(f"{made.stopped}; {made.iterate.index} half-bridges of {chosen.steps} steps, {seconds:.0f} s of CPU")


if __name__ == "__main__":
    main()
