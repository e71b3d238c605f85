"""Loss and metrics of the forward network over many rows, on one rank or many."""

import functools
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._compiled import compiled
from tfopt.bregman.losses import Loss
from tfopt.bregman.metrics import Metrics
from tfopt.bregman.network import Architecture, DenseChain
from tfopt.bregman.rows import Chunk, Rows
from tfopt.communicator import Communicator

__all__ = ["Evaluation"]

# Rows per call of a metric. Functions that pair all rows, as targets (n,) minus outputs (n, 1), must fit in memory.
_ROWS_AT_ONCE = 8192


class Evaluation:
    """Measures loss and metrics of a network.

    Metrics receive what `keras.Model.evaluate` passes to them: the targets as the user gave them, and the model's own
    outputs. Keras's R2Score subtracts squares. A copy of R2Score therefore computes in float64, on values from which
    their mean was subtracted. The variables of a metric are summed over ranks, which is correct for variables that hold
    sums and counts.

    Args:
        chain: The network.
        loss: The loss.
        metrics: Keras metrics or their names; None for none.
        communicator: The job's communicator.
    """

    def __init__(self, chain: DenseChain, loss: Loss, metrics: Any, communicator: Communicator) -> None:
        self._chain, self._loss, self._communicator = chain, loss, communicator
        self._metrics = Metrics(metrics, chain, loss)
        self._forward = _make_forward(chain.architecture, loss)

    @property
    def metric_names(self) -> list[str]:
        """Names of the metrics."""
        return self._metrics.names

    @property
    def metric_facts(self) -> list[str]:
        """What the values of the metrics depend on, beside targets and weights: names, arguments, kind of outputs."""
        return self._metrics.facts

    def mean_loss(self, loss_per_row: float) -> float:
        """Convert our loss per row, a sum over outputs, to Keras's: a mean over outputs, except for the softmax."""
        return loss_per_row if self._loss.targets == "distribution" else loss_per_row / self._chain.widths[-1]

    def __call__(self, rows: Rows, weights: Any, with_metrics: bool = True) -> tuple[float, dict[str, Any]]:
        """Return the loss of standardised targets (mean over rows, sum over outputs), and logs in the targets' unit."""
        # `weights` are as from `DenseChain.read_weights`. The logs hold Keras's loss, and the metrics if
        # `with_metrics`.
        standardisation = rows.standardisation
        metrics = self._metrics.of_targets(rows.target_shape) if with_metrics and self.metric_names else None
        shift = rows.target_mean() if metrics is not None and self._metrics.subtract_squares else 0.0
        origin = standardisation.target_origin
        units = [tf.constant(part) for part in (standardisation.target_unit, origin, origin - shift)]
        for metric in [] if metrics is None else metrics.metrics:
            metric.reset_state()
        total: Any = None
        waiting: list[tuple[Any, ...]] = []
        for chunk, members in zip(rows.all(), rows.row_numbers(), strict=True):
            part, *seen = self._forward(chunk, weights, *units)
            total = part if total is None else total + part
            if metrics is not None:
                waiting.append((rows.given_targets(members), *(values[: len(members)] for values in seen)))
                if len(waiting) * rows.rows_per_chunk >= _ROWS_AT_ONCE:
                    self._update(metrics, waiting)
        self._update(metrics, waiting)
        return self._reduce(total, rows, metrics)

    def _update(self, metrics: Any, waiting: list[tuple[Any, ...]]) -> None:
        if waiting:
            targets, outputs, *centred = (tf.concat(parts, axis=0) for parts in zip(*waiting, strict=True))
            self._metrics.update(metrics, targets, outputs, centred)
            waiting.clear()

    def _reduce(self, total: Any, rows: Rows, metrics: Any) -> tuple[float, dict[str, Any]]:
        variables = [] if metrics is None else metrics.variables
        if self._communicator.size > 1:
            values = [tf.convert_to_tensor(variable.value) for variable in variables]
            total, *values = self._communicator.allreduce_sum([total, *values], name="loss and metrics")
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
        loss, in_units = (float(part) / rows.total_rows for part in (total[0], total[-1]))
        logs: dict[str, Any] = {"loss": self.mean_loss(in_units)}
        for metric_name, result in ({} if metrics is None else metrics.result()).items():
            by_name = result if isinstance(result, dict) else {metric_name: result}
            for name, value in by_name.items():
                value = np.asarray(value)
                logs[name] = value if value.ndim else float(value)
        return loss, logs


@functools.lru_cache(maxsize=64)
def _make_forward(architecture: Architecture, loss: Loss) -> Any:
    # Return sums of the loss for standardised targets and, for a squared error, also in the user's unit. Then return
    # the outputs and, for a squared error, float64 targets and outputs with another origin, for metrics that subtract
    # squares.
    def evaluate(chunk: Chunk, weights: Any, unit: Any, origin: Any, other_origin: Any) -> tuple[Any, ...]:
        outputs, targets = architecture.forward(chunk.inputs, weights)[-1], chunk.targets
        total = tf.reduce_sum(tf.cast(loss.value(outputs, targets) * chunk.mask, tf.float64))
        if not loss.is_quadratic:
            return total[None], outputs
        # Use float64, because squares of a small unit underflow in float32. Leave the origin out: it cancels and would
        # cost digits.
        targets, outputs = (tf.cast(part, tf.float64) * unit for part in (targets, outputs))
        in_units = tf.reduce_sum(loss.value(outputs, targets) * tf.cast(chunk.mask, tf.float64))
        seen = tf.cast(outputs + origin, architecture.dtype)
        return tf.stack([total, in_units]), seen, targets + other_origin, outputs + other_origin

    return compiled(evaluate, by_xla=True)
