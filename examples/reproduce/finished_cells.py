"""Results of the finished parts of a long run, in one JSON file. A run that was interrupted goes on from there."""

import json
import math
import os
import platform
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any


class FinishedCells:
    """The finished cells of a run: independent trainings or measurements, each known by its settings.

    Args:
        path: The JSON file.
        settings: What all cells have in common. A file with other settings is refused.
        only_finished: Whether to take the finished cells as they are and to compute no others.

    Attributes:
        files: Folder for checkpoints and the like of this run. It is empty at the beginning of a run that has no JSON
            file yet.
        unfinished: Names of cells that were asked for and not computed.
    """

    def __init__(self, path: Path, settings: dict[str, Any], only_finished: bool = False) -> None:
        self._path, self._settings, self._only_finished = path, settings, only_finished
        self.unfinished: set[str] = set()
        self.files = path.with_name(path.stem.replace("cells", "checkpoints"))
        if not self._path.exists():
            shutil.rmtree(self.files, ignore_errors=True)
            self._write({})
        self.files.mkdir(exist_ok=True)
        if finished := self._read():
            print(f"{self._path} holds {len(finished)} finished cells", flush=True)

    def get(self, compute: Callable[..., Any], **key: Any) -> Any:
        """Return the result of `compute(**key)` as JSON holds it: the stored one, or a new one; None if not wanted."""
        name = ", ".join(f"{part}={value}" for part, value in key.items())
        cells = self._read()
        if name not in cells and self._only_finished:
            self.unfinished.add(name)
            return None
        if name not in cells:
            begin = time.perf_counter()
            result = _finite(compute(**key))
            cell = {"result": result, "seconds": round(time.perf_counter() - begin, 1), **when_and_where()}
            # Another run may have finished other cells in the meantime.
            cells = {**self._read(), name: cell}
            self._write(cells)
            print(f"{name}: {cell['seconds']:.0f} s", flush=True)
        return cells[name]["result"]

    def when_and_where(self) -> dict[str, str]:
        """Return the first and last dates of the finished cells, their machines and versions."""
        cells = self._read().values() or [when_and_where()]
        dates = sorted({cell["date"][:10] for cell in cells})
        return {
            "date": " to ".join(sorted({dates[0], dates[-1]})),
            **{name: "; ".join(sorted({cell[name] for cell in cells})) for name in ("machine", "versions")},
        }

    def _read(self) -> dict[str, Any]:
        content = json.loads(self._path.read_text())
        for name in sorted({*content["settings"], *self._settings}):
            theirs, ours = content["settings"].get(name), self._settings.get(name)
            if theirs != json.loads(json.dumps(ours)):
                raise SystemExit(
                    f"{self._path} holds cells with {name}={theirs!r}, and this run has {name}={ours!r}. Choose "
                    "another folder by --output, or delete the file"
                )
        return content["cells"]

    def _write(self, cells: dict[str, Any]) -> None:
        content = {"settings": self._settings, "cells": cells}
        # A run that is killed while it writes leaves the old file.
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_suffix(".new")
        with new.open("w") as file:
            file.write(json.dumps(content, indent=1, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)


def when_and_where() -> dict[str, str]:
    """Return the date, the machine, and the versions of what computes."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("tfopt", "tensorflow", "keras", "numpy"))
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{os.cpu_count()} cores, {_processor()}, {platform.system()}",
        "versions": f"Python {platform.python_version()}, {packages}",
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _finite(value: Any) -> Any:
    """Return the value with None in place of numbers that are not finite, which JSON cannot hold."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
