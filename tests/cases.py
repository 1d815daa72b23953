"""The solvers, processes and a cheap nonlinear field that the property tests draw from."""

import math

import numpy as np
import torch
from hypothesis import strategies as st

import halfbridge as hb

SOLVERS = [
    hb.EulerMaruyama(), hb.ReverseDiffusion(), hb.Ancestral(), hb.Ancestral("transition"), hb.DDIM(), hb.DDIM(0.4), hb.DDIM(1.0),
    hb.Heun(), hb.Heun(churn=2.0, s_noise=1.05), hb.DPMSolver(1), hb.DPMSolver(2), hb.DPMSolver(3), hb.DPMSolverPP(1), hb.DPMSolverPP(2),
    hb.Langevin(), hb.Langevin(step_size=1e-3), hb.Langevin(snr=0.1, transition=True),
    hb.PredictorCorrector(hb.ReverseDiffusion(), hb.Langevin()),
    hb.PredictorCorrector(hb.DPMSolverPP(2), hb.Langevin(snr=0.1, norm="batch"), 2),
]  # fmt: skip
ONE_STEP = [s for s in SOLVERS if s.family != "corrector"]
DETERMINISTIC = [s for s in SOLVERS if s.family == "ode"]
PROCESSES = [
    hb.VP(), hb.CosineVP(), hb.SubVP(), hb.VE(), hb.EDM(), hb.OU(), hb.Brownian(), hb.DiscreteVP(tuple(np.linspace(1e-4, 0.1, 40))),
    hb.LinearProcess(lambda t: torch.exp(-t), lambda t: 1.0 - torch.exp(-t), 3.0, 0.01),
]  # fmt: skip
PREDICTIONS = ["noise", "score", "data", "velocity"]


def bounded_field(process, predicts):
    """The field whose data prediction is tanh(x/(1 + nu)): smooth, nonlinear, stable for every solver."""

    def fn(t, x):
        alpha, sigma = process.alpha(t), process.sigma(t)
        data = torch.tanh(x / (alpha + sigma))
        noise = (x - alpha * data) / sigma
        return {
            "data": lambda: data,
            "noise": lambda: noise,
            "score": lambda: -noise / sigma,
            "velocity": lambda: alpha * noise - sigma * data,
        }[predicts]()

    return hb.Field(process, fn, predicts)


@st.composite
def decreasing_grids(draw, process):
    """Any strictly decreasing float64 grid inside [t_min, T], now and then ending at exactly 0."""
    n = draw(st.integers(1, 6))
    low, high = process.half_log_snr(process.T), process.half_log_snr(process.t_min)
    gaps = np.array(draw(st.lists(st.floats(0.2, 1.0), min_size=n, max_size=n)))
    lams = low + (high - low) * np.concatenate([[0.0], np.cumsum(gaps) / gaps.sum()])
    times = [process.T, *[process.time_at(float(lam)) for lam in lams[1:-1]], process.t_min]
    if draw(st.booleans()):
        times.append(0.0)
    return np.array(times)


def below_churn_limit(solver, process):
    """DiscreteVP has no time beyond T, so churn must stay below its last noise level."""
    if isinstance(solver, hb.Heun) and solver.churn and isinstance(process, hb.DiscreteVP):
        return hb.Heun(solver.churn, solver.s_noise, 0.0, process.nu(process.T) / math.sqrt(2.1))
    return solver
