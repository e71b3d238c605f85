"""Loss and metrics of the forward network over many rows, on one rank or many."""

import functools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt import _keras
from tfopt._compiled import compiled
from tfopt.bregman.losses import Loss
from tfopt.bregman.network import Architecture, DenseChain
from tfopt.bregman.rows import Chunk, Rows
from tfopt.communicator import Communicator

__all__ = ["Evaluation"]

_ROWS_AT_ONCE = 65536  # Rows per call of a metric.


class Evaluation:
    """Measures loss and metrics of a network.

    Metrics receive probabilities if the loss is a cross-entropy, and outputs otherwise. Keras's R2Score subtracts
    squares. A copy of R2Score therefore computes in float64, on values from which their mean was subtracted. The
    variables of a metric are summed over ranks, which is correct for variables that hold sums and counts.

    Args:
        chain: The network.
        loss: The loss.
        metrics: Keras metrics or their names; None for none.
        communicator: The job's communicator.
    """

    def __init__(self, chain: DenseChain, loss: Loss, metrics: Any, communicator: Communicator) -> None:
        self._chain, self._loss, self._communicator = chain, loss, communicator
        self._metrics = [_make_metric(metric, chain.widths[-1], loss) for metric in _listed(metrics)]
        self._forward = _make_forward(chain.architecture, loss)

    @property
    def metric_names(self) -> list[str]:
        """Names of the metrics."""
        return [metric.name for metric in self._metrics]

    def mean_loss(self, loss_per_row: float) -> float:
        """Convert our loss per row, a sum over outputs, to Keras's: a mean over outputs, except for the softmax."""
        return loss_per_row if self._loss.targets == "distribution" else loss_per_row / self._chain.widths[-1]

    def __call__(self, rows: Rows, weights: Any, with_metrics: bool = True) -> tuple[float, dict[str, Any]]:
        """Return the loss of standardised targets (mean over rows, sum over outputs), and logs in the targets' unit."""
        # `weights` are as from `DenseChain.read_weights`. The logs hold Keras's loss, and the metrics if
        # `with_metrics`.
        standardisation = rows.standardisation
        metrics = self._metrics if with_metrics else []
        shift = rows.target_mean() if any(_subtracts_squares(metric) for metric in metrics) else 0.0
        origin = standardisation.target_origin
        units = [tf.constant(part) for part in (standardisation.target_unit, origin, origin - shift)]
        for metric in metrics:
            metric.reset_state()
        total: Any = None
        waiting: list[tuple[Any, ...]] = []
        for chunk, members in zip(rows.all(), rows.row_numbers(), strict=True):
            part, *seen = self._forward(chunk, weights, *units)
            total = part if total is None else total + part
            if metrics:
                waiting.append(tuple(values[: len(members)] for values in seen))
                if len(waiting) * rows.rows_per_chunk >= _ROWS_AT_ONCE:
                    self._update(metrics, waiting)
        self._update(metrics, waiting)
        return self._reduce(total, rows, metrics)

    @staticmethod
    def _update(metrics: Sequence[Any], waiting: list[tuple[Any, ...]]) -> None:
        if waiting:
            seen = [tf.concat(parts, axis=0) for parts in zip(*waiting, strict=True)]
            for metric in metrics:
                targets, outputs = seen[2:] if _subtracts_squares(metric) else seen[:2]
                metric.update_state(tf.argmax(targets, axis=1) if _wants_labels(metric) else targets, outputs)
            waiting.clear()

    def _reduce(self, total: Any, rows: Rows, metrics: Sequence[Any]) -> tuple[float, dict[str, Any]]:
        variables = [variable for metric in metrics for variable in metric.variables]
        if self._communicator.size > 1:
            values = [tf.convert_to_tensor(variable.value) for variable in variables]
            total, *values = self._communicator.allreduce_sum([total, *values], name="loss and metrics")
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
        loss, in_units = (float(part) / rows.total_rows for part in (total[0], total[-1]))
        logs: dict[str, Any] = {"loss": self.mean_loss(in_units)}
        for metric in metrics:
            result = metric.result()
            by_name = result if isinstance(result, dict) else {metric.name: result}
            for name, value in by_name.items():
                value = np.asarray(value)
                logs[name] = value if value.ndim else float(value)
        return loss, logs


@functools.lru_cache(maxsize=64)
def _make_forward(architecture: Architecture, loss: Loss) -> Any:
    # Return sums of the loss for standardised targets and, for a squared error, also in the user's unit. Then return
    # the values for metrics, and float64 values with another origin for metrics that subtract squares.
    def evaluate(chunk: Chunk, weights: Any, unit: Any, origin: Any, other_origin: Any) -> tuple[Any, ...]:
        outputs, targets = architecture.forward(chunk.inputs, weights)[-1], chunk.targets
        total = tf.reduce_sum(tf.cast(loss.value(outputs, targets) * chunk.mask, tf.float64))
        if not loss.is_quadratic:
            seen: tuple[Any, ...] = targets, loss.probability(outputs)
            return total[None], *seen, *(tf.cast(part, tf.float64) for part in seen)
        # Use float64, because squares of a small unit underflow in float32. Leave the origin out: it cancels and would
        # cost digits.
        targets, outputs = (tf.cast(part, tf.float64) * unit for part in (targets, outputs))
        in_units = tf.reduce_sum(loss.value(outputs, targets) * tf.cast(chunk.mask, tf.float64))
        seen = tuple(tf.cast(part + origin, architecture.dtype) for part in (targets, outputs))
        return tf.stack([total, in_units]), *seen, targets + other_origin, outputs + other_origin

    return compiled(evaluate, by_xla=True)


def _subtracts_squares(metric: Any) -> bool:
    return type(metric) is keras.metrics.R2Score  # A subclass may compute something else.


def _wants_labels(metric: Any) -> bool:
    # Chunks hold labels as one-hot rows. Keras's sparse metrics, and metrics that wrap sparse functions, take integers.
    function = getattr(_keras.metric_function(metric, None), "__name__", "")
    return function.startswith("sparse_") or any(kind.__name__.startswith("Sparse") for kind in type(metric).__mro__)


def _listed(metrics: Any) -> list[Any]:
    if metrics is None:
        return []
    if isinstance(metrics, str) or not isinstance(metrics, Sequence):
        raise TypeError(f"`metrics` must be a list of Keras metrics or their names. Received: metrics={metrics!r}")
    return list(metrics)


def _make_metric(metric: Any, num_outputs: int, loss: Loss) -> Any:
    if isinstance(metric, str) and metric in ("r2_score", "R2Score"):
        return keras.metrics.R2Score(name=metric, dtype="float64")
    if type(metric) is keras.metrics.R2Score:
        return keras.metrics.R2Score.from_config({**metric.get_config(), "dtype": "float64"})
    if metric in ("accuracy", "acc"):
        if num_outputs > 1:
            return keras.metrics.CategoricalAccuracy(name=metric)
        return keras.metrics.BinaryAccuracy(name=metric, threshold=0.0 if loss.targets == "signs" else 0.5)
    if isinstance(metric, str):
        try:
            made = keras.metrics.get(metric)
        except ValueError as error:
            raise ValueError(f"`metrics` has {metric!r}, which Keras does not know: {error}") from error
        made.name = metric
        return made
    if isinstance(metric, keras.metrics.Metric):
        return metric
    if callable(metric) and not isinstance(metric, type):
        return keras.metrics.MeanMetricWrapper(metric, name=getattr(metric, "__name__", "metric"))
    raise TypeError(f"`metrics` must be Keras metrics or their names. Received: {metric!r}")
