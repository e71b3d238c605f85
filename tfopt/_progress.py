"""A progress line for a long search."""

import sys
from types import TracebackType
from typing import Any


class Progress:
    """A spinner with the elapsed seconds and the current stage, which disappears at the end.

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

    def __enter__(self) -> "Progress":
        if self._enabled:
            from rich.console import Console
            from rich.progress import Progress as Bar
            from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

            columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=None)
        return self

    def show(self, where: str) -> None:
        """Show the current stage, in a few words."""
        if self._bar is not None:
            self._bar.update(self._task, description=f"{self._title}; {where}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
