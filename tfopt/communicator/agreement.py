"""Checks that all ranks agree (same arguments, no errors) before they wait for each other or average their values."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from tfopt.communicator.protocol import Communicator

_LONGEST = 200  # characters of a value in an error message
T = TypeVar("T")


def check_agreement(communicator: Communicator, name: str, facts: Mapping[str, Any], advice: str = "") -> None:
    """Check on all ranks that facts, by name, are equal; all raise one error that shows two ranks that differ."""
    # `name` says in words which part of the program calls this: ranks in different parts raise an error.
    everybody = communicator.allgather_object(dict(facts), name=name)
    for fact in facts:
        for rank, theirs in enumerate(everybody):
            if theirs.get(fact) != everybody[0].get(fact):
                first, second = _differing_parts(everybody[0].get(fact), theirs.get(fact))
                raise ValueError(
                    f"The ranks do not agree on the {fact}: rank 0 has {first}, rank {rank} has {second}. "
                    f"{advice}".rstrip()
                )


def in_agreement(communicator: Communicator, action: Callable[[], T]) -> T:
    """Run an action that does not wait for other ranks; return its result, or raise one rank's error on all ranks."""
    # TypeError and ValueError keep their class; all other errors become RuntimeError, except on a single rank.
    if communicator.size == 1:
        return action()
    result, error = None, None
    try:
        result = action()
    except Exception as caught:  # of any kind, because otherwise the other ranks would wait
        error = caught
    found = communicator.allgather_object((type(error).__name__, str(error)) if error else None, name="errors")
    said = [(rank, *item) for rank, item in enumerate(found) if item]
    if said:
        kinds = {"TypeError": TypeError, "ValueError": ValueError}
        kind = kinds.get(said[0][1], RuntimeError)
        texts = [f"Rank {rank}: {'' if name in kinds else name + ': '}{text}" for rank, name, text in said]
        raise kind("; ".join(texts)) from error
    return result  # type: ignore[return-value]


def _differing_parts(first: Any, second: Any) -> tuple[str, str]:
    # For two lists this returns the elements that are in only one of them, for other values the whole values.
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        only_first = [item for item in first if item not in second]
        only_second = [item for item in second if item not in first]
        if only_first or only_second:
            return _shorten(only_first), _shorten(only_second)
    return _shorten(first), _shorten(second)


def _shorten(value: Any) -> str:
    text = (", ".join(map(str, value)) or "none") if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
