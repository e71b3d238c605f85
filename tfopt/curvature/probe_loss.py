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
    """The loss on a probe, regularisation included, as a function of trainable variables; it leaves the model as it is.

    Args:
        objective: The loss of single batches.
        probe: The data of this rank.
        variables: The variables; None for all that are trainable.
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
        self._moving: list[ProbeLoss] = []  # the same loss with moving averages; shared by what `over` returns
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
        """Make one of what users pass.

        Args:
            model: A Keras model with its variables, compiled or not.
            loss: As `compile` takes it. None means the one that the model was compiled with.
            x: The data: a `Probe`, or what `Probe` takes as its `x`.
            y: As `Probe` takes it.
            sample_weight: As `Probe` takes it.
            batch_size: As `Probe` takes it.
            class_weight: As `Probe` takes it: not at all.
            batch_norm: "batch" or "moving".
            variables: A variable, a layer, or a list of these; None for all trainable variables.
            communicator: The job's communicator; None means `tfopt.communicator.current()`.

        Returns:
            The loss.
        """
        probe = as_probe(x, y, sample_weight, batch_size, class_weight)
        objective = Objective(model, loss, probe, batch_norm)
        if objective.precision == "bfloat16":
            warnings.warn(
                "`model` or `loss` casts to bfloat16 by itself, which a measurement does too: its numbers have about "
                "two digits, and products are those of no symmetric matrix. Leave the precision to dtype policies, "
                "which are float32 while half precision is measured",
                stacklevel=3,
            )
        return cls(objective, probe, check_trainable(objective, variables), check_communicator(communicator))

    def over(self, probe: Probe) -> "ProbeLoss":
        """Return the same loss over other rows, with what is compiled already.

        Args:
            probe: The data of this rank, of the same form.

        Returns:
            The loss.
        """
        other = copy.copy(self)
        other.probe = probe
        other.num_rows = other._count_rows()
        return other

    def with_moving_averages(self) -> "ProbeLoss":
        """Return the loss of the same rows, with batches normalised by moving averages.

        Returns:
            The loss, with what is compiled already for other rows.
        """
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
                "`loss` depends on how rows are cut into batches. Received: "
                f"reduction={self.objective.reduction!r} and {batches} batches, those of all ranks. Use the reduction "
                "'sum_over_batch_size', or one batch of all rows"
            )
        return rows

    def values(self) -> list[Any]:
        """Return the values of the variables.

        Returns:
            A list of tensors, which later changes of the variables do not reach.
        """
        pairs = zip(self.variables, self.dtypes, strict=True)
        return [tf.cast(tf.convert_to_tensor(variable.value), dtype) for variable, dtype in pairs]

    def loss(self, values: Sequence[Any] | None = None) -> float:
        """Return the loss.

        Args:
            values: One tensor for each variable; None for their own.

        Returns:
            The mean of the batches' losses, weighted by rows.
        """
        values = self.values() if values is None else values
        total = sum(b.num_rows / self.num_rows * float(self._loss_of(values, b.tensors)) for b in self.probe.batches)
        (total,) = self.communicator.allreduce_sum([tf.constant(total, tf.float64)], name="loss")
        return float(total)

    def loss_and_gradient(self, values: Sequence[Any] | None = None) -> tuple[float, list[Any]]:
        """Return the loss and its gradient.

        Args:
            values: One tensor for each variable; None for their own.

        Returns:
            The loss, and a list of tensors shaped like the variables.
        """
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
        """Return the loss of a batch and its gradient, in a graph; `loss_and_gradient_of` is the compiled form.

        Args:
            values: One tensor for each variable.
            batch: The inputs, targets and weights of the rows.

        Returns:
            A scalar tensor, and a list of tensors shaped like the variables.
        """
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            loss = self.objective.loss(values, batch, self.variables)
        note_targets(loss)
        note_factors(loss)
        return loss, dense_gradients(tape, loss, list(values))

    def loss_and_gradient_of(self, values: Sequence[Any], batch: Any) -> tuple[Any, list[Any]]:
        """Return the loss of a batch and its gradient.

        Args:
            values: One tensor for each variable.
            batch: The inputs, targets and weights of the rows.

        Returns:
            A scalar tensor, and a list of tensors shaped like the variables.

        Raises:
            ValueError: The gradient is wrong, because targets of a categorical cross-entropy do not sum to 1, or a
                factor of a cumulative product is zero.
        """
        with refusing_targets():
            loss, gradient, sums, zeros = self._loss_and_gradient_of(values, batch)
        check_sums(sums)
        check_factors(zeros)
        return loss, gradient

    def _trace_with_notes(self, values: Sequence[Any], batch: Any) -> tuple[Any, list[Any], list[Any], list[Any]]:
        loss, gradient = self.trace(values, batch)
        return loss, gradient, noted_targets(loss.graph), noted_factors(loss.graph)


def add(sums: list[Any], parts: Sequence[Any]) -> list[Any]:
    """Add tensors to sums that may not have begun.

    Args:
        sums: A list of tensors, or an empty one.
        parts: A list of tensors.

    Returns:
        The sums.
    """
    return [a + b for a, b in zip(sums, parts, strict=True)] if sums else list(parts)


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function of tensors.

    Args:
        function: The function.

    Returns:
        A `tf.function`, which does not take the number of operators in a program for a mistake.
    """
    made = tf.function(function, autograph=False)
    made._omit_frequent_tracing_warning = True
    return made


def dense_gradients(tape: tf.GradientTape, target: Any, sources: list[Any], output_gradients: Any = None) -> list[Any]:
    """Return gradients as dense tensors, with zeros where nothing is connected.

    Args:
        tape: The tape.
        target: What to differentiate.
        sources: Tensors.
        output_gradients: As `tf.GradientTape.gradient` takes it.

    Returns:
        A list of tensors shaped like the sources.

    Raises:
        MissingDerivativeError: TensorFlow lacks a second derivative inside a loop.
        RuntimeError: It lacks another derivative.
    """
    zero = tf.UnconnectedGradients.ZERO
    try:
        gradients = tape.gradient(target, sources, output_gradients=output_gradients, unconnected_gradients=zero)
    except (LookupError, NotImplementedError, TypeError, ValueError, tf.errors.OpError) as error:
        if "duplicate function" in str(error):  # what TensorFlow makes of the next error, once it has been there before
            raise MissingDerivativeError from error
        raise RuntimeError(
            f"TensorFlow cannot differentiate this model as it must be for this: {type(error).__name__}: {error}. "
            "Leave out the operation that it names, or write it in terms of others"
        ) from error
    return [
        tf.math.unsorted_segment_sum(g.values, g.indices, s.shape[0]) if isinstance(g, tf.IndexedSlices) else g
        for g, s in zip(gradients, sources, strict=True)
    ]
