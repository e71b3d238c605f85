"""Columns that appear when training is under way already: a layer was unfrozen, or the model compiled again."""

import csv
import math
import os
from typing import Any

import keras


def by_path(entries: list[Any]) -> dict[str, list[float]]:
    """Turn dictionaries into columns.

    Args:
        entries: One dictionary for each measurement, from the path of a variable to its value; NaN for none.

    Returns:
        One list for each path, with NaN where it was not measured.
    """
    paths = dict.fromkeys(path for entry in entries if isinstance(entry, dict) for path in entry)
    return {
        path: [entry.get(path, math.nan) if isinstance(entry, dict) else math.nan for entry in entries]
        for path in paths
    }


def pad_loggers(callbacks: list[Any], names: list[str]) -> None:
    """Give Keras's History and CSVLogger columns that they have not had in earlier epochs, with NaN for these.

    Called before they log the epoch in which the columns appear. By themselves, `CSVLogger` leaves such columns out,
    and `History` makes their lists too short, so that nobody knows to which epochs the entries belong.

    Args:
        callbacks: The callbacks of a `fit`.
        names: The names of the columns.
    """
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
    """Write the file of a CSVLogger anew with more columns, and let it go on at its end."""
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
