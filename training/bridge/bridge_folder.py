"""The folder of a bridge's run, and what a call must agree in to go on with one.

config.json         what the run was called with: networks, reference, ends, regression, settings
checkpoints/        see `training.checkpoint`; the step is counted over all half-bridges
log.csv             a line each settings.log_every steps: see `training.log`
monitors.csv        a line each half-bridge: see `Monitor`
first.safetensors   the score that the first kernels were made from, where first= was a folder or a file: see `training.save`
samples/, monitors.png   pictures, where they are asked for
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import torch

from halfbridge.kernels import normal
from halfbridge.solvers.field import Field
from halfbridge.training import checkpoint, recipe, states
from halfbridge.training.bridge.ends import End, Examples, Normal
from halfbridge.training.bridge.monitors import Monitor, table
from halfbridge.training.bridge.network_regressor import NetworkRegressor
from halfbridge.training.bridge.reference import ReferenceChain
from halfbridge.training.durable import cannot_write, write_file
from halfbridge.training.folder import RunFolder
from halfbridge.training.runs import RunKind, check_settings
from halfbridge.training.saved import Saved, save
from halfbridge.training.settings import Settings

__all__ = [
    "BRIDGES", "SCORE", "BridgeFolder", "check_first", "describe_bridge", "describe_reference", "read_bridge_config",
]  # fmt: skip

FREE = ("iterations", "data", "first_run", "versions", "resumed", "settings")
"""What a resumed run may change at this level: how far it goes, where what it is made of was read from (the ends are compared
by their digests, a score by its values), and what `Settings.fixed` leaves free but for the steps."""
SCORE = "first.safetensors"
STATES = 8  # at which a score is written down, for each of its times
CLOSE = 0.01  # relative difference that devices and numbers of threads may make in what a score returns


class BridgeFolder(RunFolder):
    """A `RunFolder` whose config is `describe_bridge`'s, and whose steps are those of all half-bridges."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        super().__init__(path, config, BRIDGES)

    def _check_length(self, at: int) -> None:
        """A run is always within its iterations, or asked to end before what it has done: then it ends at once."""

    def write_monitors(self, rows: list[Monitor]) -> None:
        """monitors.csv. OSError, in a sentence, where there is no space."""
        text = table(rows).encode()
        try:
            write_file(self.path / "monitors.csv", text)
        except OSError as error:
            kept = "the checkpoints there are whole"
            raise cannot_write(error, "monitors.csv", self.path, len(text), kept) from error

    def keep_score(self, score: Saved) -> None:
        """Copy the score that the first kernels are made from, unless it is there: its own folder may go on, or away."""
        path = self.path / SCORE
        if not path.exists():
            options: dict[str, Any] = {"objective": score.objective}
            if score.objective is None:
                options = {"process": score.process, "predicts": score.predicts, "labels": score.labels}
            save(path, score.net, step=score.step, record=score.record, **options)

    def read(self, step: int) -> dict[str, Any]:
        """The state of a checkpoint. CheckpointError, a ValueError, for a damaged one."""
        tensors, record, _ = checkpoint.read(self.checkpoints, step)
        state: dict[str, Any] = states.unflatten(tensors, record["state"])
        return state


def describe_bridge(
    start: End, end: End, reference: ReferenceChain, regressor: NetworkRegressor, **others: Any
) -> dict[str, Any]:
    """JSON values: the networks, the reference with its gains and gammas, the end laws' digests, the regression, the cache, the
    settings and the versions, and `others`."""
    networks = {
        f"{way.value}_net": recipe.describe(net, process=reference.process)["net"] | {"weights": _weights(net)}
        for way, net in regressor.nets.items()
    }
    return {
        **networks,
        "reference": describe_reference(reference),
        "start": _describe_end(start),
        "end": _describe_end(end),
        "regression": {
            "method": "dsbm" if regressor.matching else "dsb",
            "coupling": None if regressor.coupling is None else [regressor.coupling.how, regressor.coupling.size],
            "target": regressor.target,
            "variance": regressor.variance,
            "form": regressor.form if regressor.variance == "matched" else None,
            "weighting": regressor.weighting,
            "covariance_paths": regressor.covariance_paths,
            "first": None
            if regressor.first is None
            else _describe_first(regressor.first, reference, start.sample(1, 0)),
        },
        "cache": {"paths": regressor.cache_paths, "refresh": regressor.refresh},
        "settings": regressor.settings.config,
        "versions": recipe.versions(),
        **others,
    }


def describe_reference(reference: ReferenceChain) -> dict[str, Any]:
    """Its process, times and kernels: of a process that cannot be written down the kernels tell which one it is."""
    return {
        "process": recipe.describe(torch.nn.Identity(), process=reference.process)["process"],
        "times": list(reference.times),
        "transitions": reference.transitions,
        "gains": list(reference.gains),
        "gammas": list(reference.gammas),
    }


def check_first(field: Field, reference: ReferenceChain, config: dict[str, Any], device: Any, folder: Path) -> None:
    """ValueError unless it is the score that the run's first kernels were made from."""
    end = config["start"]
    like = torch.empty(1, *end["shape"], dtype=getattr(torch, end["dtype"]), device=device)
    old, new = config["regression"]["first"], _describe_first(field, reference, like)
    remedy = "pass first= the score that it was begun with"
    recipe.check_same({"first": old}, {"first": _same(old, new)}, f"the run in {folder}", remedy)


def read_bridge_config(folder: Path) -> dict[str, Any]:
    """The config.json of a bridge's run. FileNotFoundError without one, ValueError for another's."""
    path = folder / "config.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{folder} is no run's folder: it has no config.json; pass the folder that was out= in training"
        )
    config = recipe.read(path)
    if not {"forward_net", "backward_net", "reference", "regression", "settings"} <= config.keys():
        raise ValueError(f"the run in {folder} is not of fit_bridge; halfbridge.training.load reads those of fit_score")
    check_settings(config["settings"], folder)
    return config


def _trained(*configs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """All but FREE; the steps of a half-bridge are of what is trained."""
    old, new = (
        {name: value for name, value in config.items() if name not in FREE}
        | {"settings": {**Settings.load(config["settings"]).fixed(), "steps": config["settings"]["steps"]}}
        for config in configs
    )
    new["regression"] = new["regression"] | {
        "first": _same(old["regression"].get("first"), new["regression"].get("first"))
    }
    return old, new


BRIDGES = RunKind(read_bridge_config, _trained)
"""Runs of `fit_bridge`."""


def _describe_end(law: End) -> dict[str, Any]:
    """Its type and the digest of all examples, or of a few samples, which follow from its parameters."""
    if isinstance(law, Normal):
        return {
            "type": "Normal",
            "shape": list(law.shape),
            "mean": law.mean,
            "std": law.std,
            "dtype": str(law.dtype)[6:],
        }
    values = law.data if isinstance(law, Examples) else law.sample(64, 0)
    flat = values.detach().cpu().contiguous().flatten().view(torch.uint8)
    return {
        "type": type(law).__name__,
        "shape": list(values.shape[1:]),
        "dtype": str(values.dtype)[6:],
        "sha256": hashlib.sha256(flat.numpy().data).hexdigest(),
    }


def _describe_first(field: Field, reference: ReferenceChain, like: torch.Tensor) -> dict[str, Any]:
    """What it predicts, and `values`: at fixed states, at the chain's first, middle and last times, one component of the noise
    that it tells. They are the same in every process, but no bits: see `_same`."""
    process, values = reference.process, []
    for k in (1, (1 + reference.steps) // 2, reference.steps):
        t = reference.times[k]
        x, along = (
            normal((STATES, *like.shape[1:]), 0, draw, k * STATES, dtype=like.dtype, device=like.device)
            for draw in range(2)
        )
        with torch.no_grad():
            noise = field(t, x * math.hypot(float(process.alpha(t)), float(process.sigma(t)))).noise
        values += (noise * along).double().flatten(1).sum(1).div(math.sqrt(like[0].numel())).tolist()
    return {"predicts": field.predicts, "values": values}


def _same(old: Any, new: Any) -> Any:
    """`new` with the values of `old` where both describe one score, to the rounding of devices."""
    if not isinstance(old, dict) or not isinstance(new, dict) or len(old["values"]) != len(new["values"]):
        return new
    gap = max(abs(a - b) for a, b in zip(old["values"], new["values"], strict=True))
    return {**new, "values": old["values"]} if gap <= CLOSE * max(map(abs, old["values"])) else new


def _weights(net: torch.nn.Module) -> dict[str, list[int]]:
    """Names and shapes: what says that a network of the user's has another architecture."""
    return {name: list(value.shape) for name, value in net.state_dict().items()}
