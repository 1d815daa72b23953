"""Networks and noise schedules of Hugging Face diffusers, from a local folder or an object; nothing is ever downloaded."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from halfbridge.nets.adapter import as_field
from halfbridge.nets.labels import steps
from halfbridge.solvers.field import Field
from halfbridge.solvers.processes import DiscreteVP

__all__ = ["DiffusersNet", "diffusers_field", "diffusers_process", "from_diffusers"]

Source = str | os.PathLike[str] | Any

PREDICTS = {"epsilon": "noise", "sample": "data", "v_prediction": "velocity"}
SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


class DiffusersNet(torch.nn.Module):
    """net(x, t) = model(x, t).sample of a diffusers UNet2DModel; with classes, net(x, t, classes).

    x: (batch, channels, height, width), t: (batch,) timesteps counted from 0, fractions too (integers where the model
    looks them up in a table). classes: (batch,) integers; -1, no class, is the row `null_class` of the model's table, and
    refused where that is None: diffusers itself has no such row, a training with dropped classes often takes the last.

    ValueError for a model whose classes are not rows of a table (class_embed_type), and a null_class that is none.
    """

    def __init__(self, model: torch.nn.Module, *, null_class: int | None = None) -> None:
        super().__init__()
        config: Any = model.config
        if config.get("class_embed_type") is not None:
            raise ValueError(
                f"the model has class_embed_type = {config['class_embed_type']!r}; only tables (num_class_embeds) are read as "
                "classes: write the network as a function net(x, t) that calls the model"
            )
        rows = config.get("num_class_embeds") or 0
        if null_class is not None and not 0 <= null_class < rows:
            raise ValueError(
                f"null_class = {null_class} is no row of the model's {rows} classes; leave it out, or pass one"
            )
        self.model, self.null_class = model, null_class
        self.training = model.training
        self.classes: int = rows - 1 if null_class is not None and null_class == rows - 1 else rows

    def forward(self, x: torch.Tensor, t: torch.Tensor, classes: torch.Tensor | None = None) -> torch.Tensor:
        if classes is not None:
            if self.null_class is not None:
                classes = classes.where(classes >= 0, self.null_class)
            elif bool((classes < 0).any()):
                raise ValueError(
                    "classes has -1 (no class), for which the model has no row; pass classes, or null_class= to "
                    "from_diffusers or diffusers_field where one of its rows was trained as that"
                )
        sample: torch.Tensor = self.model(x, t, class_labels=classes).sample
        return sample

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())


def from_diffusers(source: Source, *, null_class: int | None = None, variant: str | None = None) -> DiffusersNet:
    """The network of a diffusers UNet2DModel, as net(x, t) or net(x, t, classes).

    source: the model, used as it is; or a local folder, the model's own (config.json and weights) or that of a pipeline
    (model_index.json, unet/), then in eval mode. Weights are read from safetensors only, never from pickles. variant: as
    diffusers has it, "fp16" for diffusion_pytorch_model.fp16.safetensors. null_class: see `DiffusersNet`.

    Nothing is downloaded: ValueError for a source that is no local folder, before diffusers is asked, and for one without a
    UNet2DModel or without safetensors; TypeError for another model; ImportError without the extra halfbridge[diffusers].
    """
    if isinstance(source, torch.nn.Module):
        if not isinstance(source, _unet_class()):
            raise TypeError(
                f"source is a {type(source).__name__}; pass a UNet2DModel, or a local folder that holds one"
            )
        return DiffusersNet(source, null_class=null_class)
    folder = _folder("source", source)
    if (folder / "model_index.json").is_file():
        folder = folder / "unet"
    config = _read(folder / "config.json", f"source = {str(source)!r} holds no model")
    if config.get("_class_name") != "UNet2DModel":
        raise ValueError(f"{folder} holds a {config.get('_class_name')}; only UNet2DModel is read")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{folder} has no weights in *.safetensors, and pickled ones are never loaded; convert them where you trust them: "
            "model.save_pretrained(folder, safe_serialization=True)"
        )
    with torch.random.fork_rng(devices=[]):  # without accelerate the model is first made with random weights
        model = _unet_class().from_pretrained(str(folder), local_files_only=True, use_safetensors=True, variant=variant)
    return DiffusersNet(model.eval(), null_class=null_class)


def diffusers_process(source: Source) -> tuple[DiscreteVP, str]:
    """(process, predicts) of a diffusers noise schedule: the chain that the network was trained on, and what it predicts.

    source: a scheduler; its config, a dict; the file scheduler_config.json; or a local folder with that file, or with
    scheduler/, as a pipeline's. diffusers itself is not needed.

    The betas are those of beta_schedule "linear", "scaled_linear" (linear in the root) and "squaredcos_cap_v2" (Nichol and
    Dhariwal 2021, capped at 0.999), or trained_betas, in float64; diffusers computes its own in float32 (alpha^2 is off by 1e-5
    at most). predicts is "noise", "data" or "velocity" for prediction_type "epsilon",
    "sample" and "v_prediction". Step k of the process is timestep k - 1. What belongs to a sampler (spacing of timesteps,
    clipping, its last step) is not read: choose solver and grid here.

    ValueError, by name, for schedules and predictions that are not these, betas rescaled to no signal at the end
    (their last step has no finite log-SNR), missing entries, and a source that is no local folder or file.
    """
    config = _scheduler_config(source)
    kind = config.get("_class_name", "the scheduler")
    if config.get("rescale_betas_zero_snr"):
        raise ValueError(
            f"{kind} has rescale_betas_zero_snr = True: its last step keeps no signal, which DiscreteVP excludes"
        )
    if config.get("snr_shift_scale", 1.0) not in (None, 1.0):
        raise ValueError(f"{kind} has snr_shift_scale = {config['snr_shift_scale']}, which is not read; only 1.0 is")
    predicted = config.get("prediction_type", "epsilon")
    if predicted not in PREDICTS or config.get("predict_epsilon") is False:
        named = predicted if predicted not in PREDICTS else "predict_epsilon = False"
        raise ValueError(f"{kind} has prediction_type {named!r}; only {', '.join(map(repr, PREDICTS))} are read")
    return DiscreteVP(_betas(config, kind)), PREDICTS[predicted]


def diffusers_field(
    source: Source,
    scheduler: Source | None = None,
    *,
    classes: int | torch.Tensor | None = None,
    guidance: float = 0.0,
    null_class: int | None = None,
    variant: str | None = None,
) -> Field:
    """The field of a diffusers pipeline: `hb.sample(hb.nets.diffusers_field(folder), solver, ...)`.

    source: as in `from_diffusers`. scheduler: as in `diffusers_process`; None: that of the folder `source`. classes,
    guidance: as in `as_field`. A model that returns twice the channels has learned its variances: they are split off.

    Raises what these three raise, and ValueError for a model that takes other channels than it predicts.
    """
    if scheduler is None and isinstance(source, torch.nn.Module):
        raise ValueError("scheduler is None and source is a model; pass its scheduler, or the folder of a pipeline")
    process, predicts = diffusers_process(source if scheduler is None else scheduler)
    net = from_diffusers(source, null_class=null_class, variant=variant)
    config: Any = net.model.config
    into, out = config["in_channels"], config["out_channels"]
    if out not in (into, 2 * into):
        raise ValueError(
            f"the model takes {into} channels and returns {out}; a field has as many, or twice as many with learned variances: "
            "write net(x, t) yourself and pass it to as_field"
        )
    table = config.get("time_embedding_type") == "learned"
    return as_field(
        net,
        process,
        predicts,
        labels=steps(process, len(process.betas)) if table else None,
        learned_variance=out == 2 * into,
        classes=classes,
        guidance=guidance,
    )


def _betas(config: Mapping[str, Any], kind: str) -> list[float]:
    def entry(name: str) -> Any:
        if config.get(name) is None:
            raise ValueError(f"{kind} has no {name}, which says the noise of its steps; pass a config that has it")
        return config[name]

    if config.get("trained_betas") is not None:
        return [float(beta) for beta in config["trained_betas"]]
    schedule = entry("beta_schedule")
    if schedule not in SCHEDULES:
        raise ValueError(
            f"{kind} has beta_schedule {schedule!r}; only {', '.join(map(repr, SCHEDULES))} are read: pass its betas as "
            "trained_betas, or make hb.DiscreteVP(betas) yourself"
        )
    n = int(entry("num_train_timesteps"))
    if schedule == "squaredcos_cap_v2":
        # 1 - cos^2 B / cos^2 A of the angles A < B, without the difference of nearly equal numbers
        unit = math.pi / (2.0 * 1.008)
        angles = [unit * (i / n + 0.008) for i in range(n + 1)]
        return [min(math.sin(a + b) * math.sin(b - a) / math.cos(a) ** 2, 0.999) for a, b in itertools.pairwise(angles)]
    first, last = float(entry("beta_start")), float(entry("beta_end"))
    root = schedule == "scaled_linear"
    if root:
        first, last = math.sqrt(first), math.sqrt(last)
    line = [first + (last - first) * (i / max(n - 1, 1)) for i in range(n)]
    return [b * b for b in line] if root else line


def _scheduler_config(source: Source) -> Mapping[str, Any]:
    if isinstance(source, Mapping):
        return source
    if not isinstance(source, str | os.PathLike):
        config = getattr(source, "config", None)
        if not isinstance(config, Mapping):
            raise TypeError(
                f"the scheduler is a {type(source).__name__}; pass a scheduler, its config, or a local folder"
            )
        return config
    missing = f"{str(source)!r} holds no scheduler"
    if Path(source).is_file():
        return _read(Path(source), missing)
    folder = _folder("the scheduler", source)
    inner = folder / "scheduler" / "scheduler_config.json"
    return _read(inner if inner.is_file() else folder / "scheduler_config.json", missing)


def _folder(name: str, source: Source) -> Path:
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"{name} is a {type(source).__name__}; pass a UNet2DModel or the path of a local folder")
    if not Path(source).is_dir():
        raise ValueError(
            f"{name} = {str(source)!r} is no local folder, and nothing is downloaded; save the model there first, with "
            "save_pretrained(folder), and pass that folder"
        )
    return Path(source)


def _read(path: Path, missing: str) -> dict[str, Any]:
    """The JSON object in that file."""
    if not path.is_file():
        raise ValueError(f"{missing}: there is no {path}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__}; a config is a JSON object")
    return config


def _unet_class() -> Any:
    try:
        from diffusers import UNet2DModel
    except ImportError as error:
        raise ImportError("models of diffusers need diffusers: pip install 'halfbridge[diffusers]'") from error
    return UNet2DModel
