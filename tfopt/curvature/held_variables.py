"""Replace the values of a model's variables in the thread that measures, for every way in which a model reads them."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from tfopt import _keras
from tfopt._keras import BaseResourceVariable, custom_gradient, record
from tfopt.curvature.replica import as_replica
from tfopt.curvature.stand_ins import StandIns


@dataclass(frozen=True)
class _Held:
    """Held values: id of each `tf.Variable` -> (value, path); the path is empty if no derivative by it is wanted."""

    pairs: list[tuple[Any, Any]]
    values: dict[int, tuple[Any, str]]
    again: Callable[[], contextlib.AbstractContextManager[None]]


_held: ContextVar[_Held | None] = ContextVar("tfopt held variables", default=None)
# The paths of the variables that were read during the trace of a function with a custom gradient.
_reads: ContextVar[list[str] | None] = ContextVar("tfopt reads", default=None)


@contextlib.contextmanager
def holding(
    pairs: Sequence[tuple[Any, Any]],
    sources: Sequence[Any],
    again: Callable[[], contextlib.AbstractContextManager[None]],
) -> Iterator[None]:
    """Within this context variables have other values, and no Keras variable changes.

    A nested context keeps the values of the outer one for variables without a value of its own.

    Args:
        pairs: Keras variables and their values, tensors.
        sources: Those variables by whose values the caller differentiates.
        again: Returns the same context, for gradients that are computed later.

    Yields:
        Nothing.

    Raises:
        ValueError: The model reads one of the sources in a way that derivatives by its value cannot follow.
    """
    paths = {id(variable): variable.path for variable in sources}
    outer = _held.get()
    pairs = [*(outer.pairs if outer else []), *pairs]
    values = {id(_keras.variable_value(variable)): (value, paths.get(id(variable), "")) for variable, value in pairs}
    with as_replica(), _STAND_INS.installed(), _Scope(paths) as scope, record.VariableWatcher() as watcher:
        for pair in pairs:
            scope.add_update(pair)
        scope.is_prepared = True
        token = _held.set(_Held(pairs, values, again))
        try:
            yield
        finally:
            _held.reset(token)
    for variable in watcher.watched_variables():
        if path := values.get(id(variable), (None, ""))[1]:
            raise ValueError(
                "`model` must read its weights when it is called, so that derivatives by them exist. Received: a model "
                f"that reads {path} in a function that was compiled before, such as a concrete function or a function "
                "loaded from a file. Call the Python function or the tf.function instead"
            )


class CustomGradientError(ValueError):
    """A function with a custom gradient reads weights."""

    def __init__(self, function: Any, path: str) -> None:
        super().__init__(
            "`model` must not read its weights inside a function with a custom gradient (tf.custom_gradient). "
            f"Received: {getattr(function, '__name__', function)}, which reads {path}. Pass the weights as arguments "
            "of the function; to save memory, use tf.recompute_grad or keras.remat"
        )
        _keras.is_explained.set(self, True)


class _Scope(keras.StatelessScope):
    """Keras's stateless scope, which also records which variables are read."""

    def __init__(self, paths: dict[int, str]) -> None:
        super().__init__(collect_losses=True)
        self._paths = paths
        self._assigned: set[int] = set()
        self.is_prepared = False

    def add_update(self, update: Any) -> None:
        if self.is_prepared:
            self._assigned.add(id(update[0]))
        super().add_update(update)

    def get_current_value(self, variable: Any) -> Any:
        _note(self._paths.get(id(variable), ""))
        value = super().get_current_value(variable)
        # Training treats a value that the model assigned as a constant, like any variable that is not trained.
        return tf.stop_gradient(value) if id(variable) in self._assigned else value


def _note(path: str) -> None:
    reads = _reads.get()
    if reads is not None and path:
        reads.append(path)


# --- the tf.Variables in which Keras's variables keep their values


def _held_value(variable: Any) -> Any:
    held = _held.get()
    if held is None:
        return None
    value, path = held.values.get(id(variable), (None, ""))
    _note(path)
    return value


def _of_held(read: Callable[..., Any]) -> Callable[[Any], Any]:
    """Return a function that makes a stand-in for a method that reads a variable; `read` takes the held value first."""

    def make(original: Any) -> Any:
        @functools.wraps(original)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            value = _held_value(self)
            return original(self, *args, **kwargs) if value is None else read(value, *args, **kwargs)

        return method

    return make


# --- custom gradients


def _differentiated_through(original: Any) -> Any:
    """Return a stand-in for the function that calls functions with a custom gradient."""

    # TensorFlow passes to a custom gradient the variables that its function reads. It does not recognise held values.
    @functools.wraps(original)
    def call(function: Any, args: Any, kwargs: Any) -> Any:
        held = _held.get()
        if held is None:
            return original(function, args, kwargs)
        if recomputed := _recomputed(function):
            return recomputed(*args, **kwargs)  # without recomputation the numbers are the same
        return original(_reading_arguments_only(function, held), args, kwargs)

    return call


def _reading_arguments_only(function: Any, held: _Held) -> Callable[..., Any]:
    """Return a function with a custom gradient that raises if it reads weights; its gradient may read them."""

    def watched(*args: Any, **kwargs: Any) -> Any:
        reads: list[str] = []
        token = _reads.set(reads)
        try:
            result, gradient = function(*args, **kwargs)
        finally:
            _reads.reset(token)
        if reads:
            raise CustomGradientError(function, reads[0])

        def gradient_when_held(*args: Any, **kwargs: Any) -> Any:
            with contextlib.nullcontext() if _held.get() is held else held.again():
                return gradient(*args, **kwargs)

        return result, gradient_when_held

    return watched


def _recomputed(function: Any) -> Any:
    """Return the function that was passed to `tf.recompute_grad`; None for any other function."""
    if getattr(function, "__qualname__", "") != "recompute_grad.<locals>.inner":
        return None
    return inspect.getclosurevars(function).nonlocals["f"]


_STAND_INS = StandIns((
    (BaseResourceVariable, _keras.read_variable.name, _of_held(lambda value, no_copy=False: value)),
    (BaseResourceVariable, "sparse_read", _of_held(lambda value, indices, name=None: tf.gather(value, indices))),
    (BaseResourceVariable, "gather_nd", _of_held(lambda value, indices, name=None: tf.gather_nd(value, indices))),
    (custom_gradient, _keras.graph_mode_decorator.name, _differentiated_through),
    (custom_gradient, _keras.eager_mode_decorator.name, _differentiated_through),
))
