"""What the optimizers of tfopt have in common."""

import re
from collections.abc import Iterable
from typing import Any

import keras
from keras import backend, ops

from tfopt import _keras
from tfopt._variables import path_of
from tfopt._weight_decay import exclude
from tfopt.numerics import accumulation_dtype, densify


class Optimizer(keras.optimizers.Optimizer):
    """A Keras optimizer that clips whole gradients, and takes exclusions from weight decay until its first step.

    The gradient of an embedding lists one row for each occurrence of a token in the batch. Keras clips these rows and
    computes their norm without adding up the rows of the same token. That norm is not the norm of the gradient. Here
    sparse gradients become dense before Keras clips them.
    """

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

    def add_slot(self, variable: Any, name: str) -> Any:
        """Add a state variable of zeros for a variable, in float32 if that is in half precision.

        Small entries of a sum, such as a velocity or a mean of squares, would be lost in half precision.

        Args:
            variable: The variable.
            name: Name of the state, such as "velocity".

        Returns:
            A variable of the shape of `variable`; None for the scales of float8 layers, which Keras overwrites with
            their gradient.
        """
        if _keras.overwrites_variable(self)(variable):
            return None
        dtype = accumulation_dtype(variable.dtype)
        if dtype == backend.standardize_dtype(variable.dtype):
            return self.add_variable_from_reference(variable, name=name)
        return self.add_variable(
            shape=variable.shape,
            dtype=dtype,
            layout=_keras.variable_layout(variable, None),
            name=_name_of_state(variable, name),
        )

    def add_scalar(self, variable: Any, name: str, initializer: Any) -> Any:
        """Add a scalar state variable for a variable, in float32 or better.

        It is named after the variable, because files in the HDF5 format need a different name for each state.

        Args:
            variable: The variable.
            name: Name of the state, such as "initial_norm".
            initializer: A Keras initializer of the scalar.

        Returns:
            A variable of shape (); None for the scales of float8 layers, which Keras overwrites with their gradient.
        """
        if _keras.overwrites_variable(self)(variable):
            return None
        dtype = accumulation_dtype(variable.dtype)
        return self.add_variable(shape=(), dtype=dtype, initializer=initializer, name=_name_of_state(variable, name))

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """Exclude variables from weight decay, as Keras's optimizers do. These exclusions are not saved with the model.

        Args:
            var_list: None, or a list of variables.
            var_names: None, or a list of regular expressions, searched for in variable paths on TensorFlow and in bare
                names on other backends.

        Raises:
            TypeError: `var_list` is not a list of variables, or `var_names` is not a list of strings.
            ValueError: A string is not a regular expression, or the optimizer is already built and the call names a
                variable that decays.
        """
        exclude(self, var_list, var_names)


def _name_of_state(variable: Any, name: str) -> str:
    return f"{re.sub('[/:]', '_', path_of(variable))}_{name}"


def _added_up(gradient: Any, variable: Any) -> Any:
    if backend.backend() == "tensorflow":
        import tensorflow as tf

        if isinstance(gradient, tf.IndexedSlices):
            return ops.cast(densify(gradient, variable.shape), gradient.dtype)
    return gradient
