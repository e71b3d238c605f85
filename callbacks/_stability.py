"""Learning rate times curvature, and the limit beyond which steps on a quadratic diverge."""

import math
from collections.abc import Sequence
from typing import Any

import keras

from tfopt.callbacks._step_count import StepCount, variables_trained_by
from tfopt.callbacks._values import to_numpy


def stability_of(count: StepCount, variables: Sequence[Any], lambda_max: float) -> dict[str, float]:
    """Return the learning rate times `lambda_max`, and its limit, for the optimizer that trains the variables."""
    # NaN where it is not known that one optimizer alone trains all variables; {} for optimizers without a limit.
    names = ("hessian/learning_rate_times_lambda_max", "hessian/stability_limit")
    optimizer = count.stepping
    trained = variables_trained_by(optimizer)
    if optimizer is None or (trained and not trained >= {id(v) for v in variables}):
        is_possible = any(stability_limit(other) for other in count.optimizers)
        return dict.fromkeys(names, math.nan) if is_possible else {}
    limit = stability_limit(optimizer)
    if limit is None:
        return {}
    rate = float(to_numpy(optimizer.learning_rate))
    return dict(zip(names, (rate * lambda_max, limit), strict=True))


def stability_limit(optimizer: Any) -> float | None:
    """Return the limit of learning rate times curvature on a quadratic for plain Keras SGD, else None."""
    # The limit is 2, with momentum b 2 (1 + b), with Nesterov's 2 (1 + b) / (1 + 2 b). Plain means without clipping,
    # decay, averaging and accumulation.
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if optimizer.__class__ is not keras.optimizers.SGD:  # A DistributedOptimizer reports this class too.
        return None
    extras = ("clipnorm", "global_clipnorm", "clipvalue", "weight_decay", "use_ema", "gradient_accumulation_steps")
    if any(getattr(optimizer, name) for name in extras):
        return None
    momentum = float(optimizer.momentum)
    return 2.0 * (1.0 + momentum) / (1.0 + 2.0 * momentum if optimizer.nesterov else 1.0)
