"""Clipping of sparse gradients by the norm of the dense gradient."""

from collections.abc import Iterable
from typing import Any

from keras import backend, ops

from tfopt import _keras
from tfopt.numerics import densify


class ClipsWholeGradients:
    """Mixin for Keras optimizers that converts sparse gradients to dense ones before Keras clips them.

    The gradient of an embedding lists one row for each occurrence of a token in the batch. Keras clips these rows and
    computes their norm without adding up the rows of the same token. That norm is not the norm of the gradient. Write
    the mixin before Keras's class, as in `class Mine(ClipsWholeGradients, keras.optimizers.Optimizer)`.
    """

    clipnorm: float | None
    global_clipnorm: float | None
    clipvalue: float | None

    def apply(self, grads: Iterable[Any], trainable_variables: Iterable[Any] | None = None) -> None:
        """Update each variable with its gradient.

        Args:
            grads: One gradient for each variable: a tensor, a `tf.IndexedSlices`, or None.
            trainable_variables: The variables. None means the variables that the optimizer was built with.
        """
        gradients = list(grads)
        variables = None if trainable_variables is None else list(trainable_variables)
        if self.clipnorm or self.global_clipnorm or self.clipvalue:
            targets = _keras.optimizer_variables(self) if variables is None else variables
            if len(gradients) == len(targets):  # otherwise Keras raises an error
                gradients = [_added_up(gradient, target) for gradient, target in zip(gradients, targets, strict=True)]
        super().apply(gradients, variables)


def _added_up(gradient: Any, variable: Any) -> Any:
    if backend.backend() == "tensorflow":
        import tensorflow as tf

        if isinstance(gradient, tf.IndexedSlices):
            return ops.cast(densify(gradient, variable.shape), gradient.dtype)
    return gradient
