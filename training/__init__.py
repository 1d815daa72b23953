"""Training: data, losses, and the loop that fits a network.

data              data sets by name or path, and the order in which training sees them
losses            losses of explicit tensors, a file a family; objectives: losses with all choices made
fit, settings     `fit_score`, and the numbers that it is called with
trainer, loop, modes, noise, workers   one step, all of them, how modules are put, the random numbers of a step, processes
folder, checkpoint, log, pictures   what a run leaves behind; recipe, saved: what it was, and a network read back
sampling          samples made by several processes; notices: warnings at the line that called
bridge            diffusion Schrödinger bridges: iterative proportional fitting and bridge matching
"""

from halfbridge.training import bridge, checkpoint, data, losses, objectives
from halfbridge.training.bridge import BridgeFit, ReferenceChain, StopRule, fit_bridge, load_bridge
from halfbridge.training.fit import ScoreFit, fit_score
from halfbridge.training.interrupts import Interrupted
from halfbridge.training.loop import TrainingState
from halfbridge.training.sampling import sample_rows
from halfbridge.training.saved import Saved, load, save
from halfbridge.training.settings import Settings

__all__ = [
    "BridgeFit", "Interrupted", "ReferenceChain", "Saved", "ScoreFit", "Settings", "StopRule", "TrainingState", "bridge",
    "checkpoint", "data", "fit_bridge", "fit_score", "load", "load_bridge", "losses", "objectives", "sample_rows", "save",
]  # fmt: skip
