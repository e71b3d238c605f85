"""Event files for TensorBoard, written without a `keras.callbacks.TensorBoard`."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf


class Summaries:
    """Writes numbers to event files in `log_dir`; if it is None, writes nothing."""

    def __init__(self, log_dir: str | Path | None) -> None:
        if log_dir is not None and not isinstance(log_dir, str | Path):
            raise TypeError(f"`log_dir` must be a path. Received: log_dir={log_dir!r} of type {type(log_dir).__name__}")
        if log_dir is not None and importlib.util.find_spec("tensorboard") is None:
            raise ImportError("`log_dir` needs TensorBoard: pip install 'tfopt[tensorboard]'")
        self._log_dir = log_dir
        self._writer: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_log_dir": self._log_dir, "_writer": None}

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write numbers for a step, and make sure that they are on the disk."""
        if self._log_dir is None:
            return
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(str(self._log_dir))
        with self._writer.as_default(step=step):
            for name, number in numbers.items():
                tf.summary.scalar(name, number)
        self._writer.flush()
