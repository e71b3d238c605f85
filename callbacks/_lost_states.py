"""What training changes and no checkpoint holds: said in a warning, once."""

import warnings
from typing import Any

from tfopt.callbacks._data_position import DataPosition
from tfopt.callbacks._plain_state import PlainState
from tfopt.callbacks._resumability import functions_in, unknown_among
from tfopt.callbacks._unknown_callbacks import UnknownCallbacks


class LostStates:
    """Looks, whenever a checkpoint is written, for states that are not in it.

    Args:
        callbacks: The other callbacks of a `fit`, before training.
        stateless: Classes whose state need not be kept.
        saved: The variables that a checkpoint holds.
    """

    def __init__(self, callbacks: list[Any], stateless: tuple[type, ...], saved: list[Any]) -> None:
        self._callbacks = callbacks
        self._unknown = UnknownCallbacks(unknown_among(callbacks, stateless), saved)
        self._functions = functions_in(callbacks)
        self._is_first, self._is_order_lost = True, False

    def warn(self, plain: PlainState, position: DataPosition) -> None:
        """Warn of what has changed since training began.

        Args:
            plain: What is saved of plain objects.
            position: What is saved of data sets.
        """
        for name, changed in self._unknown.changed().items():
            warnings.warn(
                f"ResumableCheckpoint does not know the callback {name}: training has changed {', '.join(changed)} "
                "there, which is not saved. Give it methods get_state() and set_state(state), or pass "
                f"stateless=[{name}]",
                stacklevel=4,
            )
        if position.lost() and not self._is_order_lost:
            self._is_order_lost = True
            warnings.warn(
                "A tf.data.Dataset is shuffled in front of `cache`, and that was filled more than once: after a "
                "restart, training may go through other rows. Read the whole of it in each epoch, or shuffle behind it",
                stacklevel=4,
            )
        if self._is_first:
            self._is_first = False
            self._warn_of_code(plain)

    def _warn_of_code(self, plain: PlainState) -> None:
        if lost := plain.lost():
            warnings.warn(
                f"The code of this training uses {', '.join(lost)}, which training changes, and which cannot be saved: "
                "after a restart it begins anew. Keep numbers, arrays, collections of them, or random number "
                "generators of NumPy or Python there",
                stacklevel=5,
            )
        now = functions_in(self._callbacks)
        if changed := [name for name, text in now.items() if text != self._functions.get(name)]:
            warnings.warn(
                f"What {', '.join(changed)} holds has changed in training, and is not saved: after a restart it begins "
                "anew. Let it follow from the epoch, or write a callback with get_state() and set_state(state)",
                stacklevel=5,
            )
