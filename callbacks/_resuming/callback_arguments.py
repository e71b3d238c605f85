"""The arguments of callbacks that affect training, as text that is the same in every process."""

import inspect
from collections import Counter
from typing import Any

import keras

from tfopt._checkpoints.callback_states import describe as describe_callback
from tfopt.callbacks._resuming.layer_arguments import shorten
from tfopt.callbacks._resuming.optimizer_arguments import describe
from tfopt.callbacks._running_fit import LOGGERS

_CHANGE_NO_NUMBER = (*LOGGERS, keras.callbacks.ModelCheckpoint)


def arguments_of_callbacks(callbacks: list[Any], stateless: tuple[type, ...]) -> dict[str, str]:
    """Return the arguments of callbacks, except `stateless` classes, by "EarlyStopping of loss's patience" etc."""
    found: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for callback in callbacks:
        if isinstance(callback, (*_CHANGE_NO_NUMBER, *stateless)):
            continue
        name = describe_callback(callback)
        seen[name] += 1
        label = name if seen[name] == 1 else f"{name} number {seen[name]}"
        held = {key: vars(callback)[key] for key in _arguments_of(type(callback)) if key in vars(callback)}
        found |= {f"{label}'s {key}": shorten(describe(value)) for key, value in held.items() if _counts(value)}
    return found


def other_arguments(there: dict[str, str], later: dict[str, str], here: dict[str, str]) -> list[str]:
    """Return texts of the arguments that are neither as training began (`there`) nor as it was saved (`later`)."""
    both = [name for name in there if name in here]
    schedules = [name for name in {**there, **here} if name not in both and name.startswith("LearningRateScheduler")]
    return [
        f"{name} was {there.get(name)}, is {here.get(name)}"
        for name in [*both, *schedules]
        if here.get(name) not in (there.get(name), later.get(name))
    ]


def _arguments_of(cls: type) -> list[str]:
    """Return the names of a constructor's arguments, those that it passes on as `**options` too."""
    names: list[str] = []
    for base in cls.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters.values()
            names += [parameter.name for parameter in parameters if parameter.name not in ("self", "verbose")]
            if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters):
                break
    return names


def _counts(value: Any) -> bool:
    if isinstance(value, str):
        return "/" not in value  # Paths may differ between runs.
    return callable(value) or value is None or isinstance(value, bool | int | float)
