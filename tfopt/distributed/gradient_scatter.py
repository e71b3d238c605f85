"""Scatter of the ranks' gradients around their mean, summed over training steps at almost no cost."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.distributed.gradients import merge_rows


@dataclass(frozen=True)
class Scatter:
    """Estimates of gradient noise from some steps, in units of one rank's batch.

    With S the mean over ranks of |g_r|^2 and B = |mean g_r|^2, (S - B) / (1 - 1/n) estimates tr C / b and (n B - S) /
    (n - 1) the squared norm of the true gradient, for n ranks of b rows each (McCandlish et al., arXiv 1812.06162,
    appendix A.1). Both are averaged over steps before the division.

    Attributes:
        num_steps: Number of steps.
        covariance_trace: Mean of tr C / b.
        squared_gradient_norm: Mean of |G|^2.
        noise_scale: Their quotient, in batches of one rank; infinity if |G|^2 is not positive.
        noise_scale_standard_error: Its standard error, from the scatter over steps; NaN for a single step.
    """

    num_steps: int
    covariance_trace: float
    squared_gradient_norm: float
    noise_scale: float
    noise_scale_standard_error: float


class GradientScatter:
    """Sums squared norms of local and averaged gradients over steps, inside the training step.

    Args:
        size: Number of ranks (n), at least 2.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        # Number of steps; sums of tr C / b, of |G|^2, of both squared, and of their product.
        self._sums = tf.Variable(tf.zeros(6, tf.float64), trainable=False, name="gradient_scatter")

    def local(self, gradients: list[Any], scale: Any) -> Any:
        """Return this rank's |g_r|^2, a float64 scalar; all ranks average it together with the gradients."""
        # `scale` is the factor by which the gradients were multiplied. None gradients are skipped.
        return _squared_norm(gradients, scale)

    def update(self, mean_of_local: Any, means: list[Any], scale: Any) -> None:
        """Add a step unless a gradient is not finite; `mean_of_local` is the mean of `local` over ranks."""
        n = float(self._size)
        of_mean = _squared_norm(means, scale)
        noise = (mean_of_local - of_mean) / (1.0 - 1.0 / n)
        signal = (n * of_mean - mean_of_local) / (n - 1.0)
        row = tf.stack([tf.ones_like(noise), noise, signal, noise**2, signal**2, noise * signal])
        self._sums.assign_add(tf.where(tf.reduce_all(tf.math.is_finite(row)), row, tf.zeros_like(row)))

    @property
    def sums(self) -> np.ndarray:
        """The sums over the steps since the last `take`, for a checkpoint."""
        return self._sums.numpy()

    @sums.setter
    def sums(self, value: np.ndarray) -> None:
        self._sums.assign(value)

    def take(self) -> Scatter:
        """Return the scatter of the steps since the last call, and reset the sums."""
        count, noise, signal, noise_2, signal_2, both = self._sums.numpy()
        self._sums.assign(tf.zeros_like(self._sums))
        if count == 0:
            return Scatter(0, np.nan, np.nan, np.nan, np.nan)
        noise, signal, noise_2, signal_2, both = (s / count for s in (noise, signal, noise_2, signal_2, both))
        if signal <= 0:
            return Scatter(int(count), float(noise), float(signal), np.inf, np.nan)
        scale = noise / signal
        # To first order, the variance of the quotient is that of noise - scale * signal, over signal^2.
        variance = noise_2 - noise**2 - 2 * scale * (both - noise * signal) + scale**2 * (signal_2 - signal**2)
        error = np.sqrt(max(variance, 0.0) / (count - 1)) / signal if count > 1 else np.nan
        return Scatter(int(count), float(noise), float(signal), float(scale), float(error))


def _squared_norm(gradients: list[Any], scale: Any) -> Any:
    total = tf.zeros((), tf.float64)
    for gradient in gradients:
        if gradient is None:
            continue
        if isinstance(gradient, tf.IndexedSlices):
            gradient = merge_rows(gradient).values
        # A float32 sum of squares is accurate enough for a statistic, and avoids a copy of the gradient.
        wide = tf.cast(gradient, tf.float32) if gradient.dtype.size < 4 else gradient
        total += 2.0 * tf.cast(tf.nn.l2_loss(wide), tf.float64)
    return total / tf.cast(scale, tf.float64) ** 2
