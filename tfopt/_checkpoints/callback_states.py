"""The state that callbacks keep from one epoch to the next, which is needed to resume training."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from tfopt import _keras
from tfopt._checkpoints import state_file

# The attributes that Keras's own callbacks keep from one epoch to the next.
STATE_OF: dict[type, tuple[str, ...]] = {
    keras.callbacks.CSVLogger: ("keys",),
    keras.callbacks.EarlyStopping: ("best", "wait", "stopped_epoch", "best_epoch", "best_weights"),
    keras.callbacks.History: ("epoch", "history"),
    keras.callbacks.ModelCheckpoint: ("best", "_batches_seen_since_last_saving", "_last_batch_seen"),
    keras.callbacks.ReduceLROnPlateau: ("best", "wait", "cooldown_counter"),
    keras.callbacks.SwapEMAWeights: ("_ema_weights_in_model",),
    keras.callbacks.TensorBoard: ("_global_train_batch", "_global_test_batch"),
}
if hasattr(keras.callbacks, "OrbaxCheckpoint"):
    STATE_OF[keras.callbacks.OrbaxCheckpoint] = (*STATE_OF[keras.callbacks.ModelCheckpoint], "_total_batches_seen")
# Loggers do not influence training, so they may be added or removed when training is resumed.
_LOGGERS = (keras.callbacks.CSVLogger, keras.callbacks.History, keras.callbacks.TensorBoard)
_OWN = "state of its own"  # key for subclasses of Keras's callbacks that also have `get_state`


def has_methods(callback: Any) -> bool:
    """Return whether a callback has the methods `get_state` and `set_state`."""
    return hasattr(callback, "get_state") and hasattr(callback, "set_state")


def get_state(callback: Any) -> dict[str, Any] | None:
    """Return the state of a callback of Keras, of tfopt or of the user; None if it never has one."""
    own = callback.get_state() if has_methods(callback) else None
    names = _names_of(callback)
    if not names:
        return own
    state = {name: getattr(callback, name) for name in names}
    return state if own is None else {**state, _OWN: own}


def states_of(callbacks: Sequence[Any]) -> list[list[Any]]:
    """Return pairs [name, state] of the callbacks that have a state; the name is class and quantity or `log_name`."""
    found = []
    for callback in callbacks:
        if (state := get_state(callback)) is not None:
            try:
                state_file.check(state)
            except TypeError as error:
                advice = "Let its get_state() return numbers, strings, arrays, or collections of them"
                if isinstance(callback, keras.callbacks.History):
                    advice = "Let `train_step` and callbacks put numbers, strings, arrays or None into `logs`"
                name = type(callback).__name__
                raise TypeError(f"The state of the callback {name} cannot be saved: {error}. {advice}") from error
            found.append([describe(callback), state])
    return found


def check_states(callbacks: Sequence[Any], kept: list[list[Any]], folder: Path) -> None:
    """Check that the result of `states_of` kept in a folder is of these callbacks, in any order, loggers aside."""
    loggers = {cls.__name__ for cls in _LOGGERS} | {describe(item) for item in callbacks if isinstance(item, _LOGGERS)}
    here, there = ([name for name, _ in pairs if name not in loggers] for pairs in (states_of(callbacks), kept))
    if sorted(here) != sorted(there):
        raise ValueError(
            f"The checkpoint in {folder} holds the state of the callbacks {there}, but `fit` has {here}. Pass the same "
            "callbacks, or delete the folder to start again"
        )


def set_states(callbacks: Sequence[Any], kept: list[list[Any]]) -> None:
    """Set the states of callbacks from the result of `states_of`."""
    states: dict[tuple[str, int], Any] = {}  # by name, and by index among the callbacks of this name
    for name, state in kept:
        states[name, sum(name == known for known, _ in states)] = state
    seen: Counter[str] = Counter()
    for callback in callbacks:
        if get_state(callback) is None:
            continue
        name = describe(callback)
        state = states.get((name, seen[name]))
        seen[name] += 1
        if state is not None:  # a logger that was added has no state
            _set_state(callback, state)


def _set_state(callback: Any, state: dict[str, Any]) -> None:
    for name in _names_of(callback):
        setattr(callback, name, state[name])
    if has_methods(callback) and (own := state.get(_OWN) if _names_of(callback) else state) is not None:
        callback.set_state(own)
    if isinstance(callback, keras.callbacks.TensorBoard) and callback.update_freq != "epoch":
        # The beginning of training has set to 0 the step of summaries that are written before the first batch.
        _keras.tensorboard_pop(callback)()
        _keras.tensorboard_push(callback)(
            _keras.tensorboard_train_writer(callback), _keras.tensorboard_train_batch(callback)
        )


def refuse_overwriting_loggers(callbacks: Sequence[Any]) -> None:
    """Raise an error if a CSVLogger would overwrite its file when training is resumed."""
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.CSVLogger) and not callback.append:
            raise ValueError("CSVLogger would empty its file when training is resumed: use CSVLogger(..., append=True)")


def _names_of(callback: Any) -> tuple[str, ...]:
    return next((names for cls, names in STATE_OF.items() if isinstance(callback, cls)), ())


def describe(callback: Any) -> str:
    """Return the class of a callback, with what tells it apart from others of its class."""
    monitored = getattr(callback, "monitor", None) if _names_of(callback) else None
    log_name = getattr(callback, "log_name", None)
    is_named = isinstance(log_name, str) and log_name != getattr(callback, "group", None)
    return type(callback).__name__ + (f" of {monitored}" if monitored else f" {log_name!r}" if is_named else "")
