"""Trained networks on disk: saved in one file, and loaded from it or from a run's folder, ready to sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from halfbridge.nets import build as nets
from halfbridge.nets.adapter import Labels, as_field
from halfbridge.solvers.field import PREDICTIONS, Field
from halfbridge.solvers.processes import Process
from halfbridge.training import checkpoint, netfile, objectives, recipe, states
from halfbridge.training import labels as label_types
from halfbridge.training.arguments import class_count
from halfbridge.training.objectives import Denoising, Objective
from halfbridge.training.runs import check_untouched

__all__ = ["Saved", "built", "load", "save"]


@dataclass(frozen=True)
class Saved:
    """A network that was loaded.

    net         in eval mode, on the CPU
    process     of the field; predicts: as in `nets.as_field`
    labels      as there, for a network without an objective: its own has them
    objective   what it was trained with; None if that was not saved, or could not be written down and is not needed
    step        how many steps it was trained
    average     the decay of the average that was loaded; 0.0: the weights of the last step; None: a file, which has one
    record      a run's config, or what `save` was given
    """

    net: torch.nn.Module
    process: Process
    predicts: str
    labels: Labels | None
    objective: Objective | None
    step: int
    average: float | None
    record: dict[str, Any]

    @property
    def classes(self) -> int:
        """How many classes the network knows; 0: none."""
        return class_count(self.net) or 0

    @property
    def no_class(self) -> bool | None:
        """Whether the network, if it has classes, was trained on examples of no class too, as guidance needs (class_dropout);
        None: not known, of a file whose record does not say."""
        return self.record.get("no_class")

    @property
    def data(self) -> dict[str, Any] | None:
        """The config in the record of the data trained on, which `data.load` takes; None where that came as tensors."""
        return self.record.get("data")

    @property
    def field(self) -> Field:
        """The network as a field, of no class if it has classes. ValueError as of `as_field`."""
        return self.as_field()

    def as_field(self, **options: Any) -> Field:
        """The network as a field; options as of `nets.as_field`: classes, guidance. ValueError for no class, and guidance
        away from it, of a network that was never trained on that."""
        if self.classes and self.no_class is False:
            _check_classes(**options)
        if self.objective is not None:
            return self.objective.field(self.net, **options)
        return as_field(self.net, self.process, self.predicts, **{"labels": self.labels, **options})


def save(
    path: str | PathLike[str],
    net: torch.nn.Module,
    *,
    objective: Objective | None = None,
    process: Process | None = None,
    predicts: str = "noise",
    labels: Labels | None = None,
    step: int = 0,
    record: Mapping[str, Any] | None = None,
) -> None:
    """Save a network with what `load` needs to sample from it, as one safetensors file, whole or not at all.

    path: a name ending in .safetensors; a file there is replaced. net: stored in its own dtypes.
    objective: what it was trained with; or in place of one process, predicts and labels as in `nets.as_field`.
    record: JSON values, given back as `Saved.record`.

    An MLP, UNet or Precondition is written down with its arguments; of another network the weights alone, and `load` asks
    for net=. In the same manner a LinearProcess is asked for again (process=), and a function of the user's (objective=).
    Raises ValueError for bad arguments, and OSError when there is no space, the file before unharmed.
    """
    path = Path(path)
    if (objective is None) == (process is None):
        raise ValueError(
            "pass objective=, or process= with predicts= and labels=: "
            + ("neither is there" if process is None else "not both, as the objective has its own")
        )
    if predicts not in PREDICTIONS:
        raise ValueError(f"predicts = {predicts!r} is not one of {', '.join(map(repr, PREDICTIONS))}")
    tensors = {f"net.{name}": value for name, value in net.state_dict().items()}
    parameters: object = objective
    if isinstance(parameters, torch.nn.Module):
        tensors |= {f"objective.{name}": value for name, value in parameters.state_dict().items()}
    described = recipe.describe(net, objective=objective, process=process, predicts=predicts, labels=labels)
    versions = recipe.versions()
    netfile.write(path, tensors, {**described, "step": step, "versions": versions, "record": dict(record or {})})


def load(
    path: str | PathLike[str],
    *,
    net: torch.nn.Module | None = None,
    process: Process | None = None,
    objective: Objective | None = None,
    average: float | None = None,
) -> Saved:
    """The network of a run's folder, or of a file that `save` wrote.

    Of a folder it is the newest checkpoint's, and of its averages the first; `average` is the decay of another one, and 0.0
    means the weights of the last step themselves. The network is built from its description, with requires_grad off; or
    `net` is filled, which must have the same architecture and dtypes. process, objective: those that could not be written
    down, or others to use the network under.

    Nothing that is read can run code: the files are safetensors and JSON, and types are looked up in fixed tables.
    Raises FileNotFoundError where there is nothing; ValueError for files that are damaged, for weights of another
    architecture (naming the first that differ), and for what must be passed as it could not be written down.
    """
    path = Path(path)
    if path.is_dir():
        config, tensors, step, average = _read_run(path, average)
        record = config
    elif average is not None:
        raise ValueError(f"average = {average} chooses among a run's averages, but {path} is no folder; leave it out")
    else:
        config, tensors = netfile.read(path)
        record, step = config["record"], config["step"]
    net = _net(config["net"], net, _under("net.", tensors), path)
    if objective is None:
        if process is None:
            process = _process(config["process"], path)
        objective = _objective(config, process, path)
    parameters: object = objective
    if isinstance(parameters, torch.nn.Module):
        _fill(parameters.eval(), _under("objective.", tensors), f"the objective in {path}", "objective")
    labels = None
    if objective is not None:
        process, predicts = objective.process, objective.predicts
    elif process is None:
        raise ValueError(f"{path} names no process; pass process=")
    else:
        predicts, labels = config["predicts"], label_types.build(config["labels"], process)
    return Saved(net.eval(), process, predicts, labels, objective, step, average, record)


def _check_classes(classes: int | torch.Tensor | None = None, guidance: float = 0.0, **others: Any) -> None:
    untold = classes is None or bool((torch.as_tensor(classes) < 0).any())
    if untold or guidance:
        what = f"guidance = {guidance}" if guidance else f"classes = {None if classes is None else -1}"
        raise ValueError(
            f"{what}: the network was trained with class_dropout = 0, always told the class, so that what it returns for none "
            f"was never trained; {'leave guidance out' if guidance else 'name a class'}, or train with class_dropout = 0.1"
        )


def _net(
    described: Mapping[str, Any], net: torch.nn.Module | None, weights: dict[str, torch.Tensor], path: Path
) -> torch.nn.Module:
    if net is None:
        dtypes = {name: value.dtype for name, value in weights.items()}
        net = built(described, dtypes, f"the network in {path}", "net").requires_grad_(False)
    _fill(net, weights, f"the network in {path}", "net")
    return net


def built(described: Mapping[str, Any], dtypes: Mapping[str, torch.dtype], where: str, name: str) -> torch.nn.Module:
    """The network that is written down, its tensors in these dtypes by name; what it draws at first is to be replaced.

    where: what it is called in the ValueError for one that cannot be built, which asks for the argument `name`.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            net = nets.build(described)
    except ValueError as error:
        raise ValueError(
            f"{where} is a {described.get('type')}, which cannot be built from what is written; pass "
            f"{name}=, made as it was for training ({error})"
        ) from error
    for key, value in [*net.named_parameters(), *net.named_buffers()]:
        value.data = value.data.to(dtypes.get(key, value.dtype))
    return net


def _process(described: Mapping[str, Any] | None, path: Path) -> Process | None:
    if described is None:
        return None
    try:
        return recipe.build_process(described)
    except ValueError as error:
        raise ValueError(
            f"the process in {path} is a {described.get('type')}, which cannot be built from what is written; pass "
            f"process=, the one it was trained with ({error})"
        ) from error


def _objective(config: Mapping[str, Any], process: Process | None, path: Path) -> Objective | None:
    """None where prediction and labels say all: no objective was saved, or one of denoising with functions in it."""
    described, labels = config["objective"], config.get("labels")
    if described is not None and described["type"] in objectives.NAMES:
        options = {key: value for key, value in described.items() if key != "type"}
        with torch.random.fork_rng(devices=[]):
            return objectives.make(described["type"], process, **options)
    plain = described is None or described["type"] == f"{Denoising.__module__}.{Denoising.__qualname__}"
    if plain and (labels is None or labels["type"] in label_types.TYPES):
        return None
    what = f"labels, {labels['type']}," if plain and labels else f"objective, {described['type']},"
    raise ValueError(
        f"the {what} in {path} cannot be built from what is written; pass objective=, as it was for training, or "
        "objectives.Denoising(process, predicts, labels=labels) for a plain field"
    )


def _fill(module: torch.nn.Module, weights: Mapping[str, torch.Tensor], where: str, name: str) -> None:
    """Load the weights, all and only those that the module has, in its shapes and dtypes."""
    states.check_same_tensors(weights, module, where, name)
    module.load_state_dict(dict(weights))


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _read_run(folder: Path, average: float | None) -> tuple[dict[str, Any], dict[str, torch.Tensor], int, float]:
    """Config, model, step and decay of a run's newest checkpoint."""
    if not (folder / "config.json").exists():
        inside = (folder.parent / "config.json").exists()
        raise FileNotFoundError(
            f"{folder} is no run's folder: it has no config.json; "
            + (f"pass {folder.parent}" if inside else "pass the folder that training wrote to")
        )
    found = checkpoint.read(folder / "checkpoints")
    config = check_untouched(folder, found)
    decays = config["settings"]["ema_decay"]
    decays = decays if isinstance(decays, list) else [decays]
    if average is None:
        average = decays[0]
    prefixes = {0.0: "model/"} | {decay: f"averages/{i}/model/" for i, decay in enumerate(decays)}
    if average not in prefixes:
        raise ValueError(
            f"average = {average} is none of the run's: {', '.join(map(str, decays))}, or 0.0 for the weights themselves"
        )
    return config, _under(prefixes[average], found.tensors), found.step, average
