"""Columns that appear during training, after a layer was unfrozen or the model was compiled again."""

import csv
import math
import os
from typing import Any

import keras


def by_path(entries: list[Any]) -> dict[str, list[float]]:
    """Turn one dictionary per measurement (path -> value; or NaN) into one list per path, with NaN for gaps."""
    paths = dict.fromkeys(path for entry in entries if isinstance(entry, dict) for path in entry)
    return {
        path: [entry.get(path, math.nan) if isinstance(entry, dict) else math.nan for entry in entries]
        for path in paths
    }


def pad_loggers(callbacks: list[Any], names: list[str]) -> None:
    """Add columns `names` to Keras's History and CSVLogger, with NaN for earlier epochs, before they log this epoch."""
    # Without this, CSVLogger leaves out new columns. History makes their lists too short, so that nobody knows to which
    # epochs the entries belong.
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.History):
            for name in names if callback.epoch else ():
                series = callback.history.setdefault(name, [])
                series.extend([math.nan] * (len(callback.epoch) - len(series)))
        elif isinstance(callback, keras.callbacks.CSVLogger) and callback.writer and os.path.isfile(callback.filename):
            missing = [name for name in names if name not in callback.keys]
            if missing:
                _add_columns(callback, missing)


def _add_columns(logger: Any, missing: list[str]) -> None:
    """Rewrite the file of a CSVLogger with more columns, and reopen it at its end."""
    logger.csv_file.close()
    with open(logger.filename, newline="") as file:
        header, *rows = list(csv.reader(file, delimiter=logger.sep)) or [[]]
    part = f"{logger.filename}.part"
    with open(part, "w", newline="") as file:
        writer = csv.writer(file, delimiter=logger.sep)
        writer.writerow(header + missing)
        writer.writerows(row + ["nan"] * len(missing) for row in rows)
    os.replace(part, logger.filename)
    logger.keys = logger.keys + missing
    logger.csv_file = open(logger.filename, "a", newline="")  # noqa: SIM115  the logger closes it
    logger.writer = csv.DictWriter(logger.csv_file, fieldnames=["epoch", *logger.keys], delimiter=logger.sep)
