"""A diffusion Schrödinger bridge in plain PyTorch, as one writes it after De Bortoli et al. 2021: `benchmarks.bridge`'s peer.

Algorithm and numbers are those of fit_bridge(target="mean", variance="fixed", weighting="plain", schedule="constant"): mean
matching with kernels N(x + gamma b(x, t), 2 gamma I), Gaussian noise of torch.randn, a cache of trajectories that is simulated
anew every `refresh` steps, Adam with torch's defaults, clipping by norm, averages of the parameters, which teach the next
half-bridge and which that network goes on from two half-bridges later. Networks, labels and sizes are the benchmark's, so that
what is compared is the code around the networks, and how they are called.

The code is what a careful user writes without this library: simulation under no_grad, on all paths of the cache at once, whose
states, targets and labels are stacked from lists; an average made parameter by parameter. What it does not do is what
nobody does at first: buffers that are used again, fused kernels, labels that are embedded once for a whole batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

__all__ = ["PlainBridge"]

Sampler = Callable[[int], Tensor]
Rows = tuple[Tensor, Tensor, Tensor]


@dataclass
class PlainBridge:
    """Two networks in training, "forward" and "backward", and their averages.

    start, end  samplers of the laws at x_0 and x_N: n -> (n, *shape)
    gains, gammas, times  of the reference chain, as of `ReferenceChain`
    loader      "loader": a shuffled torch.utils.data.DataLoader over the cache, as in the code published with the paper.
                "index": batches of random rows of the cache's tensors, which is faster, and what a user comes to who profiles
    simulating  a context around each simulation, for who measures it
    """

    nets: dict[str, torch.nn.Module]
    start: Sampler
    end: Sampler
    gains: tuple[float, ...]
    gammas: tuple[float, ...]
    times: tuple[float, ...]
    steps: int
    batch: int
    paths: int
    refresh: int
    lr: float
    decay: float
    clip: float
    loader: str = "loader"
    simulating: Callable[[], AbstractContextManager[object]] = nullcontext
    averages: dict[str, torch.nn.Module] = field(default_factory=dict)

    def run(self, iterations: int) -> PlainBridge:
        """IPF: each iteration trains the backward, then the forward network."""
        for _ in range(iterations):
            for way in ("backward", "forward"):
                self.half_bridge(way)
        return self

    def half_bridge(self, way: str) -> None:
        """Train one network on the chain of the other."""
        net = self.nets[way]
        if way in self.averages:
            net.load_state_dict(self.averages[way].state_dict())
        average = copy.deepcopy(net).eval().requires_grad_(False)
        optimizer = torch.optim.Adam(net.parameters(), lr=self.lr)
        gamma_of = dict(zip(self.labels(way), self.gammas if way == "forward" else self.gammas[::-1], strict=True))
        sizes = torch.tensor([gamma_of[t] for t in sorted(gamma_of)])
        known = torch.tensor(sorted(gamma_of))
        net.train()
        done = 0
        while done < self.steps:
            with self.simulating():
                data = self.simulate(way)
            for x, value, t in self.batches(data, min(self.refresh, self.steps - done)):
                gamma = sizes[torch.searchsorted(known, t)].view(-1, *[1] * (x.ndim - 1))
                loss = (x + gamma * net(x, t) - value).square().mean()
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(net.parameters(), self.clip)
                optimizer.step()
                done += 1
                rate = min(self.decay, done / (done + 9))
                with torch.no_grad():
                    for kept, now in zip(average.parameters(), net.parameters(), strict=True):
                        kept.mul_(rate).add_(now, alpha=1 - rate)
        self.averages[way] = average

    def labels(self, way: str) -> tuple[float, ...]:
        """Of the states that a chain of that direction leaves, in order."""
        return self.times[:-1] if way == "forward" else self.times[:0:-1]

    @torch.no_grad()
    def simulate(self, way: str) -> Rows:
        """A cache for the network of that direction: (states, targets, labels), N x paths rows, from the chain the other way."""
        teacher = "backward" if way == "forward" else "forward"
        forth = teacher == "forward"
        x = (self.start if forth else self.end)(self.paths)
        gammas, gains = (self.gammas, self.gains) if forth else (self.gammas[::-1], self.gains)
        states, values, labels = [], [], []
        arrived = self.times[1:] if forth else self.times[-2::-1]
        for k, (t, there, gamma) in enumerate(zip(self.labels(teacher), arrived, gammas, strict=True)):
            mean = self.mean(teacher, x, t, gamma, gains[k])
            x = mean + (2 * gamma) ** 0.5 * torch.randn_like(x)
            values.append(x + mean - self.mean(teacher, x, t, gamma, gains[k]))
            states.append(x)
            labels.append(torch.full((len(x),), there))
        return torch.stack(states).flatten(0, 1), torch.stack(values).flatten(0, 1), torch.stack(labels).flatten(0, 1)

    def mean(self, way: str, x: Tensor, t: float, gamma: float, gain: float) -> Tensor:
        """M(x) of the step that leaves time t: the reference's until there is a network."""
        if way not in self.averages:
            return gain * x
        b: Tensor = self.averages[way](x, torch.full((len(x),), t))
        return x + gamma * b

    def batches(self, data: Rows, count: int) -> Iterator[Rows]:
        """`count` batches of a cache."""
        if self.loader == "index":
            for _ in range(count):
                rows = torch.randint(len(data[0]), (self.batch,))
                yield data[0][rows], data[1][rows], data[2][rows]
            return
        loader = DataLoader(TensorDataset(*data), self.batch, shuffle=True, drop_last=len(data[0]) >= self.batch)
        while count > 0:
            for x, value, t in loader:
                yield x, value, t
                count -= 1
                if count == 0:
                    return
