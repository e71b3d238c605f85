"""Whether a training is still running: Keras tells no callback when an exception ends a `fit`."""

import sys
import threading
import weakref
from collections.abc import Iterator
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

    def begin(self) -> None:
        """Note that this thread begins a training: `fit`, or a loop of somebody's own.

        Raises:
            ValueError: A `fit` of the callback's model does not have it in its list: it is inside of another callback.
        """
        callback: Any = self._callback()
        fits = [names for names in _fits_of(sys._getframe()) if names.get("self") is callback.model]
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
    return sum(_has(names, callback) for frame in sys._current_frames().values() for names in _fits_of(frame))


def _fits_of(frame: FrameType | None) -> Iterator[dict[str, Any]]:
    """Yield the local variables of each of Keras's `fit` that a thread is in."""
    while frame is not None:
        if frame.f_code.co_name == "fit" and "epoch_iterator" in frame.f_locals:
            yield frame.f_locals
        frame = frame.f_back


def _has(names: dict[str, Any], callback: Any) -> bool:
    return any(other is callback for other in getattr(names.get("callbacks"), "callbacks", ()))
