"""Training: data, losses, and the loop that fits a network.

data              data sets by name or path, and the order in which training sees them
losses            losses of explicit tensors, a file a family; objectives: losses with all choices made
fit, settings     `fit_score`, and the numbers that it is called with
trainer, loop, noise, workers   one step, all of them, the random numbers of one, several processes
folder, checkpoint, log, pictures   what a run leaves behind; recipe, saved: what it was, and a network read back
sampling          samples made by several processes
"""

from halfbridge.training import checkpoint, data, losses, objectives
from halfbridge.training.fit import ScoreFit, fit_score
from halfbridge.training.interrupts import Interrupted
from halfbridge.training.loop import TrainingState
from halfbridge.training.sampling import sample_rows
from halfbridge.training.saved import Saved, load, save
from halfbridge.training.settings import Settings

__all__ = [
    "Interrupted", "Saved", "ScoreFit", "Settings", "TrainingState", "checkpoint", "data", "fit_score", "load", "losses",
    "objectives", "sample_rows", "save",
]  # fmt: skip
