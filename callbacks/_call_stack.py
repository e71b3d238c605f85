"""The functions that call a callback: Keras does not pass all that they know to it."""

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from keras.callbacks import CallbackList


def callers(frame: FrameType | None = None) -> Iterator[FrameType]:
    """Yield the frames of a call stack, from a frame (None: of the caller) outwards."""
    frame = frame or sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def fits_in(frame: FrameType | None = None) -> Iterator[dict[str, Any]]:
    """Yield the local variables of each of Keras's `fit` in the call stack of a frame (None: of the caller)."""
    for caller in callers(frame or sys._getframe(1)):
        if caller.f_code.co_name == "fit" and "epoch_iterator" in caller.f_locals:
            yield caller.f_locals


def list_with(callback: Any) -> CallbackList | None:
    """Return the list of callbacks that is calling a callback; None in a loop that calls its hooks itself."""
    selves = (frame.f_locals.get("self") for frame in callers())
    return next((thing for thing in selves if isinstance(thing, CallbackList) and callback in thing.callbacks), None)
