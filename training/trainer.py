"""The training state, and one step of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch

from halfbridge.nets.adapter import Network
from halfbridge.nets.ema import EMA
from halfbridge.training.data import Dataset
from halfbridge.training.data.order import shuffled
from halfbridge.training.modes import seed_modules, uncompiled
from halfbridge.training.noise import StepNoise
from halfbridge.training.objectives import Objective
from halfbridge.training.settings import Settings
from halfbridge.training.workers import Workers

__all__ = ["Asked", "NotFinite", "Step", "Task", "Trainer", "rows_on"]

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class NotFinite(FloatingPointError):
    """A loss or a gradient that is not finite. The state is as it was before the step."""


class Asked(NamedTuple):
    """What training was asked for, by anyone in any process."""

    stop: bool = False
    """A signal came."""
    end: bool = False
    """A callback returned True."""


class Step(NamedTuple):
    """What one step saw."""

    loss: float
    gradient_norm: float
    """Before clipping."""
    lr: float
    asked: Asked
    """What any of the processes was asked for before the step."""


class Task(NamedTuple):
    """What a network is to do on rows of a batch."""

    x: torch.Tensor
    """States like those that it is given, one a row."""
    losses: Callable[[Network, StepNoise], torch.Tensor]
    """The loss of each row, given the rows' noise."""


class Trainer:
    """Network, optimiser and averages after `step` steps. What they are then is a function of the arguments, `settings.seed`
    and `step`: no generator and no place in the data is kept.

    model: {"net": net}, and {"objective": objective} where it is a module, trained and averaged together. Of a network that
    torch.compile returned it holds the network inside, whose names have no "_orig_mod.".
    data: (n, *shape) in the network's dtype; on its device, or on the CPU: then the rows of each batch go over. classes: (n,)
    int64 on the CPU, or None for net(x, label).
    bins: the data set that `data` are the examples of, whose pixels are then dequantised anew for each example seen.
    """

    def __init__(
        self,
        net: torch.nn.Module,
        objective: Objective,
        data: torch.Tensor,
        classes: torch.Tensor | None,
        settings: Settings,
        workers: Workers,
        bins: Dataset | None = None,
    ) -> None:
        self.net, self.objective, self.data, self.classes, self.bins = net, objective, data, classes, bins
        self.settings, self.workers = settings, workers
        self.rows, self.count = _rows_of(settings, workers), len(data)
        self.model = torch.nn.ModuleDict({"net": uncompiled(net)})
        self.device = next(p.device for p in net.parameters() if p.requires_grad)
        if isinstance(objective, torch.nn.Module):
            self.model["objective"] = objective.to(self.device)
        workers.spread([*self.model.parameters(), *self.model.buffers()])
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = _optimizer(self.parameters, settings)
        self.average = EMA(self.model, settings.decays)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "float16")
        self.losses = torch.empty(settings.steps, dtype=torch.float64, device="cpu")
        self.step = 0

    def advance(self, asked: Asked = Asked()) -> Step:  # noqa: B008
        """Do one step. NotFinite, before anything is changed, if its loss or gradient is not finite. (A gradient that float16
        cannot hold is no error: the step is passed over and the scale of the loss halved, Micikevicius et al. 2018.)"""
        settings, buffers = self.settings, [buffer.clone() for buffer in self.model.buffers()]
        total = self._gradient()
        asked = self._exchange(total, asked)
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, settings.clip)
        loss, size = torch.stack([total, norm.to(total)]).tolist()
        over = self.scaler.is_enabled() and self.scaler.get_scale() >= 1.0
        if not math.isfinite(loss) or not (math.isfinite(size) or over):
            for buffer, before in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(before)
            self.optimizer.zero_grad(set_to_none=True)
            what = (
                f"the loss is {loss}"
                if not math.isfinite(loss)
                else f"the loss is {loss:g}, but its gradient's norm {size}"
            )
            raise NotFinite(
                f"{what} at step {self.step} of {settings.steps}; lower lr (now {settings.lr:g}), or look at what the network "
                "returns on the data"
            )
        lr = settings.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if math.isfinite(size):
            self.average.update()
        self.losses[self.step] = loss
        self.step += 1
        return Step(loss, size, lr, asked)

    def rehearse(self) -> None:
        """Evaluate the loss of one example in eval mode and forget it, so that what cannot be trained raises what it raises
        before anything is written."""
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        first = self.rows[0][0]
        self.model.eval()
        try:
            self._losses(self._order()[first : first + 1], first)
        finally:
            self.model.train()
            for buffer, before in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(before)

    @property
    def run_step(self) -> int:
        """What order and noise are counted by: the steps done, in all parts of the run."""
        return self.step

    def _gradient(self) -> torch.Tensor:
        """Leave this process's part of the gradient of the batch's mean loss; return its part of the loss, float64."""
        total, order = torch.zeros((), dtype=torch.float64, device=self.device), self._order()
        for first, last in self.rows:
            part = self._losses(order[first:last], first).sum() / self.settings.batch_size
            self.scaler.scale(part).backward()  # type: ignore[no-untyped-call]
            total += part.detach()
        return total

    def _order(self) -> torch.Tensor:
        """The examples of the step's global batch, row by row."""
        return shuffled(self.count, self.settings.seed, self.run_step, self.settings.batch_size)

    def _losses(self, rows: torch.Tensor, first: int) -> torch.Tensor:
        """The losses of these examples, which are rows first, first + 1, ... of the step's global batch."""
        settings = self.settings
        x, losses_of = self._task(rows, first)
        noise = StepNoise(settings.seed, self.run_step, settings.batch_size, x, first)
        seed_modules(noise.module_seed(), self.device)
        losses: torch.Tensor = losses_of(self._network(rows, noise), noise)
        _check_losses(losses, len(rows), self.objective)
        return losses

    def _task(self, rows: torch.Tensor, first: int) -> Task:
        """What `_losses` asks of these examples."""
        x0 = self._examples(rows, first)
        return Task(x0, lambda net, noise: self.objective(net, x0, noise))

    def _examples(self, rows: torch.Tensor, first: int) -> torch.Tensor:
        """These rows of the data, which are rows first, first + 1, ... of the batch, on the network's device."""
        if self.bins is None:
            return rows_on(self.data, rows, self.device)
        assert self.bins.pixels is not None
        pixels, example = rows_on(self.bins.pixels, rows, self.device), self.step * self.settings.batch_size + first
        return self.bins.spread(pixels, self.settings.seed, example, dtype=self.data.dtype)

    def _network(self, rows: torch.Tensor, noise: StepNoise) -> Network:
        """net(x, label) under autocast, bound to the rows' classes, of which some are dropped."""
        net, precision = self.net, self.settings.precision
        classes = () if self.classes is None else (self._classes(rows, noise),)
        if precision == "float32" and not classes:
            return net

        def cast() -> AbstractContextManager[Any]:
            return torch.autocast(self.device.type, AUTOCAST[precision]) if precision in AUTOCAST else nullcontext()

        def bound(x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            with cast():
                out: torch.Tensor = net(x, label, *classes)
            return out.to(x.dtype)

        return bound

    def _classes(self, rows: torch.Tensor, noise: StepNoise) -> torch.Tensor:
        assert self.classes is not None
        classes = self.classes[rows]
        if self.settings.class_dropout > 0.0:
            classes = torch.where(noise.chance(self.settings.class_dropout), -1, classes)
        return classes.to(self.device)

    def _exchange(self, total: torch.Tensor, asked: Asked) -> Asked:
        """Sum loss and gradients over the processes, in one buffer; return what any of them was asked for.

        Each process's part is already divided by the global batch, so that the sums are the batch's means. A parameter that
        one process did not need has no gradient only if none of them needed it.
        """
        if self.workers.count == 1:
            return asked
        wide = torch.float32
        for p in self.parameters:
            wide = torch.promote_types(wide, p.dtype)
        flags = torch.tensor([*map(float, asked), *(float(p.grad is not None) for p in self.parameters)])
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        parts = [total.reshape(1), flags.to(self.device), *(g.flatten() for g in grads)]
        flat = torch.cat([part.to(wide) for part in parts])
        self.workers.add(flat)
        total.copy_(flat[0])
        stop, end, *needed = flat[1 : 1 + len(flags)].tolist()
        summed = torch.split(flat[1 + len(flags) :], [p.numel() for p in self.parameters])
        for p, grad, need in zip(self.parameters, summed, needed, strict=True):
            p.grad = grad.view_as(p).to(p.dtype) if need else None
        return Asked(bool(stop), bool(end))

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, and the losses so far. "averages" has one entry a decay."""
        first = self.average.state_dict()
        return {
            "model": self.model.state_dict(),
            "averages": [first, *first.pop("others", [])],
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "losses": self.losses[: self.step],
        }

    def averaged(self, k: int = 0) -> tuple[Any, Any]:
        """The network and the objective as the k-th average has them."""
        model = self.average.models[k]
        return model["net"], dict(model.items()).get("objective", self.objective)

    def load(self, state: dict[str, Any], step: int) -> None:
        """Go on from a `state` after `step` steps."""
        self.model.load_state_dict(state["model"])
        first, *others = state["averages"]
        self.average.load_state_dict({**first, "others": others})
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.losses[:step] = state["losses"]
        self.step = step


def _optimizer(parameters: list[torch.nn.Parameter], settings: Settings) -> torch.optim.Optimizer:
    """Adam, or AdamW, in one pass over the parameters where torch has that for their device and dtype."""
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    options: dict[str, Any] = {"lr": settings.lr, "betas": settings.betas, "weight_decay": settings.weight_decay}
    try:
        return kind(parameters, fused=True, **options)
    except RuntimeError:
        return kind(parameters, **options)


def rows_on(values: torch.Tensor, rows: torch.Tensor, device: torch.device) -> torch.Tensor:
    """values[rows] on `device`; to a GPU through pinned memory, so that the copy waits for nothing."""
    if values.device == device:
        return values.index_select(0, rows.to(device))
    if device.type != "cuda":
        return values.index_select(0, rows).to(device)
    pinned = torch.empty(len(rows), *values.shape[1:], dtype=values.dtype, device="cpu", pin_memory=True)
    return torch.index_select(values, 0, rows, out=pinned).to(device, non_blocking=True)


def _check_losses(losses: object, n: int, objective: Objective) -> None:
    if not isinstance(losses, torch.Tensor) or losses.shape != (n,):
        got = f"shape {tuple(losses.shape)}" if isinstance(losses, torch.Tensor) else type(losses).__name__
        raise ValueError(
            f"the objective, {type(objective).__name__}, returned {got} for {n} examples; return the loss of each, shape "
            f"({n},), e.g. error.square().flatten(1).mean(1): their mean over the batch is taken by the trainer"
        )


def _rows_of(settings: Settings, workers: Workers) -> list[tuple[int, int]]:
    """First and last row of the global batch for each of this process's micro-batches."""
    pieces = workers.count * settings.accumulate
    if settings.batch_size % pieces:
        raise ValueError(
            f"batch_size = {settings.batch_size} is not a multiple of {pieces} = {workers.count} processes x accumulate = "
            f"{settings.accumulate}; pass batch_size={-(-settings.batch_size // pieces) * pieces}"
        )
    size = settings.batch_size // pieces
    start = workers.index * settings.accumulate
    return [(k * size, (k + 1) * size) for k in range(start, start + settings.accumulate)]
