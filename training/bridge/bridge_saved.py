"""A bridge read back from the folder of its run."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import torch

from halfbridge.solvers.field import Field
from halfbridge.training import checkpoint, recipe, states
from halfbridge.training.bridge.bridge_folder import read_bridge_config
from halfbridge.training.bridge.network_regressor import NetworkRegressor
from halfbridge.training.bridge.reference import ReferenceChain
from halfbridge.training.bridge.run import restore
from halfbridge.training.bridge.views import Bridge
from halfbridge.training.saved import built

__all__ = ["load_bridge"]


def load_bridge(
    folder: str | PathLike[str],
    *,
    forward_net: torch.nn.Module | None = None,
    backward_net: torch.nn.Module | None = None,
    reference: ReferenceChain | None = None,
    first: Field | None = None,
) -> Bridge:
    """The newest iterate of a run of `fit_bridge`, on the CPU: averaged networks, in eval mode and without gradients.

    Networks of this library and the reference are built from what is written; pass forward_net=, backward_net= for others, and
    reference= for a process that is not written down. first: the score that was given to the run, where its kernels are
    still those of the iterate. Nothing that is read can run code.

    FileNotFoundError where there is no run; ValueError for one without an iterate, for damaged files, for weights of another
    architecture, and for what must be passed.
    """
    folder = Path(folder)
    config = read_bridge_config(folder)
    found = checkpoint.read(folder / "checkpoints")
    state: dict[str, Any] = states.unflatten(found.tensors, found.record["state"])
    if not state["iterates"]:
        raise ValueError(f"the run in {folder} has finished no half-bridge yet; go on with it: resume=True")
    regression = config["regression"]
    regressor = NetworkRegressor(
        _net("forward_net", config, forward_net, state, folder),
        _net("backward_net", config, backward_net, state, folder),
        target=regression["target"],
        variance=regression["variance"],
        form=regression["form"] or "diagonal",
        first=first,
    )
    last = restore(regressor, reference or _reference(config["reference"], folder), state["iterates"])[-1]
    if last.backward is None:
        raise ValueError(f"the run in {folder} has no backward kernels yet; go on with it: resume=True")
    return Bridge(last.forward, last.backward)


def _net(
    name: str, config: dict[str, Any], given: torch.nn.Module | None, state: dict[str, Any], folder: Path
) -> torch.nn.Module:
    described = dict(config[name])
    shapes = described.pop("weights")
    if given is None:
        dtypes = {key: value.dtype for saved in state["iterates"] for key, value in (saved["net"] or {}).items()}
        given = built(described, dtypes, f"{name} of the run in {folder}", name)
    own = {key: list(value.shape) for key, value in given.state_dict().items()}
    for key in {**shapes, **own}:
        if shapes.get(key) != own.get(key):
            raise ValueError(
                f"{name} of the run in {folder} is of another architecture: {key!r} is {shapes.get(key, 'absent')} there and "
                f"{own.get(key, 'absent')} in the one given; pass it as it was trained"
            )
    return given


def _reference(described: dict[str, Any], folder: Path) -> ReferenceChain:
    try:
        process = recipe.build_process(described["process"])
    except ValueError as error:
        raise ValueError(
            f"the reference of the run in {folder} cannot be built from what is written; pass reference= ({error})"
        ) from error
    return ReferenceChain(process, described["times"], described["transitions"])
