"""Preconditioned networks: a denoiser around a network that sees and predicts numbers of a fixed scale."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import Any

import torch

from halfbridge.kernels import edm_input, edm_output
from halfbridge.kernels.arguments import accumulation
from halfbridge.kernels.edm_precondition import scaled
from halfbridge.nets.adapter import first_half
from halfbridge.nets.columns import COLUMNS, EDMColumn, Scalings
from halfbridge.nets.labels import time_of_label
from halfbridge.nets.sizes import flag
from halfbridge.solvers.field import FieldOutputError
from halfbridge.solvers.nearest import nearest
from halfbridge.solvers.processes import EDM, VE, Brownian, DiscreteVP, Process, described

__all__ = ["Precondition"]


class Precondition(torch.nn.Module):
    """The denoiser D(x; nu) = c_skip x + c_out net(c_in x, c_noise) at the noise level nu (Karras et al. 2022, eq. 7).

    It predicts "data", and `as_field` refuses to read it as anything else. The four scalings are a column of the paper's
    table 1, with its constants as keywords:

        kind      c_skip      c_out          c_in              c_noise                     constants
        "edm"     d^2/s^2     nu d/s         1/s               ln(nu)/4                    sigma_data = d = 0.5
        "vp"      1           -nu            1/sqrt(nu^2+1)    (M-1) nu^{-1}(nu)           beta_min=0.1, beta_max=20.0, steps=1000
        "ve"      1           nu             1                 ln(nu/2)
        "iddpm"   1           -nu            1/sqrt(nu^2+1)    M-1-argmin_j |u_j - nu|     c1=0.001, c2=0.008, steps=1000

    with s^2 = nu^2 + d^2, M = steps, nu^{-1} the time of VP and u_j the levels of `columns.iddpm_levels`.

    process: None, and then `net(x, t)` of this module takes t = nu and a state of alpha = 1: the time and the state of
    hb.EDM. Or a linear process, and then x is its state and t its label, D(x / alpha(t); nu(t)), since every linear process is a
    rescaled one of alpha = 1: `as_field(Precondition(net, kind, process=process), process)` is right for any of
    them. The label is the default one: t itself, and the step minus 1 for DiscreteVP; `as_field` refuses another process
    and other labels.

    net: called with a state like x and labels (batch,), float64 for float64 states, else float32 (integers of "iddpm" too,
    as floats), and with the classes where they are given; returns x's shape in any floating dtype, as under autocast. With
    learned_variance it returns twice the channels, of which the first half is taken, as improved DDPM's do.

    The scalings are found in float64 and applied in float32 (float64 to float64 states), and the results are rounded
    once; for "edm" with alpha = 1 by the fused `kernels.edm_input` and `edm_output`. nu = 0 has no label (-inf) in three
    columns.

    ValueError for an unknown kind, constants that the kind does not have or that are out of range, and shapes that disagree.
    """

    predicts = "data"

    def __init__(
        self,
        net: torch.nn.Module,
        kind: str = "edm",
        *,
        process: Process | Mapping[str, Any] | None = None,
        learned_variance: bool = False,
        **constants: float,
    ) -> None:
        super().__init__()
        if not isinstance(net, torch.nn.Module):
            raise TypeError(f"net is a {type(net).__name__}; pass a torch.nn.Module")
        if kind not in COLUMNS:
            raise ValueError(f"kind = {kind!r} is no column; {nearest(kind, COLUMNS)}")
        self.column = COLUMNS[kind](**_known(kind, constants))
        if isinstance(process, Mapping):
            process = described.build(process)
        if process is not None and not isinstance(process, Process):
            raise TypeError(
                f"process is a {type(process).__name__}; pass a process such as hb.VP(), or None for t = nu"
            )
        self.net, self.kind, self.process = net, kind, process
        self.learned_variance = flag("learned_variance", learned_variance)

    def scalings(self, nu: Any) -> Scalings:
        """(c_skip, c_out, c_in, c_noise) at noise levels, a number or a tensor of any shape: float64 tensors of that shape."""
        result: Scalings = self.column.scalings(torch.as_tensor(nu, dtype=torch.float64))
        return result

    def forward(self, x: torch.Tensor, t: torch.Tensor, classes: torch.Tensor | None = None) -> torch.Tensor:
        if t.shape != x.shape[:1]:
            raise ValueError(f"t has shape {tuple(t.shape)} for x of shape {tuple(x.shape)}; pass one for each sample")
        nu, alpha = self._level(t)
        if alpha is None and isinstance(self.column, EDMColumn) and not nu.requires_grad:
            inner, label = edm_input(x, nu, self.column.sigma_data)
            return edm_output(x, self._inner(inner, label, classes), nu, self.column.sigma_data)
        work = accumulation(x.dtype)
        skip, out, into, label = self.column.scalings(nu)
        if alpha is not None:
            skip, into = skip / alpha, into / alpha
        output = self._inner(scaled(x, into, work).to(x.dtype), label.to(work), classes)
        return (scaled(x, skip, work) + scaled(output, out, work)).to(x.dtype)

    def _level(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(nu, alpha) in float64; None for an alpha that is 1. Times that the process does not have are refused on a CPU, and
        give NaN on a GPU, where looking would be a wait at each call."""
        if self.process is None:
            return t.double(), None
        time = time_of_label(self.process, t)
        if time.device.type == "cpu" and not torch.compiler.is_compiling():
            nu, alpha = self.process.nu(time), self.process.alpha(time)
        else:
            known = (time >= 0.0) & (time <= (self.process.T if isinstance(self.process, DiscreteVP) else math.inf))
            time = torch.where(known, time, self.process.T)  # an index out of range would stop a GPU's whole program
            alpha = self.process._alpha(time)
            alpha = torch.where(known & (alpha > 0.0), alpha, torch.nan)
            nu = self.process._sigma(time) / alpha
        return nu, None if isinstance(self.process, EDM | VE | Brownian) else alpha

    def _inner(self, inner: torch.Tensor, label: torch.Tensor, classes: torch.Tensor | None) -> torch.Tensor:
        output = self.net(inner, label) if classes is None else self.net(inner, label, classes)
        if self.learned_variance:
            output = first_half(output, inner)
        if not isinstance(output, torch.Tensor) or output.shape != inner.shape:
            got = tuple(output.shape) if isinstance(output, torch.Tensor) else f"a {type(output).__name__}"
            raise FieldOutputError(
                f"the preconditioned network {type(self.net).__name__} returned {got} for an input of shape "
                f"{tuple(inner.shape)}; return one value for each element (learned_variance=True takes the first of 2 C channels)"
            )
        return output

    @property
    def classes(self) -> int | None:
        """The number of classes of the network inside; None where it does not say."""
        count: int | None = getattr(self.net, "classes", None)
        return count

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())

    @property
    def config(self) -> dict[str, Any]:
        """The arguments in JSON values: {"net": {"type": ..., its config}, "kind", "process", "learned_variance", constants}.

        ValueError where the network inside has no config, or the process cannot be written down.
        """
        if not hasattr(type(self.net), "config"):
            raise ValueError(
                f"the network {type(self.net).__name__} has no config to write down; give its class a property `config` with "
                "its constructor's arguments"
            )
        config: Any = self.net.config
        return {
            "net": {"type": type(self.net).__name__} | config,
            "kind": self.kind,
            "process": None if self.process is None else described.describe(self.process),
            "learned_variance": self.learned_variance,
            **{name: getattr(self.column, name) for name in _constants(self.kind)},
        }

    def extra_repr(self) -> str:
        process = "" if self.process is None else f", process={self.process!r}"
        return (
            ", ".join([repr(self.kind), *(f"{n}={getattr(self.column, n)}" for n in _constants(self.kind))]) + process
        )


def _constants(kind: str) -> list[str]:
    return [field.name for field in dataclasses.fields(COLUMNS[kind]) if field.init]


def _known(kind: str, constants: Mapping[str, float]) -> Mapping[str, float]:
    """`constants`, if the column has all of them."""
    known = _constants(kind)
    for name in constants:
        if name not in known:
            remedy = nearest(name, known) if known else "it has none, so leave it out"
            raise ValueError(f"{name} is no constant of kind = {kind!r}; {remedy}")
        if isinstance(constants[name], bool) or not isinstance(constants[name], numbers.Real):
            raise TypeError(f"{name} = {constants[name]!r} must be a number")
    return constants
