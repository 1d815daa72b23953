"""A bridge read back from the folder of its run."""

from __future__ import annotations

import warnings
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from halfbridge.solvers.field import Field
from halfbridge.training import checkpoint, recipe, states
from halfbridge.training.bridge.bridge_folder import BRIDGES, SCORE, check_first, describe_reference, read_bridge_config
from halfbridge.training.bridge.network_regressor import NetworkRegressor
from halfbridge.training.bridge.reference import ReferenceChain
from halfbridge.training.bridge.run import restore
from halfbridge.training.bridge.views import Bridge
from halfbridge.training.runs import check_untouched
from halfbridge.training.saved import built, load

__all__ = ["load_bridge"]


def load_bridge(
    folder: str | PathLike[str],
    *,
    forward_net: torch.nn.Module | None = None,
    backward_net: torch.nn.Module | None = None,
    reference: ReferenceChain | None = None,
    first: Field | None = None,
    device: torch.device | str = "cpu",
) -> Bridge:
    """The newest iterate of a run of `fit_bridge`, on `device`: averaged networks, in eval mode and without gradients.

    Networks of this library and the reference are built from what is written; pass forward_net=, backward_net= for others, and
    reference= for a process that is not written down. first: the score that was given to the run as a Field, where its kernels
    are still those of the iterate, on `device`; one that was given as a folder is kept in the run. Nothing that is read can
    run code. Of a run that diverged it is the last good iterate, with a RuntimeWarning that says why.

    FileNotFoundError where there is no run; ValueError for one without an iterate, for damaged files, for a config.json that is
    not what the checkpoint was trained with, for weights of another architecture, another reference or another score, and for
    what must be passed.
    """
    folder = Path(folder)
    read_bridge_config(folder)
    found = checkpoint.read(folder / "checkpoints")
    config = check_untouched(folder, found, BRIDGES)
    state: dict[str, Any] = states.unflatten(found.tensors, found.record["state"])
    diverged = state["diverged"]
    good = [one for one in state["iterates"] if diverged is None or one["index"] <= diverged["good"]]
    if not good:
        left = "go on with it: resume=True" if diverged is None else diverged["why"]
        raise ValueError(f"the run in {folder} has finished no half-bridge yet; {left}")
    regression = config["regression"]
    if first is None and (folder / SCORE).exists() and any(one["net"] is None for one in good):
        score = load(folder / SCORE)
        score.net.to(device)
        first = score.field
    chain = _reference(config["reference"], reference, folder)
    if first is not None:
        check_first(first, chain, config, device, folder)
    regressor = NetworkRegressor(
        _net("forward_net", config, forward_net, state, folder).to(device),
        _net("backward_net", config, backward_net, state, folder).to(device),
        target=regression["target"],
        variance=regression["variance"],
        form=regression["form"],
        first=first,
    )
    last = restore(regressor, chain, good)[-1]
    if last.backward is None:
        raise ValueError(f"the run in {folder} has no backward kernels yet; go on with it: resume=True")
    if diverged is not None:
        warnings.warn(f"{diverged['why']}. The last good iterate is returned", RuntimeWarning, stacklevel=2)
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


def _reference(described: dict[str, Any], given: ReferenceChain | None, folder: Path) -> ReferenceChain:
    if given is not None:
        remedy = "pass the reference that it was trained under, or leave it out where it can be built"
        recipe.check_same(described, describe_reference(given), f"the reference of the run in {folder}", remedy)
        return given
    try:
        process = recipe.build_process(described["process"])
    except ValueError as error:
        raise ValueError(
            f"the reference of the run in {folder} cannot be built from what is written; pass reference= ({error})"
        ) from error
    return ReferenceChain(process, described["times"], described["transitions"])
