"""The first part of the names that a measuring callback writes into `logs`."""

from typing import Any

from tfopt._checks import check_text


def check_log_name(value: Any, default: str) -> str:
    """Return the argument `log_name`, or the default for None; an error if it cannot be the first part of a name."""
    if value is None:
        return default
    if not check_text("log_name", value).strip() or "/" in value:
        raise ValueError(f"`log_name` must be a string without '/', and not empty. Received: log_name={value!r}")
    return value


def refuse_shared_log_names(callbacks: list[Any]) -> None:
    """Raise ValueError if two callbacks of a `fit` would write the same names into `logs`."""
    known: dict[str, Any] = {}
    for callback in callbacks:
        log_name = getattr(callback, "log_name", None)
        if not isinstance(log_name, str):
            continue
        if log_name in known:
            names = [type(each).__name__ for each in (known[log_name], callback)]
            raise ValueError(
                f"Each callback that measures needs a `log_name` of its own, because one would overwrite the values of "
                f"the other in `logs`. Received: {' and '.join(names)}, both with log_name={log_name!r}. Give one of "
                f"them another name, such as {names[1]}(..., log_name={log_name + '_2'!r})"
            )
        known[log_name] = callback


def logged_as(name: str, group: str, log_name: str) -> str:
    """Return a name such as "convexity/loss" with `log_name` as its first part, in the place of `group`."""
    if log_name == group:
        return name
    return f"{log_name}/{name.removeprefix(f'{group}/')}"
