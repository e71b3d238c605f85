"""Which optimizers can be trained on several ranks."""

from typing import Any

import keras

from tfopt import _keras


def check_optimizer(optimizer: Any) -> Any:
    """Return a Keras optimizer, given it or its name; ValueError if it cannot be trained on several ranks."""
    if isinstance(optimizer, str):
        try:
            optimizer = keras.optimizers.get(optimizer)
        except ValueError as error:
            raise ValueError(f"`optimizer` must name a Keras optimizer. Received: {optimizer!r}") from error
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(
            "`optimizer` must be a Keras 3 optimizer or its name. "
            f"Received: optimizer={optimizer!r} of type {type(optimizer).__name__}"
        )
    if any(cls.__module__.split(".")[0] == "horovod" for cls in type(optimizer).__mro__):
        raise ValueError(
            "`optimizer` must be a plain Keras optimizer. Received: one that Horovod's own Keras wrapper has made, "
            "which does not work with Keras 3"
        )
    for part in getattr(optimizer, "optimizers", ()):
        if part.gradient_accumulation_steps:
            raise ValueError(
                "`optimizer` is made of several optimizers, and at least one accumulates gradients. Received: "
                f"{type(part).__name__} with gradient_accumulation_steps={part.gradient_accumulation_steps}. "
                "DistributedOptimizer supports accumulation in single optimizers only"
            )
    # Keras's loss scaling stores exclusions, but its inner optimizer decays the weights and ignores them.
    patterns = _keras.excluded_patterns(optimizer, None)
    is_scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if is_scaled and (patterns or _keras.excluded_variables(optimizer, None)):
        raise ValueError(
            "`optimizer` is a LossScaleOptimizer whose exclude_from_weight_decay() was called, which has no effect: "
            "its inner optimizer decays the weights. Call exclude_from_weight_decay() on the inner optimizer, or on "
            "this DistributedOptimizer"
        )
    return optimizer


def describe_config(optimizer: Any) -> list[str]:
    """Return a line for each argument of an optimizer, to be compared between ranks."""
    # Leave out the name, and a learning rate that is a number: callbacks may change it.
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    config = {name: value for name, value in optimizer.get_config().items() if name != "name"}
    if isinstance(config.get("learning_rate"), float | int):
        del config["learning_rate"]
    return [f"{name}={value}" for name, value in sorted(config.items())]
