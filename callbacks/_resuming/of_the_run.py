"""Attributes that hold a time, or the id of a run or process, and do not change results."""

import os
import re

_TIMES = ((1.4e9, 4.2e9), (1.4e12, 4.2e12), (1.4e18, 4.2e18))  # seconds, milliseconds, nanoseconds since 1970
_DATE = re.compile(r"\b20\d\d([-_./]?)[01]\d\1[0-3]\d(?!\d)|\b\d\d:\d\d")
_ID = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def of_the_run(there: dict[str, str], here: dict[str, str], process: int) -> list[str]:
    """Return names of attributes that differ only in times, dates, or ids of runs or processes (`process`: first)."""
    names = [name for name in there if "'s attribute " in name and there[name] != here.get(name, there[name])]
    ids = (str(process), str(os.getpid()))
    return [
        name
        for name in names
        if (_is_of_a_run(there[name]) and _is_of_a_run(here[name])) or (there[name], here[name]) == ids
    ]


def _is_of_a_run(text: str) -> bool:
    if _DATE.search(text) or _ID.fullmatch(text):
        return True
    try:
        return any(first < float(text) < last for first, last in _TIMES)
    except ValueError:
        return False
