"""Unit and origin of inputs and targets: training uses standardised rows, the model the rows of the user.

With the inputs' origin m and unit s of each feature, and the targets' mu and sigma of each output, training uses a = (x
- m) / s and t = (y - mu) / sigma. The first and the last layer of the model undo this:

    W_1 -> diag(1 / s) W_1,    b_1 -> b_1 - (m / s) W_1,    W_L -> W_L diag(sigma),    b_L -> b_L diag(sigma) + mu

A layer without a bias cannot undo an origin. Then the origins are 0, and the units are root mean squares.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.bregman.moments import ROWS_AT_ONCE
from tfopt.bregman.network import weights_to_arrays

__all__ = ["ADVICE", "Standardisation", "check_quotients", "choose_units"]

_MOST_ROUNDING = 0.02  # In standard deviations of a column; larger rounding causes a warning.
ADVICE = (
    "Subtract the mean from the data, or use a float64 model: a policy of float64, or "
    "keras.config.set_floatx('float64'), and an Input of float64"
)


@dataclass(frozen=True)
class Standardisation:
    """Origins and units, float64; they are part of the state of training.

    Attributes:
        input_origin: m, shape `(inputs,)`.
        input_unit: s > 0, shape `(inputs,)`.
        is_constant: Whether an input is constant over the rows; its unit is then 1. Shape `(inputs,)`.
        target_origin: mu, shape `(outputs,)`.
        target_unit: sigma > 0, shape `(outputs,)`; 1 for constant targets.
        has_targets: Whether targets are standardised, as they are for a squared error.
    """

    input_origin: np.ndarray
    input_unit: np.ndarray
    is_constant: np.ndarray
    target_origin: np.ndarray
    target_unit: np.ndarray
    has_targets: bool

    @classmethod
    def none(cls, num_inputs: int, num_outputs: int) -> "Standardisation":
        """Return the standardisation that changes nothing: origins of 0 and units of 1."""
        inputs, outputs = np.ones(num_inputs), np.ones(num_outputs)
        return cls(0 * inputs, inputs, inputs == 0, 0 * outputs, outputs, False)

    @property
    def loss_unit(self) -> float:
        """Keras's loss if each standardised output has an error of 1."""
        return float(np.mean(self.target_unit**2))

    def inputs(self, rows: np.ndarray) -> np.ndarray:
        """Return a, of the shape `(rows, inputs)` and dtype of the prepared inputs `rows`."""
        return _standardised(rows, self.input_origin, self.input_unit, rows.dtype)

    def targets(self, rows: np.ndarray, dtype: Any) -> np.ndarray:
        """Return t in a NumPy dtype, of the shape `(rows, outputs)` of the float64 targets `rows`."""
        return _standardised(rows, self.target_origin, self.target_unit, dtype)

    def to_model(self, weights: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
        """Convert weights for a and t to the weights of the same function of x, in the unit of y."""
        arrays = weights_to_arrays(weights, np.float64)
        arrays[0][0] /= self.input_unit[:, None]
        arrays[-1][0] *= self.target_unit
        arrays[-1][1] = arrays[-1][1] * self.target_unit + self.target_origin
        # Use the kernel as the model stores it. Otherwise its rounding, times an origin far from 0, would be an error.
        kernel = arrays[0][0].astype(weights[0][0].dtype.as_numpy_dtype)
        arrays[0][1] -= self.input_origin @ kernel.astype(np.float64)
        return _narrow(arrays, weights)

    def to_training(self, weights: list[tuple[Any, Any]], are_drawn: tuple[bool, bool]) -> list[tuple[Any, Any]]:
        """Convert the model's weights, for x and y, to weights for a and t."""
        arrays = weights_to_arrays(weights, np.float64)
        # `are_drawn` says whether the kernels of the first and of the last layer are as an initializer draws them. Such
        # kernels are meant for unit 1 and stay unchanged, but constant inputs get no weight. All other weights are
        # converted, and keep the function that the model computes.
        if are_drawn[0]:
            arrays[0][0][self.is_constant] = 0.0
        else:
            arrays[0][1] += self.input_origin @ arrays[0][0]
            arrays[0][0] *= self.input_unit[:, None]
        if not are_drawn[1]:
            arrays[-1][0] /= self.target_unit
            arrays[-1][1] = (arrays[-1][1] - self.target_origin) / self.target_unit
        elif self.has_targets:
            arrays[-1][1] *= 0.0  # An initial bias in the unit of y is often the mean of y, which is the origin.
        return _narrow(arrays, weights)


def choose_units(
    mean: np.ndarray, variance: np.ndarray, *, has_origin: bool, name: str, dtype: Any, noise: float, rounding: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return origin, unit (1 for a constant column) and whether each column is constant; the unit must fit `dtype`."""
    limits = np.finfo(dtype)
    # `mean` and `variance` have shape `(columns,)`. Origin and unit are mean and standard deviation or, without an
    # origin, 0 and the root mean square. `noise` is the relative rounding of the values, which does not count as
    # variation. `rounding` is that of the network and its inputs, for the warning.
    deviation = np.sqrt(variance)
    unit = deviation if has_origin else np.hypot(deviation, mean)
    is_constant = unit <= 4 * noise * np.abs(mean) if has_origin else unit == 0
    is_out = (unit > 0) & ~((unit >= limits.tiny / limits.eps) & (unit <= limits.max * limits.eps))
    if is_out.any():
        column = int(np.argmax(is_out))
        raise ValueError(
            f"`{name}` must vary by {limits.tiny / limits.eps:.0e} to {limits.max * limits.eps:.0e} (its standard "
            f"deviation) where the network computes in {np.dtype(dtype)}. Received: {unit[column]:.3g} in column "
            f"{column}. Multiply the column by a power of ten"
        )
    ratios = np.where(is_constant, 0.0, np.abs(mean) / np.where(is_constant, 1.0, unit))
    if has_origin and ratios.max() * rounding > _MOST_ROUNDING:
        column = int(np.argmax(ratios))
        warnings.warn(
            f"`{name}` has a mean that is {ratios[column]:.1e} standard deviations from 0 in column {column}. The "
            f"model rounds such values by {ratios[column] * rounding:.1g} "
            f"standard deviations. {ADVICE}",
            stacklevel=2,
        )
    origin = mean if has_origin else np.zeros_like(mean)
    return origin, np.where(is_constant, 1.0, unit), is_constant


def check_quotients(found: Standardisation, names: tuple[str, str], dtype: Any) -> None:
    """Raise `ValueError` if `dtype` cannot hold the kernel of a one-layer network: target unit over input unit."""
    limits = np.finfo(dtype)
    smallest, largest = float(limits.tiny / limits.eps), float(limits.max * limits.eps)
    for output, unit in enumerate(found.target_unit):
        with np.errstate(over="ignore", under="ignore"):
            quotients = unit / found.input_unit[~found.is_constant]
        is_out = (quotients < smallest) | (quotients > largest)
        if is_out.any():
            column = int(np.flatnonzero(~found.is_constant)[np.argmax(is_out)])
            raise ValueError(
                f"`{names[1]}` must vary by {smallest:.0e} to {largest:.0e} times the variation of `{names[0]}` (their "
                f"standard deviations): this ratio is the unit of the kernel of a one-layer {np.dtype(dtype)} network. "
                f"Received: {unit:.3g} in column {output} of `{names[1]}`, {found.input_unit[column]:.3g} in column "
                f"{column} of `{names[0]}`. Multiply one of them by a power of ten"
            )


def _standardised(rows: np.ndarray, origin: np.ndarray, unit: np.ndarray, dtype: Any) -> np.ndarray:
    result = np.empty(rows.shape, dtype)
    for begin in range(0, len(rows), ROWS_AT_ONCE):
        part = slice(begin, begin + ROWS_AT_ONCE)
        result[part] = (rows[part] - origin) / unit
    return result


def _narrow(arrays: list[list[np.ndarray]], like: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    dtype = like[0][0].dtype
    return [(tf.constant(kernel, dtype), tf.constant(bias, dtype)) for kernel, bias in arrays]
