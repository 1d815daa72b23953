"""Training a score network: denoising score matching, Adam, an averaged copy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from tqdm.auto import trange

from halfbridge.nets.adapter import Labels, as_field
from halfbridge.nets.ema import EMA
from halfbridge.solvers.field import Field
from halfbridge.solvers.processes import Process
from halfbridge.training.losses import Times, Weighting, denoising_loss, sample_times

__all__ = ["ScoreFit", "fit_score"]

Module = TypeVar("Module", bound=torch.nn.Module)


@dataclasses.dataclass(frozen=True)
class ScoreFit(Generic[Module]):
    """What `fit_score` returns."""

    net: Module
    """The averaged network, in eval mode and without gradients."""
    field: Field
    """`net` as a field under the process it was trained for."""
    losses: torch.Tensor = dataclasses.field(repr=False)
    """The mean loss of each step's batch, (steps,), float64."""


def fit_score(
    net: Module,
    data: torch.Tensor,
    process: Process,
    *,
    predicts: str = "noise",
    steps: int = 2000,
    batch_size: int = 128,
    lr: float = 1e-3,
    weighting: Weighting = "simple",
    times: Times = "uniform",
    clip: float = 1.0,
    ema_decay: float = 0.999,
    labels: Labels | None = None,
    seed: int = 0,
    progress: bool = False,
) -> ScoreFit[Module]:
    """Train `net` in place to predict `predicts` on `data` noised by `process`; return its averaged copy as a field.

    data: (n, *shape), in the network's dtype (not float16: Adam's epsilon is 0 in it) and on its device. Each step
    takes the next `batch_size` items of an endless sequence of shuffled passes over the data, stratified times and
    fresh normals, and minimises the mean of `losses.denoising_loss` (see there for `predicts`, `weighting` and
    `labels`; `sample_times` for `times`) with Adam (Kingma and Ba 2015; learning rate `lr`, gradients clipped to the
    norm `clip`), then updates an `EMA` with warm-up.

    The result depends on the arguments and the network's starting values only: batches, times and normals come from
    generators of their own, and dropout sees a global generator seeded for the run. The global generator is left as it
    was, and each module's train or eval mode is restored. On a CPU with the same number of threads the same seed gives
    the same bits.

    Raises ValueError for data that is empty, constant, not finite or unlike the network, and FloatingPointError, naming
    the step, when the loss stops being finite.
    """
    parameter = _check(net, data, steps, batch_size, lr, clip)
    generator = torch.Generator("cpu").manual_seed(seed)
    order = _shuffled_passes(len(data), batch_size, generator)
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=lr)
    average = EMA(net, ema_decay)
    losses = torch.empty(steps, dtype=torch.float64, device="cpu")
    offsets = torch.arange(batch_size, device="cpu") / batch_size
    normals = torch.float32 if data.element_size() < 4 else data.dtype

    with _training(net, seed, parameter.device):
        bar = trange(steps, desc="fit_score", unit="step", disable=not progress)
        for step in bar:
            x0 = data[next(order).to(data.device)]
            u = (torch.rand(1, generator=generator, dtype=torch.float64, device="cpu") + offsets) % 1.0
            z = torch.randn(x0.shape, generator=generator, dtype=normals, device="cpu")
            t = sample_times(process, u, times).to(data.device)
            loss = denoising_loss(
                net, process, x0, t, z.to(data.device), predicts=predicts, weighting=weighting, labels=labels
            ).mean()
            losses[step] = loss.item()
            if not torch.isfinite(losses[step]):
                raise FloatingPointError(
                    f"the loss is {losses[step].item()} at step {step} of {steps}; lower lr (now {lr:g}), or look at "
                    "what the network returns on the data"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
            average.update()
            if progress and step % 20 == 0:
                bar.set_postfix(loss=f"{losses[max(0, step - 99) : step + 1].mean().item():.4f}")
        optimizer.zero_grad(set_to_none=True)

    return ScoreFit(average.model, as_field(average.model, process, predicts, labels=labels), losses)


def _check(
    net: torch.nn.Module, data: torch.Tensor, steps: int, batch_size: int, lr: float, clip: float
) -> torch.nn.Parameter:
    """Refuse what cannot be trained; return a parameter of the network."""
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} = {value} must be at least 1")
    for name, rate in (("lr", lr), ("clip", clip)):
        if not rate > 0.0:
            raise ValueError(
                f"{name} = {rate} must be positive" + ("; pass math.inf not to clip" if name == "clip" else "")
            )
    if data.ndim < 2 or data.numel() == 0:
        raise ValueError(
            f"data has shape {tuple(data.shape)}; it must be (n, *shape) with n >= 1: one row for each example"
        )
    if not data.is_floating_point():
        raise ValueError(
            f"data is {data.dtype}; scale it and convert it to the network's dtype, e.g. data.float() / 127.5 - 1"
        )
    bad = ~torch.isfinite(data).flatten(1).all(dim=1)
    if bad.any():
        raise ValueError(
            f"data has {int(bad.sum())} rows that are not finite, the first is row {int(bad.nonzero()[0])}; drop them"
        )
    if bool((data == data[:1]).all()):
        raise ValueError(f"data is constant: its {len(data)} rows are all the same, so there is nothing to learn")
    trained = [p for p in net.parameters() if p.requires_grad]
    if not trained:
        raise ValueError(f"{type(net).__name__} has no parameter that requires a gradient: nothing to train")
    for name in ("dtype", "device"):
        if getattr(data, name) != getattr(trained[0], name):
            raise ValueError(
                f"data has {name} {getattr(data, name)} and the network {getattr(trained[0], name)}; convert one"
            )
    return trained[0]


def _shuffled_passes(n: int, batch_size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Indices, batch_size at a time, of shuffled passes laid end to end; batches may span two passes."""
    queue = torch.empty(0, dtype=torch.int64, device="cpu")
    while True:
        while len(queue) < batch_size:
            queue = torch.cat([queue, torch.randperm(n, generator=generator, device="cpu")])
        yield queue[:batch_size]
        queue = queue[batch_size:]


@contextmanager
def _training(net: torch.nn.Module, seed: int, device: torch.device) -> Iterator[None]:
    """Train mode and a seeded global generator inside; every module's mode and the generators as before outside."""
    modes = {module: module.training for module in net.modules()}
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device], device_type=_fork_type(device)):
        torch.manual_seed(seed)
        net.train()
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode


def _fork_type(device: torch.device) -> str:
    return "cuda" if device.type == "cpu" else device.type
