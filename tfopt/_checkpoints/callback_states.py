"""What callbacks carry from one epoch to the next, so that training can be resumed."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from tfopt._checkpoints import state_file

# What Keras's own callbacks carry from one epoch to the next.
STATE_OF: dict[type, tuple[str, ...]] = {
    keras.callbacks.CSVLogger: ("keys",),
    keras.callbacks.EarlyStopping: ("best", "wait", "stopped_epoch", "best_epoch", "best_weights"),
    keras.callbacks.History: ("epoch", "history"),
    keras.callbacks.ModelCheckpoint: ("best", "_batches_seen_since_last_saving", "_last_batch_seen"),
    keras.callbacks.ReduceLROnPlateau: ("best", "wait", "cooldown_counter"),
    keras.callbacks.TensorBoard: ("_global_train_batch", "_global_test_batch"),
}
if hasattr(keras.callbacks, "OrbaxCheckpoint"):
    STATE_OF[keras.callbacks.OrbaxCheckpoint] = (*STATE_OF[keras.callbacks.ModelCheckpoint], "_total_batches_seen")
# These change no number of a training, so one can be added or left out when training is resumed.
_LOGGERS = (keras.callbacks.CSVLogger, keras.callbacks.History, keras.callbacks.TensorBoard)
_OWN = "state of its own"  # of a subclass of Keras's that has methods too


def has_methods(callback: Any) -> bool:
    """Return whether a callback can say what to keep.

    Args:
        callback: The callback.

    Returns:
        Whether it has `get_state` and `set_state`.
    """
    return hasattr(callback, "get_state") and hasattr(callback, "set_state")


def get_state(callback: Any) -> dict[str, Any] | None:
    """Return the state of a callback.

    Args:
        callback: A callback of Keras, of tfopt, or of the user's.

    Returns:
        The state; None if it has none, now or ever.
    """
    own = callback.get_state() if has_methods(callback) else None
    names = _names_of(callback)
    if not names:
        return own
    state = {name: getattr(callback, name) for name in names}
    return state if own is None else {**state, _OWN: own}


def states_of(callbacks: Sequence[Any]) -> list[list[Any]]:
    """Return the states of callbacks.

    Args:
        callbacks: The callbacks.

    Returns:
        Pairs of name and state, of those that have one. The name is that of the class, and of what is monitored.

    Raises:
        TypeError: A state holds something that cannot be kept.
    """
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
            found.append([_describe(callback), state])
    return found


def check_states(callbacks: Sequence[Any], kept: list[list[Any]], folder: Path) -> None:
    """Check that states which were kept are those of these callbacks, in whatever order.

    Args:
        callbacks: The callbacks.
        kept: What `states_of` has returned.
        folder: Where it was kept, for the message.

    Raises:
        ValueError: They are of other callbacks.
    """
    loggers = {cls.__name__ for cls in _LOGGERS} | {_describe(item) for item in callbacks if isinstance(item, _LOGGERS)}
    here, there = ([name for name, _ in pairs if name not in loggers] for pairs in (states_of(callbacks), kept))
    if sorted(here) != sorted(there):
        raise ValueError(
            f"The checkpoint in {folder} holds the state of the callbacks {there}, but `fit` has {here}. Pass the same "
            "ones, or delete the folder to begin anew"
        )


def set_states(callbacks: Sequence[Any], kept: list[list[Any]]) -> None:
    """Give callbacks their states back.

    Args:
        callbacks: The callbacks.
        kept: What `states_of` has returned.
    """
    states: dict[tuple[str, int], Any] = {}  # by name, and by place among those of this name
    for name, state in kept:
        states[name, sum(name == known for known, _ in states)] = state
    seen: Counter[str] = Counter()
    for callback in callbacks:
        if get_state(callback) is None:
            continue
        name = _describe(callback)
        state = states.get((name, seen[name]))
        seen[name] += 1
        if state is not None:  # which a logger that is new has not
            _set_state(callback, state)


def _set_state(callback: Any, state: dict[str, Any]) -> None:
    for name in _names_of(callback):
        setattr(callback, name, state[name])
    if has_methods(callback) and (own := state.get(_OWN) if _names_of(callback) else state) is not None:
        callback.set_state(own)
    if isinstance(callback, keras.callbacks.TensorBoard) and callback.update_freq != "epoch":
        # The step of summaries that are written before the first batch: it was set to 0 when training began.
        callback._pop_writer()
        callback._push_writer(callback._train_writer, callback._global_train_batch)


def refuse_overwriting_loggers(callbacks: Sequence[Any]) -> None:
    """Refuse loggers that would lose what they have written.

    Args:
        callbacks: The callbacks.

    Raises:
        ValueError: There is one.
    """
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.CSVLogger) and not callback.append:
            raise ValueError("CSVLogger would empty its file when training is resumed: use CSVLogger(..., append=True)")


def _names_of(callback: Any) -> tuple[str, ...]:
    return next((names for cls, names in STATE_OF.items() if isinstance(callback, cls)), ())


def _describe(callback: Any) -> str:
    monitored = getattr(callback, "monitor", None) if _names_of(callback) else None
    return type(callback).__name__ + (f" of {monitored}" if monitored else "")
