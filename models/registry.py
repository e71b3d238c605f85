"""Models by name."""

import difflib
from collections.abc import Callable
from typing import Any

import keras

from tfopt.models.convnet import convnet
from tfopt.models.milne_regression import milne_regression
from tfopt.models.mlp import mlp
from tfopt.models.noisy_quadratic import noisy_quadratic
from tfopt.models.resnet import resnet

_BUILDERS: dict[str, Callable[..., keras.Model]] = {
    builder.__name__: builder for builder in (convnet, milne_regression, mlp, noisy_quadratic, resnet)
}


def list_models() -> list[str]:
    """Return the names of all models.

    Returns:
        The names that `get` takes, in alphabetical order.

    Example:
        >>> list_models()
        ['convnet', 'milne_regression', 'mlp', 'noisy_quadratic', 'resnet']
    """
    return sorted(_BUILDERS)


def get(name: str, **kwargs: Any) -> keras.Model:
    """Build a model by name.

    Args:
        name: A name from `list_models()`.
        **kwargs: Arguments of the builder of that name.

    Returns:
        An uncompiled, built `keras.Model`.

    Raises:
        ValueError: No model has this name; the message suggests similar names.

    Example:
        >>> get("mlp", input_shape=64, hidden_units=(32,)).count_params()
        2410
    """
    if not isinstance(name, str) or name not in _BUILDERS:
        near = _near_misses(name.lower()) if isinstance(name, str) else []
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(f"`name` must be one of {', '.join(list_models())}. Received: name={name!r}.{hint}")
    return _BUILDERS[name](**kwargs)


def _near_misses(name: str) -> list[str]:
    beginnings = [known for known in list_models() if len(name) > 2 and known.startswith(name)]
    return beginnings or difflib.get_close_matches(name, _BUILDERS, n=2, cutoff=0.5)
