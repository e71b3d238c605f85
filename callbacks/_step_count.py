"""How many steps a training has taken, by what its optimizers and its batches have done."""

from dataclasses import dataclass
from typing import Any

import keras
from tfopt.callbacks._optimizers_of import optimizers_of


@dataclass
class Watched:
    """An optimizer, and what it had counted at the last look."""

    optimizer: Any
    counters: tuple[float, ...]
    steps: int


class StepCount:
    """Counts the steps of a training from one look to the next.

    A model's `train_step` can use other optimizers than the one of `compile`, several, or none. Where one optimizer
    alone has been at work since the last look, its own count is taken: gradients that are accumulated are no step, and
    a step that loss scaling skips is none. Where several or none have been, every training batch is a step; if an
    optimizer takes several steps in a batch, these.

    Attributes:
        batches: Number of batches trained so far.
        stepping: The optimizer that alone was at work in the last batches; before the first one the one that Keras's
            own `train_step` uses. None if there is no such optimizer, or it is not known.
    """

    def __init__(self) -> None:
        self.batches = 0
        self.stepping: Any = None
        self._steps: int | None = None
        self._batches_before_epoch = 0
        self._batches_at_look = 0
        self._has_begun = self._is_in_batch = False
        self._total: int | None = None
        self._execution_size = 1
        self._compiled: Any = None
        self._watched: list[Watched] = []

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_has_begun": False, "_watched": [], "_compiled": None, "stepping": None}

    def get_state(self) -> dict[str, Any]:
        """Return what a checkpoint must keep."""
        return {"batches": self.batches, "steps": self._steps}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint was written; before the first epoch."""
        self.batches, self._steps = state["batches"], state["steps"]

    # --- what happens in training

    def begin_epoch(self, model: Any, epoch: int, total: int | None) -> None:
        """Note that an epoch of `total` batches begins; None if `fit` does not know how many there are."""
        self._total, self._execution_size = total, execution_size_of(model)
        self._batches_before_epoch = self.batches
        self._is_in_batch = False
        if not self._has_begun:
            self._begin(model, epoch)

    def begin_batch(self, model: Any, batch: int, is_counting: bool = False) -> None:
        """Note that the batch of this number in the epoch begins, or several in one execution.

        `is_counting` says that `end_batch` is called too, and that it must be exact where data end unexpectedly.
        """
        if not is_counting:  # else `end_batch` has counted
            self.batches = self._batches_before_epoch + batch
        self._is_in_batch = True
        if getattr(model, "optimizer", None) is not self._compiled or (is_counting and self._may_end_anywhere):
            self.look(model)

    def end_batch(self) -> None:
        """Note that what `begin_batch` has begun is over."""
        made = self._most_since_look() if self._may_end_anywhere else 0
        self.batches += made if 0 < made < self.next_batches else self.next_batches
        self._is_in_batch = False

    def end_epoch(self, is_counting: bool = False) -> None:
        """Note the end of an epoch. Where `end_batch` is called, a batch that has not ended was cut off by its end."""
        if self._is_in_batch and not is_counting:
            self.batches += self.next_batches
        elif self._is_in_batch and self._may_end_anywhere:
            # The data have run out in the middle of an execution, of which Keras tells the beginning only.
            self.batches += min(self._most_since_look(), self._execution_size)
        self._is_in_batch = False

    @property
    def optimizers(self) -> list[Any]:
        """All optimizers of the model."""
        return [watched.optimizer for watched in self._watched]

    @property
    def next_batches(self) -> int:
        """How many batches the next execution trains; at most, where `fit` does not know the end of the epoch."""
        done = self.batches - self._batches_before_epoch
        return self._execution_size if self._total is None else max(min(self._execution_size, self._total - done), 1)

    @property
    def _may_end_anywhere(self) -> bool:
        return self._total is None and self._execution_size > 1

    # --- what the optimizers say

    def look(self, model: Any) -> int:
        """Return the number of steps taken so far."""
        batches, self._batches_at_look = self.batches - self._batches_at_look, self.batches
        is_replaced = getattr(model, "optimizer", None) is not self._compiled
        moved = []
        for watched in self._watched:
            now = look_at(watched.optimizer)
            if now.counters != watched.counters:
                moved.append((watched.optimizer, now.steps - watched.steps))
                watched.counters, watched.steps = now.counters, now.steps
        if len(moved) > 1:  # those of other variables do not count: of a temperature, or of an adversary
            variables = {id(variable) for variable in model.trainable_variables}
            moved = [pair for pair in moved if variables_trained_by(pair[0]) & variables] or moved
        if batches or moved:
            is_one = len(moved) == 1 and moved[0][1] >= 0 and not is_replaced
            most = max([0, *(steps for _, steps in moved)])
            self._steps = (self._steps or 0) + (most if is_one else max(most, batches))
            self.stepping = moved[0][0] if is_one else None
        if is_replaced or (batches and not moved):  # one that was made in the meantime, perhaps
            self._watch(model)
        return self._steps or 0

    def _begin(self, model: Any, epoch: int) -> None:
        self._has_begun = True
        self._watch(model)
        self._batches_at_look = self.batches
        self.stepping = self._compiled if has_keras_train_step(model) else None
        if self._steps is None:
            self._steps = self._steps_before(model, epoch)

    def _watch(self, model: Any) -> None:
        self._compiled = getattr(model, "optimizer", None)
        self._watched = [look_at(optimizer) for _, optimizer in optimizers_of(model)]

    def _most_since_look(self) -> int:
        return max([0, *(look_at(watched.optimizer).steps - watched.steps for watched in self._watched)])

    def _steps_before(self, model: Any, epoch: int) -> int:
        """Return how many steps were taken before this training: those of optimizers that have trained the model."""
        if not self._watched:
            return epoch * (self._total or 1)
        steps = look_at(self._compiled).steps if self._compiled is not None else 0
        if steps or has_keras_train_step(model):
            return steps
        used = [watched for watched in self._watched if watched.steps]
        trained = set().union(*(variables_trained_by(watched.optimizer) for watched in used))
        are_all = {id(variable) for variable in model.trainable_variables} <= trained
        return max((watched.steps for watched in used), default=0) if are_all else 0


def execution_size_of(model: Any) -> int:
    """Return how many batches a model trains in one execution, between two calls of the callbacks.

    Args:
        model: A Keras model.

    Returns:
        The number, 1 or more.
    """
    return max(int(getattr(model, "steps_per_execution", 1)), 1)


def has_keras_train_step(model: Any) -> bool:
    """Say whether Keras's own `train_step` trains a model, which uses the optimizer of `compile` in each batch.

    Args:
        model: A Keras model.

    Returns:
        False where the model's class, or the model itself, has a `train_step` or a `make_train_function` of its own.
    """
    names = ("train_step", "make_train_function")
    cls = type(model)
    return not any(name in vars(model) or getattr(cls, name, None) is not getattr(keras.Model, name) for name in names)


def variables_trained_by(optimizer: Any) -> set[int]:
    """Return which variables an optimizer was built for.

    Args:
        optimizer: A Keras optimizer, or None.

    Returns:
        The ids of the variables; none before it is built.
    """
    while optimizer is not None:
        variables = getattr(optimizer, "_trainable_variables", None)
        if variables:
            return {id(variable) for variable in variables}
        optimizer = getattr(optimizer, "inner_optimizer", None)
    return set()


def look_at(optimizer: Any) -> Watched:
    """Look at what an optimizer has counted.

    Args:
        optimizer: A Keras optimizer.

    Returns:
        Its steps, and beside them what changes when it accumulates gradients, or skips a step that is not finite.
    """
    counters = [
        float(keras.ops.convert_to_numpy(variable.value))
        for variable in optimizer.variables
        if variable.shape == () and ("int" in str(variable.dtype) or variable.name == "dynamic_scale")
    ]
    return Watched(optimizer, tuple(counters), int(keras.ops.convert_to_numpy(optimizer.iterations)))
