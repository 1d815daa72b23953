"""Noise is counted: what must be independent never shares a (seed, draw, index), over a whole fit with all its parts."""

import contextlib
import itertools
from collections import Counter, defaultdict

import pytest
from bridge_nets import F64, NEAR0, NEAR1, ONE, nets

from halfbridge.solvers.draws import CHOICE
from halfbridge.training.bridge import (
    Direction,
    Examples,
    Normal,
    ReferenceChain,
    couplings,
    covariances,
    ends,
    fit_bridge,
    matching,
    monitors,
    network_regressor,
    transitions,
)
from halfbridge.training.bridge.cache import TrajectoryCache
from halfbridge.training.bridge.monitors import Monitors

STEPS = 3
FITS = {
    "dsb, full": {"variance": "matched", "form": "full"},
    "dsb to a prior, reused rows": {
        "variance": "matched",
        "form": "scalar",
        "refresh": 4,
        "end": Normal((2,), dtype=F64),
    },
    "dsbm": {"method": "dsbm", "variance": "matched", "form": "full"},
    "dsbm, sinkhorn": {"method": "dsbm", "coupling": "sinkhorn", "coupling_size": 4},
}


class Ledger:
    """Who drew which normals and words: `uses[purpose]` counts (seed, draw, index)."""

    def __init__(self, patch):
        self.uses, self.purpose = defaultdict(Counter), ["elsewhere"]
        for module, name in ((ends, "normal"), (covariances, "normal")):
            patch.setattr(
                module,
                name,
                self.noting(
                    getattr(module, name), lambda shape, seed, draw=0, first=0, **k: (shape[0], seed, draw, first)
                ),
            )
        for module in (ends, couplings):
            patch.setattr(
                module,
                "choice_words",
                self.noting(module.choice_words, lambda n, seed, first: (n, seed, CHOICE, first)),
            )
        for module in (transitions, covariances, matching):
            patch.setattr(module, "combine", self.noting(module.combine, self.of_combine))

    def of_combine(self, vectors, coefficients, noise=None, **options):
        return None if noise is None else (len(vectors[0]), noise.seed, noise.draw, noise.first)

    def noting(self, function, read):
        def noted(*args, **options):
            found = read(*args, **options)
            if found is not None:
                n, seed, draw, first = found
                self.uses[self.purpose[-1]].update((seed, draw, first + i) for i in range(n))
            return function(*args, **options)

        return noted

    @contextlib.contextmanager
    def under(self, purpose):
        self.purpose.append(purpose)
        yield
        self.purpose.pop()

    def called(self, patch, owner, name, purpose):
        """What `owner.name` draws is for `purpose(*its arguments)`."""
        function = getattr(owner, name)

        def inside(*args, **options):
            with self.under(purpose(*args)):
                return function(*args, **options)

        patch.setattr(owner, name, inside)


@pytest.fixture
def ledger(monkeypatch):
    made = Ledger(monkeypatch)
    held = set()

    def refreshed(cache, half, seed, refresh):
        if (half.index, refresh) in held:  # nothing is drawn
            return "elsewhere"
        held.add((half.index, refresh))
        return ("training", half.index, refresh)

    made.called(monkeypatch, TrajectoryCache, "hold", refreshed)
    for name in ("residual_covariances", "variance_factors"):
        made.called(monkeypatch, network_regressor, name, lambda half, *rest: ("covariances", half.index))
    made.called(monkeypatch, Monitors, "_sample", lambda self, law, number: ("law", law is self.start, number))
    made.called(monkeypatch, Monitors, "_ends", lambda self, law: ("measured", law.transitions.direction))
    for name in ("path_kl", "path_energy"):  # on the same paths
        made.called(monkeypatch, monitors, name, lambda law, *rest: ("kl and energy",))
    return made


@pytest.mark.parametrize("kind", FITS)
def test_nothing_that_must_be_independent_shares_noise(kind, ledger):
    """Over all parts of a run: every refresh of every half-bridge, the pairs of couplings, covariances, the monitors' samples, and the
    translations there and back with one seed. Within a part every number is drawn once, but for monitors, which draw the same
    again for each iterate."""
    options = {"start": Examples(NEAR0.sample(50, 8)), "end": Examples(NEAR1.sample(50, 9)), "reference": ReferenceChain(ONE, STEPS),
               "iterations": 2, "steps": 5, "batch_size": 8, "cache_paths": 8, "covariance_paths": 12, "monitor_paths": 10}  # fmt: skip
    made = fit_bridge(*nets(dtype=F64), **{**options, **FITS[kind]})
    assert len(made.floors) == 4
    x = NEAR0.sample(6, 1)
    for to in ("end", "start"):
        with ledger.under(("translation", to)):
            made.translate(x, 77, to=to)
    uses = {purpose: count for purpose, count in ledger.uses.items() if purpose != "elsewhere"}
    assert sum(purpose[0] == "training" for purpose in uses) >= 2 * 4
    assert {("kl and energy",), *(("measured", way) for way in Direction)} <= uses.keys()
    assert sum(purpose[0] == "law" for purpose in uses) == 4
    assert any(purpose[0] == "covariances" for purpose in uses) == ("matched" in FITS[kind].values())
    for purpose, count in uses.items():
        if purpose[0] in ("training", "covariances", "translation"):
            assert max(count.values()) == 1, purpose
    for (a, one), (b, other) in itertools.combinations(uses.items(), 2):
        if {a[0], b[0]} == {"law"} and a[1] != b[1]:
            continue  # samples of the two ends are never compared
        assert not one.keys() & other.keys(), (a, b)
