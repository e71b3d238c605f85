"""Clipping of sparse gradients by their own norm."""

from collections.abc import Iterable
from typing import Any

from keras import backend, ops

from tfopt.numerics import densify


class ClipsWholeGradients:
    """Mixed into a Keras optimizer, clips a sparse gradient as the dense one that it stands for.

    The gradient of an embedding lists a row as often as its token occurs in the batch. Keras takes the norm of what is
    listed, and clips its entries, before anybody has added up the repeats: the norm of something that is not the
    gradient. Write it before Keras's class, as in `class Mine(ClipsWholeGradients, keras.optimizers.Optimizer)`.
    """

    clipnorm: float | None
    global_clipnorm: float | None
    clipvalue: float | None
    _trainable_variables: list[Any]

    def apply(self, grads: Iterable[Any], trainable_variables: Iterable[Any] | None = None) -> None:
        """Update the variables, each from its gradient.

        Args:
            grads: One gradient for each variable: a tensor, a `tf.IndexedSlices`, or None.
            trainable_variables: The variables; None for those that the optimizer was built with.
        """
        gradients = list(grads)
        variables = None if trainable_variables is None else list(trainable_variables)
        if self.clipnorm or self.global_clipnorm or self.clipvalue:
            targets = self._trainable_variables if variables is None else variables
            if len(gradients) == len(targets):  # Keras says so if not
                gradients = [_added_up(gradient, target) for gradient, target in zip(gradients, targets, strict=True)]
        super().apply(gradients, variables)


def _added_up(gradient: Any, variable: Any) -> Any:
    if backend.backend() == "tensorflow":
        import tensorflow as tf

        if isinstance(gradient, tf.IndexedSlices):
            return ops.cast(densify(gradient, variable.shape), gradient.dtype)
    return gradient
