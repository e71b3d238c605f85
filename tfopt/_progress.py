"""A progress line for a long search."""

import logging
import sys
from types import TracebackType
from typing import Any

_LOGGER = logging.getLogger("tfopt")


class Progress:
    """A spinner with the elapsed seconds and the current stage, which disappears at the end; lines in a file.

    Python's logger "tfopt" gets each stage too, at the level INFO.

    Args:
        title: The name of the search.
        enabled: Whether to show it. None shows it if standard error is a terminal.
    """

    def __init__(self, title: str, enabled: bool | None) -> None:
        if enabled is not None and not isinstance(enabled, bool):
            raise TypeError(f"`progress` must be True, False or None. Received: progress={enabled!r}")
        self._enabled = sys.stderr.isatty() if enabled is None else enabled
        self._title = title
        self._bar: Any = None
        self._is_in_file = False

    def __enter__(self) -> "Progress":
        if self._enabled:
            from rich.console import Console
            from rich.progress import Progress as Bar
            from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

            console = Console(stderr=True)
            if not console.is_terminal:
                self._is_in_file = True
                return self
            columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
            self._bar = Bar(*columns, console=console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=None)
        return self

    def show(self, where: str) -> None:
        """Show the current stage, in a few words."""
        text = f"{self._title}; {where}"
        _LOGGER.info(text)
        if self._bar is not None:
            self._bar.update(self._task, description=text)
        elif self._is_in_file:
            print(text, file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
