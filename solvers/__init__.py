"""Processes, fields, grids, the step algebra, plans and their readers, the solvers, and exact references.

processes/      the linear forward processes        field, problems    what is integrated
grids           times of a run                      solver             the base classes
euler ancestral ddim heun dpm langevin              the solvers, a file a family
algebra         symbols that a step can run on      plan, lowering     a run as data, and its registers
runner, run     execution; `sample` and `solve`     table              a plan as text and JSON
divergence, jacobian                                traces of Jacobians, exact and estimated
exact_derivatives                                   networks as torch differentiates them rightly
likelihood elbo     log-densities of a model        density_flow, adaptive, prior, dequantise    their parts
brownian, engines   one path for runs on any grids  capture, whole     runs as CUDA graphs and compiled graphs
draws               draw indices that runs leave free   names, nearest     solvers, processes, grids as text
testing             Hypothesis strategies and assertions for solvers
reference/      exact laws, orders, certificates    elementary         functions that must not cancel
"""
