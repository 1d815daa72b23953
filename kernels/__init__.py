"""Fused primitives on state tensors, and the counter-based noise that they draw from.

- `normal`, `normal_block`: standard normals of (seed, draw, global sample index); `Noise` names them, unmade
- `combine`: sum_j c_j v_j + c N(0, I), the one update that every solver's stage comes down to
- `edm_precondition`, `edm_input`, `edm_output`: the scalings around a network
- `ema_update`, `ParameterAverages`: averages of whole lists of tensors, in one pass
- `error_norm`: the error of an embedded pair against its tolerances
- `hutchinson_probe`, `hutchinson_dot`: random signs or normals that estimate a trace, and v . w with v regenerated
- `langevin`: the corrector step sized by a signal-to-noise ratio, which is not linear
- `mixture_field`, `mixture_log_density`: posterior mean and log density of a Gaussian mixture, streamed over its components
- `backend`, `use`: which implementation runs, and how to force one

Nothing here knows of processes, times or solvers.
"""

from halfbridge.kernels.combine import combine
from halfbridge.kernels.dispatch import backend, use
from halfbridge.kernels.edm_precondition import edm_input, edm_output, edm_precondition
from halfbridge.kernels.ema_update import ParameterAverages, ema_update
from halfbridge.kernels.error_norm import error_norm
from halfbridge.kernels.hutchinson_dot import hutchinson_dot
from halfbridge.kernels.hutchinson_probe import hutchinson_probe
from halfbridge.kernels.langevin import langevin
from halfbridge.kernels.mixture_field import mixture_field, mixture_log_density
from halfbridge.kernels.noise import DeviceNoise, Noise
from halfbridge.kernels.normal import normal, normal_block

__all__ = [
    "DeviceNoise", "Noise", "ParameterAverages", "backend", "combine", "edm_input", "edm_output",
    "edm_precondition", "ema_update", "error_norm", "hutchinson_dot", "hutchinson_probe", "langevin",
    "mixture_field", "mixture_log_density", "normal", "normal_block", "use",
]  # fmt: skip
