"""Keras callbacks that record what happens to a network while it trains, train it on several ranks, and resume it."""

from typing import TYPE_CHECKING

from tfopt._checks import check_keras_3
from tfopt._lazy import lazy_names

check_keras_3()

from tfopt.callbacks._history import MeasurementHistory  # noqa: E402
from tfopt.callbacks.weight_norms import WeightNorms  # noqa: E402

if TYPE_CHECKING:
    from tfopt.callbacks.average_metrics import AverageMetrics
    from tfopt.callbacks.broadcast_variables import BroadcastVariables
    from tfopt.callbacks.convexity import Convexity
    from tfopt.callbacks.gradient_breakdown import GradientBreakdown
    from tfopt.callbacks.gradient_noise_scale import GradientNoiseScale
    from tfopt.callbacks.measurement import Measurement
    from tfopt.callbacks.resumable_checkpoint import ResumableCheckpoint
    from tfopt.callbacks.warmup import WarmupLearningRate

# These modules import TensorFlow. The others also work on other Keras backends without it.
_MODULES = {
    "AverageMetrics": "average_metrics",
    "BroadcastVariables": "broadcast_variables",
    "Convexity": "convexity",
    "GradientBreakdown": "gradient_breakdown",
    "GradientNoiseScale": "gradient_noise_scale",
    "Measurement": "measurement",
    "ResumableCheckpoint": "resumable_checkpoint",
    "WarmupLearningRate": "warmup",
}

__all__ = [
    "AverageMetrics",
    "BroadcastVariables",
    "Convexity",
    "GradientBreakdown",
    "GradientNoiseScale",
    "Measurement",
    "MeasurementHistory",
    "ResumableCheckpoint",
    "WarmupLearningRate",
    "WeightNorms",
]
__getattr__, __dir__ = lazy_names(__name__, _MODULES, __all__)
