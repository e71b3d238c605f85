"""The loss of a model on a probe, and its gradient, over the rows of all ranks."""

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfopt.communicator import Communicator, check_communicator
from tfopt.curvature.known_operations import MissingDerivativeError
from tfopt.curvature.objective import Objective, check_trainable
from tfopt.curvature.probe import Probe, as_probe
from tfopt.curvature.softmax_targets import check_sums, note_targets, noted_targets, refusing_targets
from tfopt.curvature.zero_factors import check_factors, note_factors, noted_factors


class ProbeLoss:
    """The loss on a probe, regularisation included, as a function of trainable variables; the model stays unchanged.

    Args:
        objective: The loss of single batches.
        probe: The data of this rank.
        variables: The variables; None for all trainable ones.
        communicator: The job's communicator.

    Attributes:
        num_rows: Number of rows of all ranks.
    """

    def __init__(
        self, objective: Objective, probe: Probe, variables: list[Any] | None, communicator: Communicator
    ) -> None:
        self.objective, self.probe, self.communicator = objective, probe, communicator
        self.variables: list[Any] = list(objective.variables if variables is None else variables)
        self.dtypes = [tf.as_dtype(objective.dtype or v.dtype) for v in self.variables]
        self.num_rows = self._count_rows()
        self._moving: list[ProbeLoss] = []  # the same loss with moving averages; shared with the results of `over`
        self._loss_and_gradient_of = compiled(self._trace_with_notes)
        self._loss_of = compiled(lambda values, batch: self.objective.loss(values, batch, self.variables))

    @classmethod
    def of(
        cls,
        model: keras.Model,
        loss: Any,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        batch_size: int | None = None,
        class_weight: None = None,
        batch_norm: str = "batch",
        variables: Any = None,
        communicator: Communicator | None = None,
    ) -> "ProbeLoss":
        """Return the loss for the arguments of `CurvatureOperator`, with the same meanings and defaults."""
        probe = as_probe(x, y, sample_weight, batch_size, class_weight)
        objective = Objective(model, loss, probe, batch_norm)
        if objective.precision == "bfloat16":
            warnings.warn(
                "`model` or `loss` casts to bfloat16 in its code. A measurement keeps this cast: results have about "
                "two digits, and products belong to no symmetric matrix. Leave the precision to dtype policies, which "
                "measurements raise from half precision to float32",
                stacklevel=3,
            )
        return cls(objective, probe, check_trainable(objective, variables), check_communicator(communicator))

    def over(self, probe: Probe) -> "ProbeLoss":
        """Return the same loss over another probe of the same form, with all compiled functions."""
        other = copy.copy(self)
        other.probe = probe
        other.num_rows = other._count_rows()
        return other

    def with_moving_averages(self) -> "ProbeLoss":
        """Return the loss of the same rows, normalised by moving averages, with its compiled functions."""
        if not self._moving:
            old = self.objective
            objective = Objective(old.model, old.given_loss, self.probe, "moving", old.dtype)
            self._moving.append(ProbeLoss(objective, self.probe, self.variables, self.communicator))
        return self._moving[0].over(self.probe)

    def _count_rows(self) -> int:
        here = [tf.constant(count, tf.int64) for count in (self.probe.num_rows, len(self.probe.batches))]
        rows, batches = map(int, self.communicator.allreduce_sum(here, name="rows"))
        if self.objective.reduction and batches > 1:
            raise ValueError(
                "`loss` must not depend on how rows are divided into batches. Received: "
                f"reduction={self.objective.reduction!r} and {batches} batches over all ranks. Use the reduction "
                "'sum_over_batch_size', or one batch of all rows"
            )
        return rows

    def values(self) -> list[Any]:
        """Return the values of the variables, tensors that later changes of the variables do not affect."""
        pairs = zip(self.variables, self.dtypes, strict=True)
        return [tf.cast(tf.convert_to_tensor(variable.value), dtype) for variable, dtype in pairs]

    def loss(self, values: Sequence[Any] | None = None) -> float:
        """Return the mean of the batches' losses, weighted by rows; `values` None means the current ones."""
        values = self.values() if values is None else values
        total = sum(b.num_rows / self.num_rows * float(self._loss_of(values, b.tensors)) for b in self.probe.batches)
        (total,) = self.communicator.allreduce_sum([tf.constant(total, tf.float64)], name="loss")
        return float(total)

    def loss_and_gradient(self, values: Sequence[Any] | None = None) -> tuple[float, list[Any]]:
        """Return the loss, and its gradient as tensors shaped like the variables; `values` None: the current."""
        values = self.values() if values is None else values
        total = 0.0
        sums: list[Any] = []
        for batch in self.probe.batches:
            loss, gradient = self.loss_and_gradient_of(values, batch.tensors)
            share = batch.num_rows / self.num_rows
            total += share * float(loss)
            sums = add(sums, gradient if share == 1.0 else [tf.constant(share, g.dtype) * g for g in gradient])
        total, *sums = self.communicator.allreduce_sum([tf.constant(total, tf.float64), *sums], name="gradient")
        return float(total), sums

    def trace(self, values: Sequence[Any], batch: Any) -> tuple[Any, list[Any]]:
        """Return the loss of a batch and its gradient, in a graph; `loss_and_gradient_of` is the compiled form."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            loss = self.objective.loss(values, batch, self.variables)
        note_targets(loss)
        note_factors(loss)
        return loss, dense_gradients(tape, loss, list(values))

    def loss_and_gradient_of(self, values: Sequence[Any], batch: Any) -> tuple[Any, list[Any]]:
        """Return the loss of a batch, a scalar tensor, and its gradient, tensors shaped like the variables."""
        # Raises ValueError if TensorFlow's gradient is wrong, because targets of a categorical cross-entropy do not sum
        # to 1, or a factor of a cumulative product is zero.
        with refusing_targets():
            loss, gradient, sums, zeros = self._loss_and_gradient_of(values, batch)
        check_sums(sums)
        check_factors(zeros)
        return loss, gradient

    def _trace_with_notes(self, values: Sequence[Any], batch: Any) -> tuple[Any, list[Any], list[Any], list[Any]]:
        loss, gradient = self.trace(values, batch)
        return loss, gradient, noted_targets(loss.graph), noted_factors(loss.graph)


def add(sums: list[Any], parts: Sequence[Any]) -> list[Any]:
    """Return sums + parts, elementwise over two lists of tensors; `parts` if `sums` is empty."""
    return [a + b for a, b in zip(sums, parts, strict=True)] if sums else list(parts)


def compiled(function: Callable[..., Any]) -> Any:
    """Return a function in the form of a `tf.function`, without warnings of frequent tracing by many operators."""
    made = tf.function(function, autograph=False)
    made._omit_frequent_tracing_warning = True

    def call(*arguments: Any) -> Any:
        # A concrete function stays a graph, whose operations are checked, under tf.config.run_functions_eagerly.
        is_eager = tf.config.functions_run_eagerly()
        return (made.get_concrete_function(*arguments) if is_eager else made)(*arguments)

    return call


def dense_gradients(tape: tf.GradientTape, target: Any, sources: list[Any], output_gradients: Any = None) -> list[Any]:
    """Return dense gradients of `target` by `sources`, zero for unconnected sources, shaped like the sources."""
    # Raises MissingDerivativeError if TensorFlow has no second derivative of an operation inside a loop, and
    # RuntimeError if it has no derivative of another operation.
    zero = tf.UnconnectedGradients.ZERO
    try:
        gradients = tape.gradient(target, sources, output_gradients=output_gradients, unconnected_gradients=zero)
    except (LookupError, NotImplementedError, TypeError, ValueError, tf.errors.OpError) as error:
        if "duplicate function" in str(error):  # TensorFlow raises this when the error below occurs a second time
            raise MissingDerivativeError from error
        raise RuntimeError(
            f"TensorFlow cannot differentiate this model as often as needed: {type(error).__name__}: {error}. "
            "Remove the operation named there, or express it by other operations"
        ) from error
    return [
        tf.math.unsorted_segment_sum(g.values, g.indices, s.shape[0]) if isinstance(g, tf.IndexedSlices) else g
        for g, s in zip(gradients, sources, strict=True)
    ]
