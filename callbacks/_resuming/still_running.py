"""Whether a training is still running, because Keras tells no callback when an exception ends a `fit`."""

import sys
import threading
import weakref
from typing import Any

import keras

from tfopt.callbacks._call_stack import fits_in


class StillRunning:
    """Tells whether a training with a callback, which is not kept alive, is still running.

    A `fit` is running if a thread executes it now. A custom loop is running as long as the thread that began it lives,
    and is not the thread that asks.
    """

    def __init__(self, callback: keras.callbacks.Callback) -> None:
        self._callback = weakref.ref(callback)
        self._loop: threading.Thread | None = None

    def begin(self) -> None:
        """Note that this thread begins a `fit` or a custom loop; ValueError if another callback contains this one."""
        callback: Any = self._callback()
        fits = [names for names in fits_in() if names.get("self") is callback.model]
        if fits and not any(_has(names, callback) for names in fits):
            raise ValueError(
                f"This {type(callback).__name__} is inside of another callback, and cannot see all others. "
                "Put it into the list of `fit(callbacks=...)` itself"
            )
        self._loop = None if fits else threading.current_thread()

    def __call__(self) -> bool:
        callback = self._callback()
        if callback is None:
            return False
        if self._loop is not None:
            return self._loop.is_alive() and self._loop is not threading.current_thread()
        return _count_running_fits(callback) > 0

    def check(self, num_fits: int) -> None:
        """Raise ValueError if more than `num_fits` running `fit`s use the callback."""
        callback = self._callback()
        if _count_running_fits(callback) > num_fits:
            raise ValueError(
                f"This {type(callback).__name__} is used in another `fit`, which is still running. Make one callback, "
                "with a folder of its own, for each `fit`"
            )


def _count_running_fits(callback: Any) -> int:
    return sum(_has(names, callback) for frame in sys._current_frames().values() for names in fits_in(frame))


def _has(names: dict[str, Any], callback: Any) -> bool:
    return any(other is callback for other in getattr(names.get("callbacks"), "callbacks", ()))
