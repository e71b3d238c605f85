"""The loss of a model on data, and its gradient, over the rows of all ranks: what every measurement takes."""

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfopt.communicator import Communicator, SerialCommunicator, check_communicator
from tfopt.curvature.batch import Batch
from tfopt.curvature.batch_gradient import BatchGradient
from tfopt.curvature.batch_loss import BatchLoss, check_trainable
from tfopt.curvature.probe import Probe, as_probe


class Objective:
    """The loss of a model on data, regularisation included, as a function of trainable variables.

    An objective is made once, and every measurement takes it: `HessianOperator(objective)`,
    `gradient_noise(objective)`, `tfopt.relative_trust.StepMeter(objective)`, and so on. They share its compiled
    functions. The operators, `gradient_noise`, `convexity_certificate` and `StepMeter` also take the arguments of an
    objective in its place: `HessianOperator(model, loss, x, y, batch_size=64)` is short for
    `HessianOperator(Objective(model, loss, (x, y), batch_size=64))`.

    A measurement uses the weights that the model has at that time, and changes nothing: variables, metrics, moving
    averages and random states stay. Noise, such as dropout, is off. With several batches the loss is the mean of the
    batches' losses, weighted by rows, as `evaluate` reports it. For Keras's usual reduction that is the loss of all
    rows at once, unless a batch's loss is not a mean over its rows: with batch statistics, masks, or `ignore_class`.

    As in a `tf.function`, Python values that the model and the loss read (`model.beta = 2.0`) stay as they were when
    they were traced: make a new objective after such a change, or keep the value in a `keras.Variable`.

    Args:
        model: A Keras model with its variables, compiled or not.
        loss: As `compile` takes it. None (default) means the loss that the model was compiled with.
        data: The data of this rank: `(x, y)`, `(x, y, sample_weight)`, a data set, or a `Probe`.
        batch_size: Rows in a batch, for arrays only; an integer >= 1. None (default) means 512, or all rows if there
            are fewer.
        batch_norm: "batch" (default): the model is called as in training, and batch normalisation uses each batch's own
            statistics; "moving": as in prediction, with its moving averages.
        variables: The variables of the function: a variable, a layer, or a list of these. None (default) means all
            trainable variables.
        class_weight: Not supported, as in `Probe`.
        communicator: The job's communicator; None (default) means `tfopt.communicator.current()`. Measurements are over
            the rows of all ranks, whose models must have the same weights.

    Attributes:
        model: The model.
        probe: The data of this rank, a `Probe`.
        num_rows: Number of rows of all ranks.
        variables: The variables, a list. Variables whose gradient is their next value are not among them.
        batch_norm: As given.
        precision: The precision of the layers: "model" as in training; "float32" if training computes some layers in
            half precision; "bfloat16" if the code of the model or the loss casts to it, also in a measurement.
        communicator: The communicator.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range, or the model or data cannot be measured; the message says why.

    Example:
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        >>> model.set_weights([np.array([[2.0]])])
        >>> objective = Objective(model, "mse", (np.ones((4, 1)), np.zeros((4, 1))))
        >>> loss, gradient = objective.loss_and_gradient()
        >>> loss, gradient[0].numpy().tolist()
        (4.0, [[4.0]])
    """

    def __init__(
        self,
        model: keras.Model,
        loss: Any = None,
        data: Any = None,
        *,
        batch_size: int | None = None,
        batch_norm: str = "batch",
        variables: Any = None,
        class_weight: None = None,
        communicator: Communicator | None = None,
    ) -> None:
        probe = as_probe(data, batch_size, class_weight)
        batch_loss = BatchLoss(model, loss, probe, batch_norm)
        if batch_loss.precision == "bfloat16":
            warnings.warn(
                "`model` or `loss` casts to bfloat16 in its code. A measurement keeps this cast: results have about "
                "two digits, and products belong to no symmetric matrix. Leave the precision to dtype policies, which "
                "measurements raise from half precision to float32",
                stacklevel=2,
            )
        chosen = check_trainable(batch_loss.variables, variables)
        self._set_up(batch_loss, probe, chosen, check_communicator(communicator))

    def _set_up(self, batch_loss: BatchLoss, probe: Probe, variables: list[Any], communicator: Communicator) -> None:
        self.batch_loss, self.probe, self.variables, self.communicator = batch_loss, probe, variables, communicator
        self.model, self.batch_norm, self.precision = batch_loss.model, batch_loss.batch_norm, batch_loss.precision
        self.dtypes = [tf.as_dtype(batch_loss.dtype or v.dtype) for v in variables]
        self.num_rows = self._count_rows()
        self.batch_gradient = BatchGradient(batch_loss, variables)
        self._moving: list[Objective] = []  # the same loss with moving averages; shared with the results of `over`

    def __repr__(self) -> str:
        return f"Objective({self.model.name!r}, {self.probe!r}, batch_norm={self.batch_norm!r})"

    def values(self) -> list[Any]:
        """Return the current values of the variables, which later changes of the variables do not affect.

        Returns:
            A list of tensors shaped like the variables.
        """
        pairs = zip(self.variables, self.dtypes, strict=True)
        return [tf.cast(tf.convert_to_tensor(variable.value), dtype) for variable, dtype in pairs]

    def loss(self, values: Sequence[Any] | None = None) -> float:
        """Return the loss.

        Args:
            values: One tensor for each variable. None (default) means the current values.

        Returns:
            The mean of the batches' losses, weighted by rows, of all ranks.
        """
        return self._mean(lambda *batch: (self.batch_gradient.loss(*batch), []), values)[0]

    def loss_and_gradient(self, values: Sequence[Any] | None = None) -> tuple[float, list[Any]]:
        """Return the loss and its gradient.

        Args:
            values: One tensor for each variable. None (default) means the current values.

        Returns:
            The loss, and a list of tensors shaped like the variables.
        """
        return self._mean(self.batch_gradient, values)

    def _mean(self, function: Callable[..., Any], values: Sequence[Any] | None) -> tuple[float, list[Any]]:
        # Returns the mean over rows of a function of values and a batch, which returns a loss and tensors.
        values = self.values() if values is None else values
        total = 0.0
        sums: list[Any] = []
        for batch in self.probe.batches:
            loss, parts = function(values, batch.tensors)
            share = batch.num_rows / self.num_rows
            total += share * float(loss)
            sums = add(sums, parts if share == 1.0 else [tf.constant(share, part.dtype) * part for part in parts])
        total, *sums = self.communicator.allreduce_sum([tf.constant(total, tf.float64), *sums], name="gradient")
        return float(total), sums

    def over(self, probe: Probe) -> "Objective":
        """Return the same objective over other rows, with the functions compiled for batches of the same form.

        Args:
            probe: The data of this rank.

        Returns:
            An objective.
        """
        other = copy.copy(self)
        other.probe = probe
        other.num_rows = other._count_rows()
        return other

    def on_rows(self, batch: Batch, dtype: str | None) -> "Objective":
        """Return the same objective over the rows of a batch, compiled anew in `dtype`; None: the model's dtype."""
        other = Objective.__new__(Objective)
        other._set_up(
            self.batch_loss.in_dtype(dtype), Probe.from_batches([batch]), self.variables, SerialCommunicator()
        )
        return other

    def with_moving_averages(self) -> "Objective":
        """Return the objective of the same rows, normalised by moving averages, with its compiled functions."""
        if not self._moving:
            other = Objective.__new__(Objective)
            batch_loss = BatchLoss(self.model, self.batch_loss.given_loss, self.probe, "moving", self.batch_loss.dtype)
            other._set_up(batch_loss, self.probe, self.variables, self.communicator)
            self._moving.append(other)
        return self._moving[0].over(self.probe)

    def _count_rows(self) -> int:
        here = [tf.constant(count, tf.int64) for count in (self.probe.num_rows, len(self.probe.batches))]
        rows, batches = map(int, self.communicator.allreduce_sum(here, name="rows"))
        if self.batch_loss.reduction and batches > 1:
            raise ValueError(
                "`loss` must not depend on how rows are divided into batches. Received: "
                f"reduction={self.batch_loss.reduction!r} and {batches} batches over all ranks. Use the reduction "
                "'sum_over_batch_size', or one batch of all rows"
            )
        return rows


def as_objective(objective: Any, *data: Any, **options: Any) -> Objective:
    """Return an `Objective` unchanged, and make one of its arguments: model, loss, x, y, sample_weight, **options."""
    if not data and not options:
        return check_objective(objective)
    if isinstance(objective, Objective):
        given = [f"`{name}`" for name in options] or ["a loss or data"]
        raise TypeError(
            f"{', '.join(given)} must be given to the Objective. Received: an Objective, and more arguments"
        )
    parts = data[1:]
    rows = (parts[0] if len(parts) == 1 else parts,) if parts else ()
    return Objective(objective, *data[:1], *rows, **options)


def check_objective(objective: Any) -> Objective:
    """Return `objective`, or raise TypeError if it is not an `Objective`."""
    if not isinstance(objective, Objective):
        raise TypeError(
            "`objective` must be a tfopt.curvature.Objective: Objective(model, loss, (x, y)). "
            f"Received: {objective!r} of type {type(objective).__name__}"
        )
    return objective


def add(sums: list[Any], parts: Sequence[Any]) -> list[Any]:
    """Return sums + parts, elementwise over two lists of tensors; `parts` if `sums` is empty."""
    return [a + b for a, b in zip(sums, parts, strict=True)] if sums else list(parts)
