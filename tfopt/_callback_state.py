"""What callbacks carry from one epoch to the next, so that training can be resumed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

# What Keras's own callbacks carry from one epoch to the next.
STATE_OF = {
    keras.callbacks.ReduceLROnPlateau: ("best", "wait", "cooldown_counter"),
    keras.callbacks.EarlyStopping: ("best", "wait", "stopped_epoch", "best_epoch", "best_weights"),
    keras.callbacks.ModelCheckpoint: ("best", "_batches_seen_since_last_saving", "_last_batch_seen"),
}
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
        Pairs of class name and state, of those that have one.
    """
    return [[type(callback).__name__, state] for callback in callbacks if (state := get_state(callback)) is not None]


def check_states(callbacks: Sequence[Any], kept: list[list[Any]], folder: Path) -> None:
    """Check that states which were kept are those of these callbacks.

    Args:
        callbacks: The callbacks.
        kept: What `states_of` has returned.
        folder: Where it was kept, for the message.

    Raises:
        ValueError: They are of other callbacks.
    """
    here, there = [name for name, _ in states_of(callbacks)], [name for name, _ in kept]
    if here != there:
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
    stateful = [callback for callback in callbacks if get_state(callback) is not None]
    for callback, (_, state) in zip(stateful, kept, strict=True):
        for name in _names_of(callback):
            setattr(callback, name, state[name])
        if has_methods(callback) and (own := state.get(_OWN) if _names_of(callback) else state) is not None:
            callback.set_state(own)


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
