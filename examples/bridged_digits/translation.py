"""One digit turned into another by DSB, unpaired, both ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import ot
import torch

from bridged_digits.judged import Judged, mean_and_deviation, pair_network, squared
from bridged_digits.settings import Settings
from halfbridge.training.bridge import (
    Bridge,
    Coupling,
    Examples,
    NetworkRegressor,
    ReferenceChain,
    gammas,
    ipf,
    reference_iterate,
)

__all__ = ["Pair", "measured", "translate"]


class Pair(NamedTuple):
    """The bridge after each iteration, and the held-out digits of its two classes."""

    bridges: list[Bridge]
    source: torch.Tensor
    target: torch.Tensor

    def ways(self) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
        """("end", those translated, those of the other class), and the way back."""
        return [("end", self.source, self.target), ("start", self.target, self.source)]

    def shown(self, n: int, seed: int) -> list[torch.Tensor]:
        """For both ways the states of the last bridge from n held-out digits to their translations, (N + 1, n, 1, 8, 8), at the
        times in the order in which they are gone through."""
        ways = [self.bridges[-1].trajectories(x[:n], seed, to=to, last_noise=False) for to, x, _ in self.ways()]
        return [ways[0], ways[1].flip(0)]


def translate(s: Settings, judged: Judged, method: str, seed: int, echo: Callable[[str], Any]) -> Pair:
    """DSB or DSBM between the digits of two classes that are not held out, with a Brownian reference of small noise and small
    steps at both ends. DSBM begins from minibatches paired by optimal transport."""
    x, classes = judged.digits.examples(s.copies)
    laws = [Examples(x[classes == k]) for k in (s.source, s.target)]
    sizes = gammas.symmetric(s.pair_chain, 1.0, s.pair_ratio)
    reference = ReferenceChain.dsb(sizes * (s.pair_noise / 2.0 / sizes.sum()))
    torch.manual_seed(seed)
    regressor = NetworkRegressor(
        *(pair_network(s) for _ in range(2)), settings=s.pair_training(seed), cache_paths=s.pair_cache, refresh=s.refresh,
        method=method, coupling=Coupling(laws[0], laws[1], reference, "ot", 128) if method == "dsbm" else None,
    )  # fmt: skip
    bridges = []
    for iterate in ipf(reference_iterate(laws[0], laws[1], reference), regressor, 2 * s.pair_iterations):
        if iterate.index % 2 == 0:
            assert iterate.backward is not None
            bridges.append(Bridge(iterate.forward, iterate.backward))
            echo(f"  {method}, iteration {iterate.index // 2}")
    held_out = judged.judges.held_out
    return Pair(bridges, *(held_out[judged.classes == k] for k in (s.source, s.target)))


def measured(s: Settings, judged: Judged, pairs: dict[str, Pair], seed: int) -> dict[str, Any]:
    """What is said of translated held-out digits, by each method after each iteration; and of real digits and other couplings."""
    pair = next(iter(pairs.values()))
    cost = squared(pair.source, pair.target)
    real = {}
    for k, own, other in ((s.source, pair.source, pair.target), (s.target, pair.target, pair.source)):
        fresh = judged.judges.train[judged.judges.train_classes == k]
        between = judged.between_real(torch.cat([fresh, own]), len(own), len(other))
        real[str(k)] = {"recognised": judged.taken_for(fresh, k), **between}
    rows = []
    for method, found in pairs.items():
        for i, bridge in enumerate(found.bridges):
            for (to, x, y), k in zip(found.ways(), (s.target, s.source), strict=True):
                told = _translations(s, judged, bridge, to, x, y, k, seed)
                rows.append({"method": method, "iteration": i + 1, "to": k, **told})
    return {
        "digits": [len(pair.source), len(pair.target)],
        "trained_on": [int((judged.judges.train_classes == k).sum()) for k in (s.source, s.target)],
        "rows": rows,
        "real": real,
        "untranslated": judged.distances(pair.source, pair.target),
        "independent": float(cost.mean()),
        "transport": transport(cost),
    }


def transport(cost: torch.Tensor) -> float:
    """The least mean cost of a coupling of two empirical laws, exactly, by POT."""
    n, m = cost.shape
    return float(ot.emd2([1.0 / n] * n, [1.0 / m] * m, cost.numpy()))


def _translations(
    s: Settings, judged: Judged, bridge: Bridge, to: str, x: torch.Tensor, y: torch.Tensor, k: int, seed: int
) -> dict[str, list[float]]:
    """Mean and deviation over the seeds. moved: from each digit to its translation; dealt: the same digits and translations,
    paired anew at random; repaired: at the least cost."""
    found = []
    for run in range(s.seeds):
        z = bridge.translate(x, seed + run, to=to, last_noise=False)
        cost = squared(x, z)
        found.append(
            {
                "recognised": judged.taken_for(z, k),
                **judged.distances(z, y),
                "moved": float(cost.diagonal().mean()),
                "dealt": float(cost.mean()),
                "repaired": transport(cost),
            }
        )
    return mean_and_deviation(found)
