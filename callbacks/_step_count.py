"""The number of steps of a training, from the counters of its optimizers and the number of its batches."""

from dataclasses import dataclass
from typing import Any

import keras

from tfopt import _keras
from tfopt.callbacks._optimizers_of import optimizers_of
from tfopt.callbacks._values import to_numpy


@dataclass
class Watched:
    """An optimizer, and its counters at the last look."""

    optimizer: Any
    counters: tuple[float, ...]
    steps: int


class StepCount:
    """Counts the steps of a training whose events it is told: begin_epoch, begin_batch, end_batch, end_epoch.

    If exactly one optimizer worked since the last look, its own count is used: accumulated gradients are no step, and a
    step that loss scaling skips is none. Otherwise each batch is a step, or several if an optimizer takes several.

    Without `hears_ends`, `end_batch` is never called. With it, the count is exact even where data end unexpectedly.
    """

    _OF_A_TRAINING = ("stepping", "_model", "_compiled", "_watched")  # A copy makes them anew.

    def __init__(self, hears_ends: bool = False) -> None:
        self.batches = 0  # Number of batches trained so far.
        # The only optimizer that worked in the last batches; before the first batch, the one that Keras's own
        # `train_step` uses. None if there is no such optimizer, or it is not known.
        self.stepping: Any = None
        self._hears_ends = hears_ends
        self._steps: int | None = None
        self._batches_before_epoch = self._batches_at_look = 0
        self._is_in_batch = False
        self._total: int | None = None
        self._execution_size = 1
        self._model: Any = None
        self._compiled: Any = None
        self._watched: list[Watched] = []

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | dict.fromkeys(self._OF_A_TRAINING) | {"_watched": []}

    def get_state(self) -> dict[str, Any]:
        """Return the state that a checkpoint must keep."""
        return {"batches": self.batches, "steps": self._steps}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state from `get_state`, before the first epoch."""
        self.batches, self._steps = state["batches"], state["steps"]

    # --- events of training

    def begin_epoch(self, model: Any, epoch: int, total: int | None) -> None:
        """Note the start of an epoch (from 0) of `total` batches; None if `fit` does not know how many there are."""
        self._total, self._execution_size = total, execution_size_of(model)
        self._batches_before_epoch = self.batches
        self._is_in_batch = False
        if self._model is None:
            self._begin(model, epoch)

    def begin_batch(self, batch: int) -> None:
        """Note the start of a batch (from 0 in the epoch), or of several batches in one execution."""
        if not self._hears_ends:
            self.batches = self._batches_before_epoch + batch
        self._is_in_batch = True
        if self._is_compiled_again or (self._hears_ends and self._may_end_anywhere):
            self.look()

    def end_batch(self) -> None:
        """Note the end of what `begin_batch` has begun."""
        made = self._most_since_look() if self._may_end_anywhere else 0
        self.batches += made if 0 < made < self.next_batches else self.next_batches
        self._is_in_batch = False

    def end_epoch(self) -> None:
        """Note the end of an epoch, which may have cut off an execution: then Keras reports only its beginning."""
        if self._is_in_batch and not self._hears_ends:
            self.batches += self.next_batches
        elif self._is_in_batch and self._may_end_anywhere:
            self.batches += min(self._most_since_look(), self._execution_size)
        self._is_in_batch = False

    @property
    def optimizers(self) -> list[Any]:
        """All optimizers of the model."""
        return [watched.optimizer for watched in self._watched]

    @property
    def next_batches(self) -> int:
        """The number of batches of the next execution; an upper bound if `fit` does not know the end of the epoch."""
        done = self.batches - self._batches_before_epoch
        return self._execution_size if self._total is None else max(min(self._execution_size, self._total - done), 1)

    @property
    def _may_end_anywhere(self) -> bool:
        return self._total is None and self._execution_size > 1

    @property
    def _is_compiled_again(self) -> bool:
        return getattr(self._model, "optimizer", None) is not self._compiled

    # --- counters of the optimizers

    def look(self) -> int:
        """Return the number of steps taken so far."""
        batches, self._batches_at_look = self.batches - self._batches_at_look, self.batches
        is_replaced = self._is_compiled_again
        moved = self._moved()
        if batches or moved:
            is_one = len(moved) == 1 and moved[0][1] >= 0 and not is_replaced
            most = max([0, *(steps for _, steps in moved)])
            self._steps = (self._steps or 0) + (most if is_one else max(most, batches))
            self.stepping = moved[0][0] if is_one else None
        if is_replaced or (batches and not moved):  # The model may have a new optimizer.
            self._watch()
        return self._steps or 0

    def _moved(self) -> list[tuple[Any, int]]:
        """Return the optimizers that have worked since the last look, each with its steps, and update their counters.

        Optimizers of other variables than the model's, such as those of a temperature or an adversary, do not count.
        """
        moved = []
        for watched in self._watched:
            now = look_at(watched.optimizer)
            if now.counters != watched.counters:
                moved.append((watched.optimizer, now.steps - watched.steps))
                watched.counters, watched.steps = now.counters, now.steps
        if len(moved) > 1:
            variables = {id(variable) for variable in self._model.trainable_variables}
            moved = [pair for pair in moved if variables_trained_by(pair[0]) & variables] or moved
        return moved

    def _begin(self, model: Any, epoch: int) -> None:
        self._model = model
        self._watch()
        self._batches_at_look = self.batches
        self.stepping = self._compiled if has_keras_train_step(model) else None
        if self._steps is None:
            self._steps = self._steps_before(epoch)

    def _watch(self) -> None:
        self._compiled = getattr(self._model, "optimizer", None)
        self._watched = [look_at(optimizer) for _, optimizer in optimizers_of(self._model)]

    def _most_since_look(self) -> int:
        return max([0, *(look_at(watched.optimizer).steps - watched.steps for watched in self._watched)])

    def _steps_before(self, epoch: int) -> int:
        """Return how many steps were taken before this training, by optimizers that have trained the model."""
        if not self._watched:
            return epoch * (self._total or 1)
        steps = look_at(self._compiled).steps if self._compiled is not None else 0
        if steps or has_keras_train_step(self._model):
            return steps
        used = [watched for watched in self._watched if watched.steps]
        trained = set().union(*(variables_trained_by(watched.optimizer) for watched in used))
        are_all = {id(variable) for variable in self._model.trainable_variables} <= trained
        return max((watched.steps for watched in used), default=0) if are_all else 0


def execution_size_of(model: Any) -> int:
    """Return how many batches (>= 1) a model trains in one execution, between two calls of the callbacks."""
    return max(int(getattr(model, "steps_per_execution", 1)), 1)


def has_keras_train_step(model: Any) -> bool:
    """Return whether Keras's own `train_step`, which uses the optimizer of `compile` in each batch, trains a model."""
    names = ("train_step", "make_train_function")
    cls = type(model)
    return not any(name in vars(model) or getattr(cls, name, None) is not getattr(keras.Model, name) for name in names)


def variables_trained_by(optimizer: Any) -> set[int]:
    """Return the ids of the variables for which an optimizer, or None, was built; none before it is built."""
    while optimizer is not None:
        variables = _keras.optimizer_variables(optimizer, None)
        if variables:
            return {id(variable) for variable in variables}
        optimizer = getattr(optimizer, "inner_optimizer", None)
    return set()


def look_at(optimizer: Any) -> Watched:
    """Return an optimizer's steps, and counters that change on accumulated gradients and skipped non-finite steps."""
    counters = [
        float(to_numpy(variable.value))
        for variable in optimizer.variables
        if variable.shape == () and ("int" in str(variable.dtype) or variable.name == "dynamic_scale")
    ]
    return Watched(optimizer, tuple(counters), int(to_numpy(optimizer.iterations)))
