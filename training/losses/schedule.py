"""A noise schedule that is learned with the network."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from halfbridge.solvers.processes import Process

__all__ = ["LearnedSchedule", "LearnedVP"]

T_MIN = 1e-3


class LearnedSchedule(torch.nn.Module):
    """gamma(t) = -2 lambda(t) = log(sigma^2/alpha^2), increasing in t, from gamma_0 at t_min = 1e-3 to gamma_1 at 1:

        gamma = gamma_0 + (gamma_1 - gamma_0) (m(t) - m(t_min))/(m(1) - m(t_min)),   m = l1 + l3(sigmoid(l2(l1))),

    l1, l2, l3 linear layers with positive weights (softplus of their parameters) and `hidden` units between l2 and l3.
    Kingma et al. 2021, appendix H. (They end the schedule at t = 0; a process here is sampled to a positive t_min.)

    gamma_0, gamma_1: the ends to start from; learned as gamma_0 and log(gamma_1 - gamma_0) unless `ends` is False.
    Parameters and values are float64, whatever the network's dtype; the start is a smooth line, the same each time.
    ValueError unless gamma_0 < gamma_1.
    """

    def __init__(self, gamma_0: float = -13.3, gamma_1: float = 5.0, *, hidden: int = 1024, ends: bool = True) -> None:
        super().__init__()
        if not (math.isfinite(gamma_0) and math.isfinite(gamma_1) and gamma_0 < gamma_1):
            raise ValueError(
                f"gamma_0 = {gamma_0!r} must be finite and below gamma_1 = {gamma_1!r}: noise grows with t"
            )
        if isinstance(hidden, bool) or not isinstance(hidden, int) or hidden < 1:
            raise ValueError(f"hidden = {hidden!r} must be an int of at least 1")
        self.hidden, self.ends, self.start = hidden, bool(ends), (float(gamma_0), float(gamma_1))

        def held(values: float | Tensor, trained: bool = True) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.as_tensor(values, dtype=torch.float64).clone(), requires_grad=trained)

        centres = (torch.arange(hidden, dtype=torch.float64, device="cpu") + 0.5) / hidden
        self.gamma_0 = held(gamma_0, self.ends)
        self.log_span = held(math.log(gamma_1 - gamma_0), self.ends)
        self.weight_1 = held(math.log(math.expm1(1.0)))
        self.weight_2 = held(torch.full_like(centres, 8.0))
        self.bias_2 = held(-8.0 * centres)
        self.weight_3 = held(torch.full_like(centres, math.log(math.expm1(1.0 / hidden))))

    def extra_repr(self) -> str:
        low, high = self.gamma_0.item(), (self.gamma_0 + self.log_span.exp()).item()
        return f"gamma {low:.4g} to {high:.4g}, hidden={self.hidden}"

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments; what was learned since is in the state dict."""
        return {"gamma_0": self.start[0], "gamma_1": self.start[1], "hidden": self.hidden, "ends": self.ends}

    def _monotone(self, t: Tensor) -> Tensor:
        softplus = torch.nn.functional.softplus
        u = softplus(self.weight_1.double()) * t
        hidden = torch.sigmoid(softplus(self.weight_2.double()) * u[..., None] + self.bias_2.double())
        return u + (softplus(self.weight_3.double()) * hidden).sum(dim=-1)

    def shape(self, t: Tensor) -> Tensor:
        """(gamma - gamma_0)/(gamma_1 - gamma_0), 0 at t_min and 1 at 1, float64; depends on the interior alone."""
        t = t.double()
        ends = torch.tensor([T_MIN, 1.0], dtype=torch.float64, device=t.device)
        low, high = self._monotone(ends)
        place: Tensor = (self._monotone(t) - low) / (high - low)
        return place

    def forward(self, t: Tensor) -> Tensor:
        """gamma(t), float64, like t, differentiable in t and the parameters."""
        return self.gamma_0.double() + self.log_span.double().exp() * self.shape(t)

    def process(self) -> LearnedVP:
        """The process of this schedule: it follows the parameters, and passes gradients to them."""
        return LearnedVP(self)


def slope(function: Any, t: Tensor) -> tuple[Tensor, Tensor]:
    """(function(t), its derivative) for a function that acts on each entry, by autograd; both differentiable where gradients
    are recorded."""
    record = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        u = t if t.requires_grad else t.detach().clone().requires_grad_()
        value = function(u)
        (derivative,) = torch.autograd.grad(value.sum(), u, create_graph=record)
    return (value, derivative) if record else (value.detach(), derivative.detach())


@dataclass(frozen=True, eq=False)
class LearnedVP(Process):
    """alpha^2 = sigmoid(-gamma(t)), sigma^2 = sigmoid(gamma(t)), gamma a `LearnedSchedule`; T = 1, sampling to 1e-3.

    At t_min the half log-SNR is -gamma_0/2; sigma(0) is a little below sigma(t_min), not 0: the data are met by what
    the model makes of x at t_min, and a grid ends there. Prior N(0, I). Kingma et al. 2021.
    """

    schedule: LearnedSchedule
    T: float = field(default=1.0, init=False)
    t_min: float = field(default=T_MIN, init=False)

    @property
    def prior_std(self) -> float:
        return 1.0

    def _apply(self, formula: Any, value: Any, name: str, check: Any) -> Any:
        with torch.set_grad_enabled(torch.is_grad_enabled() and isinstance(value, Tensor)):  # numbers carry no gradient
            return super()._apply(formula, value, name, check)

    def _gamma(self, t: Any) -> Tensor:
        place = self.schedule.gamma_0.device
        gamma: Tensor = self.schedule(
            t.to(place) if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64, device=place)
        )
        return gamma.to(t.device) if isinstance(t, Tensor) else gamma

    def _alpha(self, t: Any) -> Any:
        return _like(t, torch.sigmoid(-self._gamma(t)).sqrt())

    def _sigma(self, t: Any) -> Any:
        return _like(t, torch.sigmoid(self._gamma(t)).sqrt())

    def _half_log_snr(self, t: Any) -> Any:
        return _like(t, -0.5 * self._gamma(t))

    def _drift_rate(self, t: Any) -> Any:
        gamma, rate = self._gamma_and_rate(t)
        return _like(t, -0.5 * rate * torch.sigmoid(gamma))

    def _diffusion(self, t: Any) -> Any:
        gamma, rate = self._gamma_and_rate(t)
        return _like(t, (rate * torch.sigmoid(gamma)).sqrt())

    def _gamma_and_rate(self, t: Any) -> tuple[Tensor, Tensor]:
        return slope(self._gamma, t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64))

    def _time_at(self, half_log_snr: Any) -> Any:
        """Bisection, then two Newton steps, the second of them differentiable. Levels beyond [0, 1] are a ValueError."""
        level = half_log_snr if isinstance(half_log_snr, Tensor) else torch.tensor(half_log_snr, dtype=torch.float64)
        gamma = -2.0 * level
        ends = self._gamma(torch.tensor([0.0, 1.0], dtype=torch.float64, device=level.device)).detach()
        excess = 1e-9 * (1.0 + ends.abs())
        if level.numel() and not ((gamma >= ends[0] - excess[0]) & (gamma <= ends[1] + excess[1])).all():
            raise ValueError(
                f"`half_log_snr` from {level.min().item():.6g} to {level.max().item():.6g} is not reached on [0, 1], where it "
                f"runs from {-0.5 * ends[1].item():.6g} (t = 1) to {-0.5 * ends[0].item():.6g}"
            )
        wanted = gamma.detach()
        low, high = torch.zeros_like(wanted), torch.ones_like(wanted)
        with torch.no_grad():
            for _ in range(48):
                middle = 0.5 * (low + high)
                below = self._gamma(middle) < wanted
                low, high = torch.where(below, middle, low), torch.where(below, high, middle)
            t = 0.5 * (low + high)
        value, rate = self._gamma_and_rate(t)
        return _like(half_log_snr, (t + (gamma - value) / rate.detach()).clamp(0.0, 1.0))


def _like(t: Any, result: Tensor) -> Any:
    return result if isinstance(t, Tensor) else result.item()
