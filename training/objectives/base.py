"""What a trainer minimises."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import torch

from halfbridge.nets.adapter import Labels, Network, as_field
from halfbridge.solvers.field import Field
from halfbridge.solvers.processes import Process
from halfbridge.training.losses.denoising import check_predicts
from halfbridge.training.noise import StepNoise
from halfbridge.training.objectives.described import build_labels, check_process

__all__ = ["Objective", "OnProcess"]


class Objective(Protocol):
    """A loss with all its choices made: a frozen dataclass, or a torch.nn.Module if it has parameters of its own, which are
    then trained and saved with the network's."""

    @property
    def process(self) -> Process:
        """What the network is trained for, and sampled under."""

    @property
    def predicts(self) -> str:
        """What the network predicts: "noise", "score", "data" or "velocity"."""

    @property
    def config(self) -> dict[str, Any]:
        """JSON values {"type": name, **options} with `make(name, process, **options)` an equal objective. ValueError where a
        choice is a function, which cannot be written down."""

    def __call__(self, net: Network, x0: torch.Tensor, noise: StepNoise) -> torch.Tensor:
        """The loss of each sample, (n,), differentiable; its mean over the global batch is the loss of a step.

        net: net(x, label), classes bound. x0: (n, *shape). noise: the random numbers of these rows, the only ones used.
        """

    def field(self, net: Any, **options: Any) -> Field:
        """The trained network as a field; options as of `nets.as_field`."""


class OnProcess:
    """What frozen dataclasses with `process`, `predicts` and `labels` have in common."""

    named_labels: ClassVar[tuple[str, ...]] = ()
    """Labels of the objective's own, by name."""

    def __post_init__(self: Any) -> None:
        check_process(self.process)
        check_predicts(self.predicts)
        object.__setattr__(self, "labels", build_labels(self.labels, self.process, self.named_labels))

    def to_label(self: Any) -> Labels | None:
        """The labels as a function of the time."""
        labels: Labels | None = self.labels
        return labels

    def field(self: Any, net: Any, **options: Any) -> Field:
        """The trained network as a field; options as of `nets.as_field`."""
        return as_field(net, self.process, self.predicts, **{"labels": self.to_label(), **options})
