"""Learning rate times curvature, and the limit beyond which steps on a quadratic diverge."""

from collections.abc import Sequence
from typing import Any

import keras

from tfopt.callbacks._step_count import is_trained_by_keras, variables_trained_by
from tfopt.callbacks._values import to_numpy

PRODUCT = "hessian/learning_rate_times_lambda_max"


def optimizer_with_limit(model: Any, variables: Sequence[Any]) -> Any:
    """Return the plain Keras SGD that trains the variables, if a running `fit` applies it to gradients as they are."""
    # Any other `train_step`, or a loop, may clip or change the gradients. A constraint moves weights after the step.
    optimizer = getattr(model, "optimizer", None)
    if stability_limit(optimizer) is None or not is_trained_by_keras(model):
        return None
    trained = variables_trained_by(optimizer)
    is_alone = not trained or trained >= {id(variable) for variable in variables}
    return optimizer if is_alone and all(variable.constraint is None for variable in variables) else None


def stability_of(optimizer: Any, lambda_max: float) -> dict[str, float]:
    """Return the present learning rate times `lambda_max`, and its limit, of an optimizer that has a limit."""
    limit = stability_limit(optimizer)
    assert limit is not None
    return {PRODUCT: product_of(optimizer, lambda_max), "hessian/stability_limit": limit}


def product_of(optimizer: Any, lambda_max: float) -> float:
    """Return the present learning rate of an optimizer times `lambda_max`."""
    return float(to_numpy(optimizer.learning_rate)) * lambda_max


def stability_limit(optimizer: Any) -> float | None:
    """Return the limit of learning rate times curvature on a quadratic for plain Keras SGD, else None."""
    # The limit is 2, with momentum b 2 (1 + b), with Nesterov's 2 (1 + b) / (1 + 2 b). Plain means without clipping,
    # decay, averaging and accumulation, and without methods of an instance's own.
    outer, optimizer = optimizer, getattr(optimizer, "inner_optimizer", optimizer)
    if optimizer.__class__ is not keras.optimizers.SGD:  # A DistributedOptimizer reports this class too.
        return None
    extras = ("clipnorm", "global_clipnorm", "clipvalue", "weight_decay", "use_ema", "gradient_accumulation_steps")
    if any(getattr(optimizer, name) for name in extras):
        return None
    if {"apply", "apply_gradients", "update_step"} & {*vars(optimizer), *vars(outer)}:
        return None
    momentum = float(optimizer.momentum)
    return 2.0 * (1.0 + momentum) / (1.0 + 2.0 * momentum if optimizer.nesterov else 1.0)
