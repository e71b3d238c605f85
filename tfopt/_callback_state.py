"""What callbacks carry from one epoch to the next, so that training can be resumed."""

from typing import Any

import keras

# What Keras's own callbacks carry from one epoch to the next.
STATE_OF = {
    keras.callbacks.ReduceLROnPlateau: ("best", "wait", "cooldown_counter"),
    keras.callbacks.EarlyStopping: ("best", "wait", "stopped_epoch", "best_epoch", "best_weights"),
    keras.callbacks.ModelCheckpoint: ("best", "_batches_seen_since_last_saving", "_last_batch_seen"),
}


def get_state(callback: Any) -> dict[str, Any] | None:
    """Return the state of a callback.

    Args:
        callback: A callback of Keras, of tfopt, or of the user's.

    Returns:
        The state; None if it has none.
    """
    for cls, names in STATE_OF.items():
        if isinstance(callback, cls):
            return {name: getattr(callback, name) for name in names}
    if hasattr(callback, "get_state") and hasattr(callback, "set_state"):
        return callback.get_state() or None
    return None


def set_state(callback: Any, state: dict[str, Any]) -> None:
    """Give a callback its state back.

    Args:
        callback: The callback.
        state: What `get_state` has returned.
    """
    if any(isinstance(callback, cls) for cls in STATE_OF):
        for name, value in state.items():
            setattr(callback, name, value)
    else:
        callback.set_state(state)
