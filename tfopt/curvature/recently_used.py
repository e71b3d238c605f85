"""A limited number of things that are kept for the rest of the process."""

from collections import OrderedDict
from threading import Lock
from typing import Any


class RecentlyUsed:
    """Things by their keys, at most `most`; the one that was not used for the longest time goes first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._things: OrderedDict[Any, Any] = OrderedDict()
        self._lock = Lock()

    def find(self, key: Any) -> Any:
        """Return the thing that was kept with this key; None if there is none."""
        with self._lock:
            found = self._things.get(key)
            if found is not None:
                self._things.move_to_end(key)
            return found

    def keep(self, key: Any, thing: Any) -> None:
        """Keep a thing."""
        with self._lock:
            self._things[key] = thing
            while len(self._things) > self._most:
                self._things.popitem(last=False)

    def clear(self) -> None:
        """Keep nothing any more."""
        self._things.clear()
