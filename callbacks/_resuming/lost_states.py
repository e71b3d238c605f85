"""Warnings about states that training changes and no checkpoint holds."""

import warnings
from typing import Any

from tfopt.callbacks._resuming.data_position import DataPosition
from tfopt.callbacks._resuming.optimizer_arguments import describe
from tfopt.callbacks._resuming.plain_state import PlainState, is_installed
from tfopt.callbacks._resuming.resumability import functions_in, unknown_among
from tfopt.callbacks._resuming.unknown_callbacks import UnknownCallbacks


class LostStates:
    """Warns when a checkpoint lacks changed states of callbacks (except `stateless` classes), code or data sets."""

    def __init__(self, callbacks: list[Any], stateless: tuple[type, ...], saved: list[Any], plain: PlainState) -> None:
        self._callbacks, self._plain = callbacks, plain
        self._unknown = UnknownCallbacks(unknown_among(callbacks, stateless), saved, plain)
        self._installed = _installed_functions(callbacks)
        self._named: set[str] = set()
        self._is_order_lost = False

    def warn(self, position: DataPosition) -> None:
        """Warn about unsaved changes since training began, once about each; `plain` and `position` are saved."""
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
        self._warn_of_code()

    def _warn_of_code(self) -> None:
        if lost := self._first_time(self._plain.lost()):
            warnings.warn(
                f"The code of this training uses {', '.join(lost)}, which training changes, and which cannot be saved: "
                "after a restart it begins anew. Use numbers, arrays, collections of them, or random number generators "
                "of NumPy or Python instead",
                stacklevel=5,
            )
        now = _installed_functions(self._callbacks)
        if changed := self._first_time([name for name, text in now.items() if text != self._installed.get(name)]):
            warnings.warn(
                f"The content of {', '.join(changed)} has changed in training and is not saved: after a restart it "
                "begins anew. Compute it from the epoch, or write a callback with get_state() and set_state(state)",
                stacklevel=5,
            )

    def _first_time(self, names: list[str]) -> list[str]:
        new = [name for name in names if name not in self._named]
        self._named.update(new)
        return new


def _installed_functions(callbacks: list[Any]) -> dict[str, str]:
    """Return the contents of functions of installed packages in Keras's callbacks; `PlainState` has all others."""
    functions = functions_in(callbacks).items()
    return {name: describe(value) for name, value in functions if is_installed(getattr(value, "__module__", None))}
