"""Unit and origin of inputs and targets: training works on standardised rows, the model on those of the user.

With the inputs' origin m and unit s, feature by feature, and the targets' mu and sigma, output by output, training sees
a = (x - m) / s and t = (y - mu) / sigma. The first and the last layer of the model undo that:

    W_1 -> diag(1 / s) W_1,    b_1 -> b_1 - (m / s) W_1,    W_L -> W_L diag(sigma),    b_L -> b_L diag(sigma) + mu

A layer without a bias cannot undo an origin: then origins are 0, and units root mean squares.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

__all__ = ["ADVICE", "Standardisation", "check_quotients", "choose_units"]

_MOST_ROUNDING = 0.02  # of the model's outputs, in standard deviations, before users are warned
ADVICE = (
    "Subtract the mean from the data, or use a float64 model: a policy of float64, or "
    "keras.config.set_floatx('float64'), and an Input of float64"
)
_ROWS_AT_ONCE = 1024  # in float64, so that temporaries stay small


@dataclass(frozen=True)
class Standardisation:
    """Origins and units, float64; part of the state of training.

    Attributes:
        input_origin: m, shape `(inputs,)`.
        input_unit: s > 0, shape `(inputs,)`.
        is_constant: Which inputs do not vary over the rows; their unit is 1. Shape `(inputs,)`.
        target_origin: mu, shape `(outputs,)`.
        target_unit: sigma > 0, shape `(outputs,)`; 1 where the targets do not vary.
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
        """Return origins of 0 and units of 1.

        Args:
            num_inputs: Inputs of the network.
            num_outputs: Its outputs.

        Returns:
            The standardisation that changes nothing.
        """
        inputs, outputs = np.ones(num_inputs), np.ones(num_outputs)
        return cls(0 * inputs, inputs, inputs == 0, 0 * outputs, outputs, False)

    @property
    def loss_unit(self) -> float:
        """Keras's loss where each standardised output is wrong by 1."""
        return float(np.mean(self.target_unit**2))

    def inputs(self, rows: np.ndarray) -> np.ndarray:
        """Standardise inputs.

        Args:
            rows: Prepared inputs, shape `(rows, inputs)`.

        Returns:
            a, of the same shape and dtype.
        """
        return _standardised(rows, self.input_origin, self.input_unit, rows.dtype)

    def targets(self, rows: np.ndarray, dtype: Any) -> np.ndarray:
        """Standardise targets.

        Args:
            rows: float64, shape `(rows, outputs)`.
            dtype: NumPy's dtype of the result.

        Returns:
            t, of the same shape.
        """
        return _standardised(rows, self.target_origin, self.target_unit, dtype)

    def to_model(self, weights: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
        """Turn the weights of training into the model's.

        Args:
            weights: As from `DenseChain.read_weights`, for a and t.

        Returns:
            Those of the same function of x, in the unit of y.
        """
        arrays = _wide(weights)
        arrays[0][0] /= self.input_unit[:, None]
        arrays[-1][0] *= self.target_unit
        arrays[-1][1] = arrays[-1][1] * self.target_unit + self.target_origin
        # The kernel as the model holds it: its rounding, times an origin far away, is no error then.
        kernel = arrays[0][0].astype(weights[0][0].dtype.as_numpy_dtype)
        arrays[0][1] -= self.input_origin @ kernel.astype(np.float64)
        return _narrow(arrays, weights)

    def to_training(self, weights: list[tuple[Any, Any]], are_drawn: tuple[bool, bool]) -> list[tuple[Any, Any]]:
        """Turn the model's weights into those of training.

        Kernels as an initializer has drawn them are meant for inputs and targets of unit 1, and stay as they are, but
        that inputs which do not vary get no weight. All others are of the function that the model computes.

        Args:
            weights: As from `DenseChain.read_weights`, for x and y.
            are_drawn: Whether the kernels of the first and of the last layer are as their initializers draw them.

        Returns:
            Those for a and t.
        """
        arrays = _wide(weights)
        if are_drawn[0]:
            arrays[0][0][self.is_constant] = 0.0
        else:
            arrays[0][1] += self.input_origin @ arrays[0][0]
            arrays[0][0] *= self.input_unit[:, None]
        if not are_drawn[1]:
            arrays[-1][0] /= self.target_unit
            arrays[-1][1] = (arrays[-1][1] - self.target_origin) / self.target_unit
        elif self.has_targets:
            arrays[-1][1] *= 0.0  # a first bias in the unit of y, often their mean, is the origin here
        return _narrow(arrays, weights)


def choose_units(
    mean: np.ndarray, variance: np.ndarray, *, has_origin: bool, name: str, dtype: Any, noise: float, rounding: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Choose origin and unit of columns: mean and standard deviation, or 0 and the root mean square.

    Args:
        mean: Of each column, shape `(columns,)`.
        variance: Of each column.
        has_origin: Whether there may be an origin.
        name: What messages call the array.
        dtype: NumPy's dtype of the network.
        noise: Relative rounding of the values that came, which is no variation.
        rounding: That of the network and of its inputs, for the warning.

    Returns:
        Origin, unit, and which columns do not vary: their unit is 1.

    Raises:
        ValueError: A unit is so large, or so small, that the model's weights could not be held in `dtype`.
    """
    limits = np.finfo(dtype)
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
    """Check the units of a network of one layer, whose kernel has the unit of the targets over that of the inputs.

    Args:
        found: The units.
        names: What messages call inputs and targets.
        dtype: NumPy's dtype of the network.

    Raises:
        ValueError: A kernel of such a unit could not be held in `dtype`.
    """
    limits = np.finfo(dtype)
    smallest, largest = float(limits.tiny / limits.eps), float(limits.max * limits.eps)
    for output, unit in enumerate(found.target_unit):
        with np.errstate(over="ignore", under="ignore"):
            quotients = unit / found.input_unit[~found.is_constant]
        is_out = (quotients < smallest) | (quotients > largest)
        if is_out.any():
            column = int(np.flatnonzero(~found.is_constant)[np.argmax(is_out)])
            raise ValueError(
                f"`{names[1]}` must vary by {smallest:.0e} to {largest:.0e} times what `{names[0]}` varies by (their "
                f"standard deviations), as a network of one layer in {np.dtype(dtype)} has a kernel of that unit. "
                f"Received: {unit:.3g} in column {output} of `{names[1]}`, {found.input_unit[column]:.3g} in column "
                f"{column} of `{names[0]}`. Multiply one of them by a power of ten"
            )


def _standardised(rows: np.ndarray, origin: np.ndarray, unit: np.ndarray, dtype: Any) -> np.ndarray:
    result = np.empty(rows.shape, dtype)
    for begin in range(0, len(rows), _ROWS_AT_ONCE):
        part = slice(begin, begin + _ROWS_AT_ONCE)
        result[part] = (rows[part] - origin) / unit
    return result


def _wide(weights: list[tuple[Any, Any]]) -> list[list[np.ndarray]]:
    return [[part.numpy().astype(np.float64) for part in pair] for pair in weights]


def _narrow(arrays: list[list[np.ndarray]], like: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    dtype = like[0][0].dtype
    return [(tf.constant(kernel, dtype), tf.constant(bias, dtype)) for kernel, bias in arrays]
