"""Losses, data and trainers."""

from halfbridge.training import data, losses
from halfbridge.training.fit import ScoreFit, fit_score

__all__ = ["ScoreFit", "data", "fit_score", "losses"]
