"""Any Keras 3 optimizer, applied to the mean of the gradients of all ranks."""

import re
from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

from tfopt import _keras
from tfopt._checks import check_choice
from tfopt._variables import path_of
from tfopt._weight_decay import exclude
from tfopt.communicator import Communicator, check_communicator
from tfopt.communicator.agreement import check_agreement
from tfopt.distributed.accumulated_gradients import mean_accumulated_gradients
from tfopt.distributed.gradient_scatter import GradientScatter
from tfopt.distributed.gradients import mean_gradients, multiply
from tfopt.distributed.supported_optimizers import check_optimizer, describe_config
from tfopt.numerics import is_inside_xla

_OWN = ("_optimizer", "_communicator", "_compression", "_started", "_scatter", "_factor")


class DistributedOptimizer:
    """Wrap a Keras 3 optimizer so that every rank takes the same step, with the mean of all ranks' gradients.

    Gradients are averaged with one grouped allreduce, before they are tested for infinities (loss scaling), clipped or
    used. N ranks with B / N rows each compute what one process computes with batches of B rows, if the loss is a mean
    over rows. All ranks must have equally many rows in a step, because all have the same weight. For losses with
    `reduction="sum"`, `BroadcastVariables` makes the optimizer sum the gradients. It warns of other losses, where it
    can know: means over the entries that a mask or `ignore_class` leaves, means by sums of weights, and losses over the
    whole batch such as Dice. Functions, `train_step` and `compute_loss` of your own are not examined.
    `BatchNormalization` sees each rank's own rows.

    Under `gradient_accumulation_steps` each rank sums its own gradients, and the sums are averaged once per step.
    Norms, such as those of Fromage and LARS, are norms of the mean gradient. Before the first step the ranks compare
    their variables and gradients, and receive the trainable variables of rank 0.

    Otherwise the wrapper behaves as the wrapped optimizer: attributes, `isinstance`, saving. A saved model holds the
    wrapped optimizer and loads without Horovod. Under the dtype policy "mixed_float16" the wrapper adds a
    `keras.optimizers.LossScaleOptimizer` around the optimizer, as `compile` would.

    In the gradient of an embedding, the rows of equal tokens are summed before the optimizer receives them. Keras alone
    keeps them separate, and its Adam then squares each occurrence by itself.

    Args:
        optimizer: A Keras optimizer or its name. It may be built, and may be a `LossScaleOptimizer`; it is wrapped, not
            copied.
        compression: "float16" sends gradients of 32 and 64 bits in 16; None (default) sends them unchanged.
        communicator: The job's communicator; None (default) means `tfopt.communicator.current()`.

    Raises:
        TypeError: `optimizer` is not a Keras optimizer.
        ValueError: `compression` is unknown; the optimizer is already wrapped; or the Keras backend is not TensorFlow.

    Example:
        >>> optimizer = DistributedOptimizer(keras.optimizers.Adam(0.01, clipnorm=1.0))
        >>> round(float(optimizer.learning_rate), 3), isinstance(optimizer, keras.optimizers.Adam)
        (0.01, True)
    """

    _optimizer: Any
    _communicator: Communicator
    _compression: str | None
    _started: bool
    _scatter: GradientScatter | None
    _factor: int

    def __init__(
        self, optimizer: Any, compression: str | None = None, communicator: Communicator | None = None
    ) -> None:
        if keras.backend.backend() != "tensorflow":
            raise ValueError(
                "tfopt.distributed works with the TensorFlow backend of Keras. Received: the backend "
                f"{keras.backend.backend()!r}. Set the environment variable KERAS_BACKEND=tensorflow"
            )
        if type(optimizer) is DistributedOptimizer:
            raise ValueError("`optimizer` is a DistributedOptimizer already: wrap an optimizer once")
        optimizer = check_optimizer(optimizer)
        if compression is not None:
            check_choice("compression", compression, ("float16",))
        is_mixed = keras.config.dtype_policy().name == "mixed_float16"
        if is_mixed and not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale_optimizer")
        values = (optimizer, check_communicator(communicator), compression, False, None, 1)
        for name, value in zip(_OWN, values, strict=True):
            object.__setattr__(self, name, value)

    # The wrapper presents itself as the wrapped optimizer to Python and Keras.

    @property
    def __class__(self) -> type:
        return type(self._optimizer)

    def __getattr__(self, name: str) -> Any:
        if name in _OWN:  # The constructor has not set it yet.
            raise AttributeError(name)
        return getattr(self._optimizer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "loss_scale_factor" and value is None and not self._scales_loss:
            raise ValueError(
                "A DistributedOptimizer must not be wrapped in a LossScaleOptimizer: gradients are averaged before "
                "they are tested for infinities. Either set keras.config.set_dtype_policy('mixed_float16') before "
                "you create the optimizer and the model, or use "
                "DistributedOptimizer(keras.optimizers.LossScaleOptimizer(optimizer))"
            )
        setattr(self._optimizer, name, value)

    def __dir__(self) -> Iterable[str]:
        return dir(self._optimizer)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._optimizer.__reduce_ex__(protocol)

    def __repr__(self) -> str:
        rank, size = self._communicator.rank, self._communicator.size
        return f"<DistributedOptimizer of {self._optimizer!r}, rank {rank} of {size}>"

    @property
    def _scales_loss(self) -> bool:
        return isinstance(self._optimizer, keras.optimizers.LossScaleOptimizer)

    @property
    def _innermost(self) -> Any:
        return self._optimizer.inner_optimizer if self._scales_loss else self._optimizer

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """Exclude variables from the weight decay of the optimizer that takes the steps, inside any loss scaling.

        Args:
            var_list: A list of variables; None (default) for none.
            var_names: A list of regular expressions on their paths; None (default) for none.

        Raises:
            TypeError: An argument is not a list of its kind.
            ValueError: A name is not a regular expression; or the optimizer is built and an excluded variable decays;
                or it consists of several optimizers.
        """
        inner = self._innermost
        if hasattr(inner, "optimizers"):
            raise ValueError(
                "exclude_from_weight_decay() has no effect on an optimizer made of several. Received: "
                f"{type(inner).__name__}. Call it on each member of `optimizers` that decays weights"
            )
        if type(inner).exclude_from_weight_decay is keras.optimizers.Optimizer.exclude_from_weight_decay:
            exclude(inner, var_list, var_names)
        else:  # tfopt's optimizers, and others with their own method of exclusion.
            inner.exclude_from_weight_decay(var_list=var_list, var_names=var_names)

    def apply_gradients(self, grads_and_vars: Iterable[tuple[Any, Any]]) -> Any:
        """Average the gradients over all ranks and update the variables.

        Args:
            grads_and_vars: Pairs of a gradient and its variable, at least one.

        Returns:
            The number of steps taken.

        Raises:
            ValueError: There are no pairs; or as in `apply`.
        """
        pairs = list(grads_and_vars)
        if not pairs:
            raise ValueError(
                "`grads_and_vars` must hold at least one pair of a gradient and its variable. Received: none"
            )
        self.apply([gradient for gradient, _ in pairs], [variable for _, variable in pairs])
        return _keras.iterations(self._innermost)

    def apply(self, grads: Iterable[Any], trainable_variables: Iterable[Any] | None = None) -> None:
        """Average the gradients over all ranks and update the variables.

        Args:
            grads: One gradient for each variable: a tensor, a `tf.IndexedSlices`, or None.
            trainable_variables: The variables; None (default) for those that the optimizer was built with.

        Raises:
            ValueError: Numbers of gradients and variables differ; the ranks' variables or gradients differ; or the step
                is compiled with XLA.
        """
        gradients = list(grads)
        if trainable_variables is None:
            trainable_variables = _keras.optimizer_variables(self._optimizer)
        variables = list(trainable_variables)
        if len(gradients) != len(variables):
            raise ValueError(f"There are {len(gradients)} gradients for {len(variables)} variables")
        if self._communicator.size > 1 and is_inside_xla():
            raise ValueError(
                "The training step is being compiled with XLA, in which Horovod cannot average gradients. "
                "Use model.compile(..., jit_compile=False)"
            )
        if not self._started:
            self._start(gradients, variables)
        # Build after the ranks have equal weights. Values that an optimizer derives from weights, such as initial
        # norms, are then equal too.
        if not self._optimizer.built:
            with keras.name_scope(self._optimizer.name):
                self._optimizer.build(variables)
        with tf.name_scope("average_gradients"):
            gradients = self._average(gradients, variables)
        self._optimizer.apply(gradients, variables)

    def _start(self, gradients: list[Any], variables: list[Any]) -> None:
        # Runs once, while the first step is traced: compare the ranks, and start from equal weights.
        # Remove the numbers that Keras adds to make names unique, because they may differ between ranks.
        paths = [re.sub(r"_\d+(?=/|$)", "", path_of(variable)) for variable in variables]
        kinds = ["none" if g is None else "sparse" if isinstance(g, tf.IndexedSlices) else "dense" for g in gradients]
        with tf.init_scope():
            check_agreement(
                self._communicator,
                "the first step",
                {
                    "optimizer": type(self._innermost).__name__ + " with loss scaling" * self._scales_loss,
                    "optimizer's arguments": describe_config(self._optimizer),
                    "compression": self._compression,
                    "trainable variables": [
                        f"{path} {tuple(variable.shape)} {keras.backend.standardize_dtype(variable.dtype)}"
                        for path, variable in zip(paths, variables, strict=True)
                    ],
                    "gradients": [f"{path}: {kind}" for path, kind in zip(paths, kinds, strict=True)],
                },
                "Every rank must build, freeze and compile the same model.",
            )
            if self._communicator.size > 1:
                if not all((v.value if isinstance(v, keras.Variable) else v).is_initialized() for v in variables):
                    raise ValueError(
                        "The model creates its variables during the first step, too late for all ranks to start "
                        "from the same values: give the model a keras.Input, call model.build(input_shape), or add "
                        "the callback tfopt.callbacks.BroadcastVariables()"
                    )
                values = self._communicator.broadcast([tf.convert_to_tensor(v) for v in variables], name="weights")
                for variable, value in zip(variables, values, strict=True):
                    variable.assign(value)
        object.__setattr__(self, "_started", True)

    def _average(self, gradients: list[Any], variables: list[Any]) -> list[Any]:
        gradients = list(gradients)
        indices = []
        for index, (gradient, variable) in enumerate(zip(gradients, variables, strict=True)):
            if gradient is None:
                continue
            if getattr(variable, "overwrite_with_gradient", False):
                # This is not a gradient but the variable's next value (the scales of float8 layers). All ranks use that
                # of one rank.
                (gradients[index],) = self._communicator.broadcast([gradient], name=f"overwrite.{index}")
            else:
                indices.append(index)
        chosen = [multiply(gradients[index], self._factor) for index in indices]
        targets = [variables[index] for index in indices]
        if self._innermost.gradient_accumulation_steps:
            scaling = self._optimizer if self._scales_loss else None
            means = mean_accumulated_gradients(
                chosen, targets, self._communicator, self._compression, self._innermost, scaling
            )
        elif self._scatter is None:
            means = mean_gradients(chosen, targets, self._communicator, self._compression)
        else:
            means = self._average_and_watch(self._scatter, chosen, targets)
        for index, mean in zip(indices, means, strict=True):
            gradients[index] = mean
        return gradients

    @property
    def sums_gradients(self) -> bool:
        """Whether the gradients of the ranks are summed; False (default): averaged. `BroadcastVariables` decides it."""
        return self._factor > 1

    def sum_gradients(self, does_sum: bool) -> None:
        """Sum the gradients of the ranks for a loss that is a sum over rows, or average them.

        A training step that is already compiled does not follow. `fit` with `BroadcastVariables` decides by the losses
        of `compile`, so only a training loop or a `train_step` of your own needs this method.

        Args:
            does_sum: True for sums, False for means.
        """
        object.__setattr__(self, "_factor", self._communicator.size if does_sum else 1)

    def watch_scatter(self) -> GradientScatter:
        """Start to compare each rank's gradient with the mean, within the training step.

        The squared norms of the ranks' gradients are averaged in the same operation as the gradients. A training step
        that is already compiled does not do so.

        Returns:
            The object that sums the results.

        Raises:
            ValueError: There is one rank only, or gradients are accumulated over several steps.
        """
        if self._communicator.size == 1:
            raise ValueError("Comparing ranks' gradients with their mean needs at least two ranks. Received: 1")
        if self._innermost.gradient_accumulation_steps:
            raise ValueError(
                "The scatter of gradients cannot be measured if they are accumulated over several steps. "
                f"Received: gradient_accumulation_steps={self._innermost.gradient_accumulation_steps}"
            )
        if self._scatter is None:
            object.__setattr__(self, "_scatter", GradientScatter(self._communicator.size))
        assert self._scatter is not None
        return self._scatter

    def _average_and_watch(self, scatter: GradientScatter, gradients: list[Any], variables: list[Any]) -> list[Any]:
        scale = tf.constant(float(self._factor))
        if self._scales_loss:
            scale *= tf.convert_to_tensor(self._optimizer.dynamic_scale)
        local = scatter.local(gradients, scale)
        *means, mean_of_local = mean_gradients(gradients, variables, self._communicator, self._compression, (local,))
        scatter.update(mean_of_local, means, scale)
        return means
