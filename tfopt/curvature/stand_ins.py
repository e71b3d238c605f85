"""Replace attributes of other libraries' classes and modules while a thread measures."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_ABSENT = object()


class StandIns:
    """Replacements of attributes that are active while at least one thread is within `installed`.

    Other threads also call a replacement, because classes and modules are shared. There it must act as the original.

    Args:
        replaced: Triples of an attribute's owner, its name, and a function that makes the replacement from the
            original, which may be inherited, or from None if there is none.
    """

    def __init__(self, replaced: Sequence[tuple[Any, str, Callable[[Any], Any]]]) -> None:
        self._replaced = replaced
        self._lock = threading.Lock()
        self._num_users = 0
        self._kept: list[tuple[Any, str, Any, Any]] = []

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Within this context the replacements are active."""
        with self._lock:
            if self._num_users == 0:
                self._kept = [_replace(*one) for one in self._replaced]
            self._num_users += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_users -= 1
                if self._num_users == 0:
                    for one in self._kept:
                        _put_back(*one)


def _replace(owner: Any, name: str, make: Callable[[Any], Any]) -> tuple[Any, str, Any, Any]:
    original = vars(owner).get(name, _ABSENT)
    made = make(getattr(owner, name, None))
    setattr(owner, name, made)
    return owner, name, original, made


def _put_back(owner: Any, name: str, original: Any, made: Any) -> None:
    if vars(owner).get(name) is not made:
        return  # other code has wrapped the replacement in the meantime
    if original is _ABSENT:
        delattr(owner, name)
    else:
        setattr(owner, name, original)
