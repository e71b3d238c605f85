"""Certify from a model and its data that the loss is strongly convex at the model's weights."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt import _keras
from tfopt.curvature.batch import Batch
from tfopt.curvature.covered_networks import NotCoveredError, check_loss, common_l2, dense_layers, read_network
from tfopt.curvature.enclosure import (
    SMALLEST,
    UNIT_ROUNDOFF,
    Enclosure,
    difference,
    largest_row_norm,
    spectral_norm,
    stored,
    sum_of_squares,
    through_dense,
    through_relu,
)
from tfopt.curvature.modulus import ConvexityCertificate
from tfopt.curvature.objective import Objective, as_objective


def convexity_certificate(objective: Any, *data: Any, **options: Any) -> ConvexityCertificate:
    """Return the bound of the strong-convexity theorem for a network on data.

    The theorem covers chains of Dense layers without biases, with linear, ReLU or leaky ReLU activations of slopes up
    to 1, a linear output, the loss "mse", and the same L2 penalty on every kernel. Networks with at most one hidden
    layer may have biases, with the same penalty on them. An optimizer's `weight_decay` is not part of the loss, and
    does not count. Layers that share weights, and dtypes of 16 bits or fewer in a layer or the loss, are not covered.

    The reported moduli are lower bounds in spite of rounding. They hold for the network in exact arithmetic, with the
    weights as they are stored. The outputs are computed in float64, with a bound of their error: for a sum of n
    products 4 (n + 4) 2^-53 times the sum of the products' absolute values, propagated through all layers. The modulus
    is reduced by the full error. It is also reduced for the rounding of data, slopes and L2 coefficients to float32,
    and for processors that set denormal numbers to zero. Singular values are raised by the relative amount of 1e-12
    times the larger dimension of the matrix. The inputs are taken after the cast to the dtype of the model's
    `keras.Input`.

    Args:
        objective: An `Objective` with the loss "mse" in any of its forms; or a model, followed by further arguments of
            `Objective`. The data of all ranks count.
        *data: Loss, x and y after a model.
        **options: Options of `Objective` after a model.

    Returns:
        The certificate; `theta_paper` and `theta_sharp` are positive if the loss is certified to be strongly convex.

    Raises:
        TypeError: An argument has the wrong type.
        NotCoveredError: The theorem does not cover the model, its loss or its data; the message says why. A ValueError.
        ValueError: An argument is out of its range.

    Example:
        >>> from tfopt.models import milne_regression
        >>> model = milne_regression(seed=0)
        >>> _ = model.set_weights([np.array([[0.5, 0.25]]), np.array([[0.5], [0.5]])])
        >>> objective = Objective(model, "mse", (np.array([[1.0]]), np.array([[0.0]])))
        >>> certificate = convexity_certificate(objective)
        >>> [round(found, 6) for found in (certificate.mean_squared_error, certificate.theta_paper)]
        [0.140625, 0.5]
        >>> round(certificate.theta_sharp, 6)
        1.25
    """
    return CertifiedNetwork(as_objective(objective, *data, **options)).certificate()


class CertifiedNetwork:
    """A network that the theorem covers, with its data; raises NotCoveredError for any other one."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        radius = self._read()
        # A bias is the weight of an input that is always 1.
        self._radius = float(np.hypot(radius, 1.0)) * (1.0 + 4.0 * UNIT_ROUNDOFF) if self._has_bias() else radius

    def _has_bias(self) -> bool:
        return any(layer.use_bias for layer in self._layers)

    def _read(self) -> float:
        # Returns the largest norm of an input. If the theorem does not cover the data of one rank, every rank raises.
        why, radius = "", 0.0
        try:
            self._steps = read_network(self._objective.model)
            self._layers = dense_layers(self._steps)
            self._dtype = self._data_dtype(check_loss(self._objective))
            self._l2 = common_l2(self._layers)
            for batch in self._objective.probe.batches:
                _targets(batch.y, int(self._layers[-1].units), self._dtype)
                with np.errstate(over="ignore", invalid="ignore"):
                    radius = max(radius, largest_row_norm(self._inputs(batch)))
        except NotCoveredError as error:
            why = error.why
        found = self._objective.communicator.allgather_object((why, radius), "what the certificate covers")
        refused = next((why for why, _ in found if why), None)
        if refused:
            raise NotCoveredError(refused)
        return max(radius for _, radius in found)

    def _data_dtype(self, loss_dtype: str) -> str:
        # The layers and the loss round the data to their dtypes, and `fit` rounds them to Keras's floatx.
        model = self._objective.model
        dtypes = {loss_dtype, keras.config.floatx(), model.inputs[0].dtype}
        dtypes |= {layer.compute_dtype for layer in _keras.flatten_layers(model)()}
        return "float32" if "float32" in dtypes else "float64"

    def certificate(self) -> ConvexityCertificate:
        """Return the certificate at the current weights, over all ranks' rows; ValueError if a weight is not finite."""
        kernels = {layer.name: stored(layer.kernel.value, layer.compute_dtype) for layer in self._layers}
        with np.errstate(over="ignore", invalid="ignore"):
            error = self._mean_squared_error(kernels)
            if not all(np.isfinite(kernel.value).all() for kernel in kernels.values()):
                raise ValueError("`model` must have finite weights. Received: weights that are NaN or infinite")
            norm = max(spectral_norm(kernel) for kernel in kernels.values())
        return ConvexityCertificate(
            l2=self._l2,
            mean_squared_error=error,
            spectral_norm=norm,
            input_radius=self._radius,
            num_hidden_layers=len(self._layers) - 1,
            num_outputs=int(self._layers[-1].units),
        )

    def _mean_squared_error(self, kernels: dict[str, Enclosure]) -> float:
        # Returns an upper bound over all ranks.
        total, rows = 0.0, self._objective.num_rows
        for batch in self._objective.probe.batches:
            outputs = self._outputs(batch, kernels)
            residuals = difference(outputs, _targets(batch.y, outputs.value.shape[1], self._dtype))
            total += float(sum_of_squares(residuals)) / residuals.value.size * (batch.num_rows / rows)
        (total,) = self._objective.communicator.allreduce_sum([tf.constant(total, tf.float64)], name="error")
        # Each batch and each rank adds a few rounding errors.
        error = float(total) * (1.0 + 8.0 * (len(self._objective.probe.batches) + rows) * UNIT_ROUNDOFF)
        return max(error, SMALLEST) if error else 0.0

    def _outputs(self, batch: Batch, kernels: dict[str, Enclosure]) -> Enclosure:
        rows = self._inputs(batch)
        for step in self._steps:
            if isinstance(step, float):
                rows = through_relu(rows, step)
            elif type(step) is keras.layers.Flatten:
                rows = Enclosure(*(_flat(part, step.data_format) for part in (rows.value, rows.error)))
            else:
                bias = stored(step.bias.value, step.compute_dtype) if step.use_bias else None
                rows = through_dense(rows, kernels[step.name], bias)
        return rows

    def _inputs(self, batch: Batch) -> Enclosure:
        # Returns the inputs after Keras's casts.
        leaves = keras.tree.flatten(batch.x)
        if len(leaves) != 1:
            raise NotCoveredError(f"the data have {len(leaves)} inputs")
        (expected,) = self._objective.model.inputs
        values = np.asarray(leaves[0])
        if values.ndim != len(expected.shape):  # Keras adds or removes a last axis of length 1
            values = values[..., 0] if values.ndim > len(expected.shape) else values[..., None]
        given = stored(values, self._dtype)
        return given if "float" in expected.dtype else _cast(given, expected.dtype)


def _cast(given: Enclosure, dtype: str) -> Enclosure:
    # Casts to bool or to integers. Numbers within the error may be cast to different values, so the error grows.
    if dtype == "bool":
        value = (given.value != 0).astype(np.float64)
        return Enclosure(value, ((given.error > 0) & (np.abs(given.value) <= given.error)).astype(np.float64))
    low, high = np.trunc(given.value - given.error), np.trunc(given.value + given.error)
    limits = np.iinfo(dtype)
    if low.min() < limits.min or high.max() > limits.max:
        raise NotCoveredError(
            f"the network takes inputs of dtype {dtype}, and the data range from {low.min():g} to {high.max():g}"
        )
    return Enclosure(low, high - low)


def _flat(array: np.ndarray, data_format: str) -> np.ndarray:
    if data_format == "channels_first" and array.ndim > 2:
        array = np.moveaxis(array, 1, -1)
    return array.reshape(len(array), -1)


def _targets(y: Any, num_outputs: int, dtype: str) -> Enclosure:
    # Returns shape (rows, 1) or (rows, outputs), as Keras aligns targets with outputs.
    leaves = keras.tree.flatten(y)
    if len(leaves) != 1:
        raise NotCoveredError(f"the data have {len(leaves)} targets")
    values = np.asarray(leaves[0])
    shape = values.shape
    if values.ndim == 1 and num_outputs == 1:
        values = values[:, None]
    elif values.ndim == 3 and shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != 2 or (values.shape[1] != num_outputs and 1 not in (values.shape[1], num_outputs)):
        raise NotCoveredError(f"the targets have the shape {shape}, for {num_outputs} outputs")
    return stored(values, dtype)
