"""Train Dense networks without gradients, by exact block minimisation, on one rank or many."""

from tfopt.bregman import activations, losses, updates
from tfopt.bregman.settings import PRESETS, RestartedSettings, Settings, SplittingSettings
from tfopt.bregman.trainer import BregmanTrainer

__all__ = [
    "PRESETS",
    "BregmanTrainer",
    "RestartedSettings",
    "Settings",
    "SplittingSettings",
    "activations",
    "losses",
    "updates",
]
