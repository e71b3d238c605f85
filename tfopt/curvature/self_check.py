"""Is a product what finite differences say, and the same when it is computed again?"""

import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

# Operations of first derivatives whose own derivative TensorFlow takes for zero without a word.
SILENT = (
    "ResizeBilinearGrad",
    "FakeQuantWithMinMaxArgsGradient",
    "FakeQuantWithMinMaxVarsGradient",
    "FakeQuantWithMinMaxVarsPerChannelGradient",
)
NUM_ROWS = 8  # few, so that few activations cross a kink within a step
NUM_DIRECTIONS = 3
# Steps relative to the weights, how well differences at both must agree to count, and the error that is too large.
# The second pair is for operations that TensorFlow has in float32 only, whose rounding swamps small steps.
STAGES = (((1e-6, 2.5e-7), 1e-3, 1e-2), ((1e-2, 2.5e-3), 0.05, 0.1))


def check_product(operator: Any) -> None:
    """Check an operator's product on a few rows, in float64 where the model allows it.

    Operations that are known to have no second derivative are looked for first. Then the derivative of a gradient (for
    the Hessian) or of the outputs (for Gauss-Newton) along a random direction is compared with central differences at
    two step sizes. Where these do not agree with each other, at a kink of the loss, another direction is tried.

    Args:
        operator: A `CurvatureOperator`.

    Raises:
        RuntimeError: The product is wrong, or random.
    """
    _refuse_silent_operations(operator)
    small = _small(operator)
    rng = np.random.default_rng(0)
    # Not at the weights themselves: what starts from zeros lies on a kink of ReLU.
    values = [value + tf.constant(0.01, value.dtype) * _random_like(value, rng) for value in small.values()]
    for steps, agreement, limit in STAGES:
        for _ in range(NUM_DIRECTIONS):
            direction = [_random_like(value, rng) for value in values]
            claimed = _flat(small.claim(values, direction))
            _check_same(claimed, _flat(small.claim(values, direction)), operator)
            first, second = (_difference(small, values, direction, step) for step in steps)
            scale = max(np.linalg.norm(second), np.linalg.norm(claimed))
            if scale <= 1e-9 * np.linalg.norm(_flat(small.quantity(values))) or scale == 0.0:
                return  # nothing depends on the weights in this direction
            if np.linalg.norm(first - second) <= agreement * scale:
                error = float(np.linalg.norm(claimed - second) / scale)
                if error > limit:
                    raise RuntimeError(_message(operator, claimed, second, error))
                return
    warnings.warn(
        f"The first product of {operator!r} could not be checked: finite differences at different step sizes do not "
        "agree. That is so where the loss has many kinks, or is computed in low precision. self_check=False turns the "
        "check off",
        stacklevel=5,
    )


def _small(operator: Any) -> Any:
    # In float64 and on few rows, unless something in the model insists on its own dtype or number of rows.
    *attempts, last = [(NUM_ROWS, "float64"), (None, "float64"), (NUM_ROWS, None), (None, None)]
    for attempt in attempts:
        try:
            small = operator.on_first_rows(*attempt)
            small.claim(small.values(), small.values())
            return small
        except (TypeError, ValueError, tf.errors.OpError):
            continue
    return operator.on_first_rows(*last)


def _random_like(value: Any, rng: np.random.Generator) -> Any:
    size = float(tf.sqrt(tf.reduce_mean(tf.square(value)))) or 0.01
    return tf.constant(size * rng.standard_normal(value.shape), value.dtype)


def _difference(small: Any, values: list[Any], direction: list[Any], step: float) -> np.ndarray:
    ahead, behind = (
        _flat(small.quantity([v + tf.constant(s, v.dtype) * d for v, d in zip(values, direction, strict=True)]))
        for s in (step, -step)
    )
    return (ahead - behind) / (2 * step)


def _flat(parts: list[Any]) -> np.ndarray:
    return np.concatenate([np.asarray(part, np.float64).reshape(-1) for part in parts])


def _check_same(once: np.ndarray, again: np.ndarray, operator: Any) -> None:
    if not np.linalg.norm(once - again) <= 1e-6 * np.linalg.norm(once):
        raise RuntimeError(
            f"{operator!r} gives another product of the same vector the second time. Something in the model is random "
            "while it predicts, or not finite: use keras.random with a SeedGenerator, whose state a measurement holds "
            "still, in place of tf.random"
        )


def _refuse_silent_operations(operator: Any) -> None:
    definition = operator.product_graph().as_graph_def()
    nodes = [*definition.node, *(node for function in definition.library.function for node in function.node_def)]
    found = sorted({node.op for node in nodes} & set(SILENT))
    if found:
        raise RuntimeError(
            f"The products of {operator!r} would be wrong: TensorFlow takes the derivative of {', '.join(found)} for "
            f"zero, without a word. {_advice(operator)}"
        )


def _message(operator: Any, claimed: np.ndarray, measured: np.ndarray, error: float) -> str:
    return (
        f"The products of {operator!r} are wrong: of a random vector, the product has norm "
        f"{np.linalg.norm(claimed):.4g}, finite differences say {np.linalg.norm(measured):.4g}, and their difference "
        f"is {error:.0%} of that. An operation in the model has no second derivative, or a wrong one. "
        f"{_advice(operator)}"
    )


def _advice(operator: Any) -> str:
    known = [
        f"{layer.name} ({type(layer).__name__}, interpolation={layer.interpolation!r})"
        for layer in operator.objective.model._flatten_layers()
        if isinstance(layer, keras.layers.UpSampling2D | keras.layers.Resizing)
        and getattr(layer, "interpolation", "nearest") != "nearest"
    ]
    found = f" Here it is {', '.join(known)}." if known else ""
    return (
        "The usual cause is resizing that is not by 'nearest' (UpSampling2D, Resizing, keras.ops.image.resize)."
        f"{found} Use interpolation='nearest', or pass self_check=False if you know better"
    )
