"""Fused primitives on state tensors, and the counter-based noise that they draw from.

- `normal`, `normal_block`: standard normals of (seed, draw, global sample index); `Noise` names them, unmade
- `combine`: sum_j c_j v_j + c N(0, I), the one update that every solver's stage comes down to
- `langevin`: the corrector step sized by a signal-to-noise ratio, which is not linear
- `backend`, `use`: which implementation runs, and how to force one

Nothing here knows of processes, times or solvers.
"""

from halfbridge.kernels.combine import combine
from halfbridge.kernels.dispatch import backend, use
from halfbridge.kernels.langevin import langevin
from halfbridge.kernels.noise import Noise
from halfbridge.kernels.normal import normal, normal_block

__all__ = ["Noise", "backend", "combine", "langevin", "normal", "normal_block", "use"]
