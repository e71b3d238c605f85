"""What the functions and methods of the user's that a model uses compute, as text."""

import types
from typing import Any

from tfopt.callbacks._optimizer_arguments import describe
from tfopt.callbacks._optimizers_of import things_of
from tfopt.callbacks._plain_state import computes


def own_code(model: Any) -> dict[str, str]:
    """Return what the user's functions and methods compute, of layers, losses, optimizers and whatever they call.

    Args:
        model: The model.

    Returns:
        Text by "Own.call" and the like.
    """
    found: dict[str, list[str]] = {}
    for _, thing in things_of(model):
        if isinstance(thing, types.FunctionType) and computes(thing):
            found.setdefault(thing.__qualname__.replace("<locals>.", ""), []).append(describe(thing))
    return {name: "; ".join(sorted(texts)) for name, texts in found.items()}
