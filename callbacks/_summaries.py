"""Event files for TensorBoard, written without a `keras.callbacks.TensorBoard`."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf


class Summaries:
    """Writes numbers to event files.

    Args:
        log_dir: The folder; None to write nothing.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, log_dir: str | Path | None) -> None:
        if log_dir is not None and importlib.util.find_spec("tensorboard") is None:
            raise ImportError("`log_dir` needs TensorBoard: pip install 'tfopt[tensorboard]'")
        self._log_dir = log_dir
        self._writer: Any = None

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write numbers, and make sure that they are on the disk.

        Args:
            step: The step that they belong to.
            numbers: The numbers by their names.
        """
        if self._log_dir is None:
            return
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(str(self._log_dir))
        with self._writer.as_default(step=step):
            for name, number in numbers.items():
                tf.summary.scalar(name, number)
        self._writer.flush()
