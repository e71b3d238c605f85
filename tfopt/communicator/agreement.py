"""Check that all ranks agree (same arguments, no errors) before they communicate."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from tfopt.communicator.protocol import Communicator

_LONGEST = 200  # Maximum number of characters of a value in an error message.
T = TypeVar("T")


def check_agreement(communicator: Communicator, place: str, facts: Mapping[str, Any], advice: str = "") -> None:
    """Raise the same `ValueError` on all ranks if a fact differs, or if a rank calls this at another place.

    Every rank must call this function. The message shows the first two ranks that differ.

    Args:
        communicator: The communicator of the job.
        place: The place in the program, in words.
        facts: Values that can be compared and pickled, by their names in the message.
        advice: The last sentence of the message.

    Raises:
        ValueError: A rank is at another place, or a fact differs.
    """
    everybody = communicator.allgather_object(dict(facts), name=place)
    for name in facts:
        for rank, theirs in enumerate(everybody):
            if theirs.get(name) != everybody[0].get(name):
                first, second = _differing_parts(everybody[0].get(name), theirs.get(name))
                raise ValueError(
                    f"The ranks do not agree on the {name}: rank 0 has {first}, rank {rank} has {second}. "
                    f"{advice}".rstrip()
                )


def in_agreement(communicator: Communicator, action: Callable[[], T]) -> T:
    """Return the result of an action that must not wait for other ranks; if it fails on a rank, raise on all ranks.

    Args:
        communicator: The communicator of the job.
        action: A function that may raise errors on some ranks.

    Returns:
        The result of the action.

    Raises:
        TypeError: The action has raised TypeError on the first rank that failed.
        ValueError: The action has raised ValueError on the first rank that failed.
        RuntimeError: The action has raised another error, in a job of several ranks; a single rank raises that error.
    """
    if communicator.size == 1:
        return action()
    result, error = None, None
    try:
        result = action()
    except Exception as caught:  # Of any kind, because the other ranks would wait.
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
    # Show only the elements that differ, if both values are lists.
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        only_first = [item for item in first if item not in second]
        only_second = [item for item in second if item not in first]
        if only_first or only_second:
            return _shorten(only_first), _shorten(only_second)
    return _shorten(first), _shorten(second)


def _shorten(value: Any) -> str:
    text = (", ".join(map(str, value)) or "none") if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
