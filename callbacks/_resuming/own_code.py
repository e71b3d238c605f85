"""The code of a user's functions and methods that a model uses, as text."""

import types
from typing import Any

from tfopt.callbacks._resuming.optimizer_arguments import describe
from tfopt.callbacks._resuming.plain_state import computes
from tfopt.callbacks._resuming.things_of import things_of


def own_code(model: Any) -> dict[str, str]:
    """Return the code of the user's layers, losses, optimizers and all that they call, by "Own.call" and the like."""
    found: dict[str, list[str]] = {}
    for _, thing in things_of(model):
        if isinstance(thing, types.FunctionType) and computes(thing):
            found.setdefault(thing.__qualname__.replace("<locals>.", ""), []).append(describe(thing))
    return {name: "; ".join(sorted(texts)) for name, texts in found.items()}
