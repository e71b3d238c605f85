"""Warnings about states that training changes and no checkpoint holds."""

import warnings
from typing import Any

from tfopt.callbacks._data_position import DataPosition
from tfopt.callbacks._plain_state import PlainState
from tfopt.callbacks._resumability import functions_in, unknown_among
from tfopt.callbacks._unknown_callbacks import UnknownCallbacks


class LostStates:
    """Warns when a checkpoint lacks changed states of callbacks (except `stateless` classes), code or data sets."""

    def __init__(self, callbacks: list[Any], stateless: tuple[type, ...], saved: list[Any]) -> None:
        self._callbacks = callbacks
        self._unknown = UnknownCallbacks(unknown_among(callbacks, stateless), saved)
        self._functions = functions_in(callbacks)
        self._is_first, self._is_order_lost = True, False

    def warn(self, plain: PlainState, position: DataPosition) -> None:
        """Warn about unsaved changes since training began; `plain` and `position` are saved."""
        for name, changed in self._unknown.changed().items():
            warnings.warn(
                f"ResumableCheckpoint does not know the callback {name}: training has changed {', '.join(changed)} "
                "there, which is not saved. Add methods get_state() and set_state(state) to it, or pass "
                f"stateless=[{name}]",
                stacklevel=4,
            )
        if position.lost() and not self._is_order_lost:
            self._is_order_lost = True
            warnings.warn(
                "A tf.data.Dataset is shuffled in front of `cache`, and the cache was filled more than once. After a "
                "restart, training may use other rows. Read the whole data set in each epoch, or shuffle after `cache`",
                stacklevel=4,
            )
        if self._is_first:
            self._is_first = False
            self._warn_of_code(plain)

    def _warn_of_code(self, plain: PlainState) -> None:
        if lost := plain.lost():
            warnings.warn(
                f"The code of this training uses {', '.join(lost)}, which training changes, and which cannot be saved: "
                "after a restart it begins anew. Use numbers, arrays, collections of them, or random number generators "
                "of NumPy or Python instead",
                stacklevel=5,
            )
        now = functions_in(self._callbacks)
        if changed := [name for name, text in now.items() if text != self._functions.get(name)]:
            warnings.warn(
                f"The content of {', '.join(changed)} has changed in training and is not saved: after a restart it "
                "begins anew. Compute it from the epoch, or write a callback with get_state() and set_state(state)",
                stacklevel=5,
            )
