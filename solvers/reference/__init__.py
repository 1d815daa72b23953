"""Exact answers to judge solvers by.

gaussian, mixture    laws whose diffused laws and fields are known in closed form
law                  the exact law of a numerical scheme on Gaussian data
order, certify       orders of convergence from those laws, and a verdict on a solver
flows                high-accuracy solutions of nonlinear probability flows
fokker_planck        the law of an SDE in one or two dimensions, on a grid (nodes, fluxes, implicit: its parts)
gaussian_bridge, gaussian_ipf, static_bridge   Schrödinger bridges: closed form, discrete IPF, Sinkhorn (pinned,
                     gaussian_coupling, gaussian_chain: their parts)
chain_law            the law of a chain of Gaussian kernels in one dimension: solvers on nonlinear problems, without samples
two_sample           distances between laws known by samples: energy distance, sliced W2
nonlinear            errors of solvers on mixtures, from flows and chain laws (plane: the chain in two dimensions)
"""

from halfbridge.solvers.reference.chain_law import Chain, chain_law, chain_law_of, chain_of
from halfbridge.solvers.reference.flows import exact_flow
from halfbridge.solvers.reference.fokker_planck import GridLaws, fokker_planck
from halfbridge.solvers.reference.gaussian import Gaussian
from halfbridge.solvers.reference.gaussian_bridge import GaussianBridge
from halfbridge.solvers.reference.gaussian_ipf import gaussian_ipf
from halfbridge.solvers.reference.law import law_of
from halfbridge.solvers.reference.mixture import GaussianMixture
from halfbridge.solvers.reference.order import observed_order
from halfbridge.solvers.reference.static_bridge import static_bridge
from halfbridge.solvers.reference.two_sample import energy_distance, sliced_w2

__all__ = [
    "Chain", "Gaussian", "GaussianBridge", "GaussianMixture", "GridLaws", "chain_law", "chain_law_of", "chain_of",
    "energy_distance", "exact_flow", "fokker_planck", "gaussian_ipf", "law_of", "observed_order", "sliced_w2",
    "static_bridge",
]  # fmt: skip
