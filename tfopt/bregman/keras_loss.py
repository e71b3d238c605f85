"""Keras losses, by name or object, converted to `tfopt.bregman.losses`."""

import inspect
from typing import Any

import keras

from tfopt.bregman import losses
from tfopt.bregman.losses import Loss
from tfopt.bregman.network import DenseChain

__all__ = ["read_loss"]

_SQUARED, _BINARY, _CATEGORICAL = losses.squared_error, losses.binary_crossentropy, losses.categorical_crossentropy
_BY_NAME = {
    "mse": _SQUARED,
    "mean_squared_error": _SQUARED,
    "binary_crossentropy": _BINARY,
    "categorical_crossentropy": _CATEGORICAL,
    "sparse_categorical_crossentropy": _CATEGORICAL,
    "hinge": losses.hinge(-1.0),
    "unit_hinge": losses.hinge(0.0),
}
_BY_CLASS = {
    keras.losses.MeanSquaredError: _SQUARED,
    keras.losses.BinaryCrossentropy: _BINARY,
    keras.losses.CategoricalCrossentropy: _CATEGORICAL,
    keras.losses.SparseCategoricalCrossentropy: _CATEGORICAL,
    keras.losses.Hinge: _BY_NAME["hinge"],
}
_PLAIN = {"label_smoothing": 0.0, "ignore_class": None, "axis": -1}


def read_loss(loss: Any, chain: DenseChain) -> Loss:
    """Return our loss for what `keras.losses.get` takes, or one of ours, and check it against the outputs."""
    if isinstance(loss, dict) or inspect.isclass(loss):
        loss = _made_by_keras(loss)
    found = _find(loss)
    needed = {"softmax": _CATEGORICAL, "sigmoid": _BINARY}.get(chain.output_activation)
    if needed is not None and found is not needed:
        raise ValueError(
            f"`loss` must be the {needed.name} where the network ends with a {chain.output_activation}. Received: "
            f"loss={loss!r}"
        )
    if found is _CATEGORICAL and chain.widths[-1] == 1:
        raise ValueError(
            "`loss` must not be the softmax cross-entropy where the network has one output: use 'binary_crossentropy'. "
            f"Received: loss={loss!r}"
        )
    from_logits = loss.get_config().get("from_logits") if isinstance(loss, keras.losses.Loss) else None
    if from_logits is not None and from_logits == (needed is not None):
        raise ValueError(
            f"`loss` must have from_logits={needed is None} where the network's outputs are "
            f"{'logits' if needed is None else 'probabilities'}. Received: from_logits={from_logits}"
        )
    return found


def _made_by_keras(loss: Any) -> Any:
    """Return the function or object that Keras makes of a name, a class or a configuration; if none, the argument."""
    try:
        return keras.losses.get(loss)
    except (AttributeError, KeyError, TypeError, ValueError):
        return loss


def _find(loss: Any) -> Loss:
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str) and loss in _BY_NAME:
        return _BY_NAME[loss]
    # All names leave it to the network whether outputs are logits, "BinaryCrossentropy" too, whose object does not.
    made = _made_by_keras(loss) if isinstance(loss, str) else loss
    for name, found in _BY_NAME.items():
        if name != "unit_hinge" and made is keras.losses.get(name):
            return found
    for kind, found in _BY_CLASS.items():
        if type(made) is kind:
            config = made.get_config()
            if config.get("reduction") in ("sum", "none", None):
                raise ValueError(
                    f"`loss` must be a mean over rows. Received: a loss with reduction={config.get('reduction')!r}"
                )
            for option, value in _PLAIN.items():
                if config.get(option, value) != value:
                    raise ValueError(f"`loss` must have {option}={value}. Received: {option}={config[option]}")
            return found
    known = ", ".join(map(repr, _BY_NAME))
    message = f"`loss` must be one of {known}, or what Keras takes for these. Received: loss={loss!r}"
    raise ValueError(message) if isinstance(loss, str | keras.losses.Loss) or callable(loss) else TypeError(message)
