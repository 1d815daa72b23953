"""Data that a run was not trained on, where there are any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halfbridge.training import data as data_sets
from halfbridge.training.data import Dataset
from halfbridge.training.data.loading import POINTS

__all__ = ["unseen"]


def unseen(config: Mapping[str, Any], seed: int, n: int | None = None) -> tuple[Dataset, str]:
    """The data and what they are to the run, whose own were `data.load(**config)`: the part that was held out, n fresh points of
    a law in the plane (default: as many as the run's) or the test split; else the run's own."""
    if "holdout" in config:
        return data_sets.load(**{**_whole(config), "split": "test"}), "held out of training"
    if config["name_or_path"] in POINTS:
        fresh = {"n": config["n"] if n is None else n, "seed": (config["seed"] + 1 + seed) % 2**64}
        return data_sets.load(**{**config, **fresh}), "a fresh sample"
    if config.get("split") != "test":
        try:
            return data_sets.load(**{**_whole(config), "split": "test"}), "the test split"
        except ValueError:  # it comes in one piece
            pass
    return data_sets.load(**config), "the ones it was trained on"


def _whole(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without the choice of a subset, which was of the training data; its classes are no such choice."""
    return {key: value for key, value in config.items() if key not in ("n", "n_per_class")}
