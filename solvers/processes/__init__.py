"""Linear forward processes dX = a(t) X dt + g(t) dW in closed form."""

from halfbridge.solvers.processes.base import Process
from halfbridge.solvers.processes.diffusions import OU, Brownian
from halfbridge.solvers.processes.discrete import DiscreteVP
from halfbridge.solvers.processes.linear import LinearProcess
from halfbridge.solvers.processes.variance_exploding import EDM, VE
from halfbridge.solvers.processes.variance_preserving import VP, CosineVP, SubVP

__all__ = ["EDM", "OU", "VE", "VP", "Brownian", "CosineVP", "DiscreteVP", "LinearProcess", "Process", "SubVP"]
