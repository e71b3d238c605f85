"""Do all ranks mean the same, and get on? Asked before they would wait for each other, or average unlike things."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

_LONGEST = 200  # characters of a value that an error shows
T = TypeVar("T")


def check_agreement(communicator: Any, place: str, facts: Mapping[str, Any], advice: str = "") -> None:
    """Check that some facts are the same on all ranks; every rank calls this, and every rank raises the same error.

    Args:
        communicator: The job's communicator.
        place: Where in the program this is, in words.
        facts: Things that can be compared and pickled, by what they are called in the message.
        advice: A sentence that the message ends with.

    Raises:
        ValueError: A rank is at another place, or a fact differs; the message shows the first two ranks that differ.
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


def in_agreement(communicator: Any, action: Callable[[], T]) -> T:
    """Do something on each rank that may fail on some; then raise the same error on all.

    Args:
        communicator: The job's communicator.
        action: What to do. It must not wait for other ranks.

    Returns:
        What the action has returned.

    Raises:
        TypeError: The action has raised one on some rank.
        ValueError: The same.
        RuntimeError: It has raised anything else on some rank; on a single rank, that itself.
    """
    if communicator.size == 1:
        return action()
    result, error = None, None
    try:
        result = action()
    except Exception as caught:  # whatever it is: the other ranks would wait
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
    # Of two lists with different elements these elements, of anything else the whole.
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        only_first = [item for item in first if item not in second]
        only_second = [item for item in second if item not in first]
        if only_first or only_second:
            return _shorten(only_first), _shorten(only_second)
    return _shorten(first), _shorten(second)


def _shorten(value: Any) -> str:
    text = (", ".join(map(str, value)) or "none") if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
