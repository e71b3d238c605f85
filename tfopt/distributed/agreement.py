"""Do all ranks mean the same? Asked before they would otherwise wait for each other, or average unlike things."""

from collections.abc import Mapping
from typing import Any

from tfopt.communicator import Communicator

_LONGEST = 200  # characters of a value that an error shows


def check_agreement(communicator: Communicator, place: str, facts: Mapping[str, Any], advice: str = "") -> None:
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
