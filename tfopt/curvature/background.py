"""Run TensorFlow's part of a computation in another thread, while this thread runs Python code."""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import tensorflow as tf

from tfopt import _keras
from tfopt._keras import record


@contextlib.contextmanager
def started(function: Callable[[], Any]) -> Iterator[Callable[[], Any]]:
    """Within this context a function runs in another thread; yields a function that waits for its result."""
    # TensorFlow compiles and computes without Python's lock. A tape of the caller sees only this thread.
    if record.could_possibly_record():
        result = function()
        yield lambda: result
        return
    # A setting of this thread. Without one, None leaves the choice to TensorFlow, as outside; "" would choose the CPU.
    device = _keras.context.context().device_name or None

    def call() -> Any:
        with tf.device(device):
            return function()

    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(call).result
