"""Loss and metrics of the forward network over many rows, on one rank or many."""

import functools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.bregman.compilation import compiled
from tfopt.bregman.losses import Loss
from tfopt.bregman.network import Architecture, DenseChain
from tfopt.bregman.rows import Chunk, Rows
from tfopt.communicator import Communicator

__all__ = ["Evaluation"]

_ROWS_AT_ONCE = 65536  # that metrics see at once


class Evaluation:
    """What measures a network on rows.

    Metrics see probabilities where the loss is a cross-entropy, outputs otherwise. Keras's R2Score subtracts squares:
    it is computed in float64, in a copy, on values that their mean has left. Over ranks the variables of a metric
    are added up, as is right for those that hold sums and counts.

    Args:
        chain: The network.
        loss: The loss.
        metrics: Keras metrics or their names; None for none.
        communicator: The job's processes.
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
        """Turn our loss of a row into Keras's, which is a mean over the outputs unless it is the softmax's.

        Args:
            loss_per_row: The mean over rows of the sum over outputs.

        Returns:
            Keras's loss.
        """
        return loss_per_row if self._loss.targets == "distribution" else loss_per_row / self._chain.widths[-1]

    def __call__(self, rows: Rows, weights: Any, with_metrics: bool = True) -> tuple[float, dict[str, Any]]:
        """Measure weights on rows.

        Args:
            rows: The rows.
            weights: As from `DenseChain.read_weights`.
            with_metrics: Whether to compute metrics too.

        Returns:
            The loss of standardised targets, summed over outputs and averaged over rows; and the logs: Keras's loss and
            metrics, in the targets' unit.
        """
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
    # Sums of the loss: of standardised targets, and for a squared error of the user's too. What metrics see, and what
    # those see that subtract squares: float64, from another origin.
    def evaluate(chunk: Chunk, weights: Any, unit: Any, origin: Any, other_origin: Any) -> tuple[Any, ...]:
        outputs, targets = architecture.forward(chunk.inputs, weights)[-1], chunk.targets
        total = tf.reduce_sum(tf.cast(loss.value(outputs, targets) * chunk.mask, tf.float64))
        if not loss.is_quadratic:
            seen: tuple[Any, ...] = targets, loss.probability(outputs)
            return total[None], *seen, *(tf.cast(part, tf.float64) for part in seen)
        # In float64: squares of a small unit underflow in float32. An origin would cost digits, and cancels.
        targets, outputs = (tf.cast(part, tf.float64) * unit for part in (targets, outputs))
        in_units = tf.reduce_sum(loss.value(outputs, targets) * tf.cast(chunk.mask, tf.float64))
        seen = tuple(tf.cast(part + origin, architecture.dtype) for part in (targets, outputs))
        return tf.stack([total, in_units]), *seen, targets + other_origin, outputs + other_origin

    return compiled(evaluate)


def _subtracts_squares(metric: Any) -> bool:
    return type(metric) is keras.metrics.R2Score  # of a subclass nothing is known


def _wants_labels(metric: Any) -> bool:
    # Chunks hold labels as one-hot rows; Keras's sparse metrics, and wrapped sparse functions, take integers.
    function = getattr(getattr(metric, "_fn", None), "__name__", "")
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
