"""Whether a training is still running: Keras tells no callback when an exception ends a `fit`."""

import sys
import threading
import weakref
from types import FrameType
from typing import Any

import keras


class StillRunning:
    """Says whether a training with a callback is still running.

    A `fit` is, if a thread is executing it now. A loop of somebody's own is, as long as another thread than the one
    that asks has begun it, and lives.

    Args:
        callback: The callback; it is not kept alive.
    """

    def __init__(self, callback: keras.callbacks.Callback) -> None:
        self._callback = weakref.ref(callback)
        self._loop: threading.Thread | None = None

    def begin(self, is_fit: bool) -> None:
        """Note that this thread begins a training: `fit`, or a loop of somebody's own."""
        self._loop = None if is_fit else threading.current_thread()

    def __call__(self) -> bool:
        callback = self._callback()
        if callback is None:
            return False
        if self._loop is not None:
            return self._loop.is_alive() and self._loop is not threading.current_thread()
        return _count_running_fits(callback) > 0

    def check(self, num_fits: int) -> None:
        """Refuse to use the callback in more running `fit` than this.

        Raises:
            ValueError: It is.
        """
        callback = self._callback()
        if _count_running_fits(callback) > num_fits:
            raise ValueError(
                f"This {type(callback).__name__} is at work in another `fit`, which is still running. Make one, with a "
                "folder of its own, for each"
            )


def _count_running_fits(callback: Any) -> int:
    count = 0
    for frame in sys._current_frames().values():
        here: FrameType | None = frame
        while here is not None:
            if here.f_code.co_name == "fit" and "epoch_iterator" in here.f_locals:
                callbacks = getattr(here.f_locals.get("callbacks"), "callbacks", ())
                count += any(other is callback for other in callbacks)
            here = here.f_back
    return count
