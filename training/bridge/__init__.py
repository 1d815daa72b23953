"""Diffusion Schrödinger bridges: iterative proportional fitting of chains of Gaussian kernels (De Bortoli et al. 2021).

gammas, reference         step sizes; the reference process in N steps
direction, transitions    the two ways along a chain; the kernels of one of them: means, covariances, a step
covariances, residuals    2 gamma I, diagonal or full; matched ones from a second regression
ends, chains              the laws that are joined; simulation, with counted noise
targets, half_bridge, ipf what kernels are regressed onto; a half-bridge as a regression; half-bridges in turn
affine, affine_regressor  affine kernels and the exact laws of their chains; the regressor that is exact between Gaussians
estimates                 KL between chains and energies, from paths
network, regression       kernels that are networks, and the loss that trains them
cache, room, memory       trajectories to train on, in memory or on the disk; how much memory there is
half_trainer, network_regressor   one half-bridge's training; the regressor that trains networks
matching, couplings       bridge matching: the reference held at both ends; couplings of them
run, monitors, fit        `fit_bridge`: a run (its loop in bridge_loop), what is measured of it, its folder
                          (bridge_folder) and pictures (bridge_plots); bridge_saved: a bridge read back
                          arguments: checks of what it is called with
views, bridge_process     a bridge in use: translations, trajectories, drifts, flows; as fields for every solver

One index rules: a step, its kernel and its network label are called by the k of the state x_k that the step leaves, in both
directions, in simulation and in training. Whatever fits kernels is a `Regressor`: fit(half_bridge) -> Transitions. Between
Gaussians the affine one makes the loop exact:

    reference = ReferenceChain(hb.OU(0.5, 1.0, 1.0), 20)
    for iterate in ipf(reference_iterate(p0, p1, reference), AffineRegressor("matched"), 10):
        print(iterate.index, gaussian_chain(iterate.law).coupling().cov)
"""

from halfbridge.training.bridge import gammas
from halfbridge.training.bridge.affine import AffineTransitions, affine_of, gaussian_chain
from halfbridge.training.bridge.affine_regressor import AffineRegressor
from halfbridge.training.bridge.bridge_saved import load_bridge
from halfbridge.training.bridge.chains import PathLaw, path_index, simulate, walk
from halfbridge.training.bridge.couplings import Coupling
from halfbridge.training.bridge.covariances import Covariance, Diagonal, Full, Isotropic
from halfbridge.training.bridge.direction import Direction
from halfbridge.training.bridge.ends import End, Examples, Normal
from halfbridge.training.bridge.estimates import path_energy, path_kl
from halfbridge.training.bridge.fit import BridgeFit, BridgeState, fit_bridge
from halfbridge.training.bridge.half_bridge import HalfBridge, Regressor
from halfbridge.training.bridge.ipf import Iterate, ipf, reference_iterate
from halfbridge.training.bridge.matching import BridgeMatching
from halfbridge.training.bridge.monitors import Monitor, StopRule
from halfbridge.training.bridge.network import NetworkTransitions, VarianceHead
from halfbridge.training.bridge.network_regressor import NetworkRegressor
from halfbridge.training.bridge.reference import ReferenceChain
from halfbridge.training.bridge.residuals import residual_covariances
from halfbridge.training.bridge.targets import TARGETS, Pair, Target, variance_ratio
from halfbridge.training.bridge.transitions import ReferenceTransitions, ScoreTransitions, Sum, Transitions
from halfbridge.training.bridge.views import Bridge

__all__ = [
    "TARGETS", "AffineRegressor", "AffineTransitions", "Bridge", "BridgeFit", "BridgeMatching", "BridgeState",
    "Coupling", "Covariance", "Diagonal", "Direction", "End", "Examples", "Full", "HalfBridge",
    "Isotropic", "Iterate", "Monitor", "NetworkRegressor", "NetworkTransitions", "Normal", "Pair", "PathLaw",
    "ReferenceChain", "ReferenceTransitions", "Regressor", "ScoreTransitions", "StopRule", "Sum", "Target",
    "Transitions", "VarianceHead", "affine_of", "fit_bridge", "gammas", "gaussian_chain",
    "ipf", "load_bridge", "path_energy", "path_index", "path_kl", "reference_iterate",
    "residual_covariances", "simulate", "variance_ratio", "walk",
]  # fmt: skip
