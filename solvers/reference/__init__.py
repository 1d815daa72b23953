"""Exact answers to judge solvers by.

gaussian, mixture    laws whose diffused laws and fields are known in closed form
law                  the exact law of a numerical scheme on Gaussian data
order, certify       orders of convergence from those laws, and a verdict on a solver
flows                high-accuracy solutions of nonlinear probability flows
"""

from halfbridge.solvers.reference.flows import exact_flow
from halfbridge.solvers.reference.gaussian import Gaussian
from halfbridge.solvers.reference.law import law_of
from halfbridge.solvers.reference.mixture import GaussianMixture
from halfbridge.solvers.reference.order import observed_order

__all__ = ["Gaussian", "GaussianMixture", "exact_flow", "law_of", "observed_order"]
