"""The number of steps of a training, from the counters of its optimizers and the number of its batches."""

import hashlib
from dataclasses import dataclass
from typing import Any

import keras

from tfopt import _keras
from tfopt.callbacks._call_stack import fits_in
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

    The optimizers decide: accumulated gradients are no step, and a step that is skipped is none. If several optimizers
    work in one batch, its steps are those of the optimizer with the most. Each batch is a step if the weights change
    before any optimizer has worked, or if there is no optimizer.

    Without `hears_ends`, `end_batch` is never called. With it, the count is exact even where data end unexpectedly.
    """

    _OF_A_TRAINING = ("_model", "_compiled")  # A copy makes them anew.

    def __init__(self, hears_ends: bool = False) -> None:
        self.batches = 0  # Number of batches trained so far.
        self._hears_ends = hears_ends
        self._steps: int | None = None
        self._batches_before_epoch = self._batches_at_look = 0
        self._is_in_batch = False
        self._total: int | None = None
        self._execution_size = 1
        self._model: Any = None
        self._compiled: Any = None
        self._is_keras_step = False  # Whether Keras's own `train_step` runs.
        self._watched: list[Watched] = []
        self._used: set[int] = set()  # Ids of the optimizers that have worked in this training.
        self._is_by_hand = False  # Whether the weights have changed without any optimizer.
        self._is_first_epoch = True
        self._weights: dict[int, bytes] = {}  # Checksums of the first weights, by the ids of variables.

    def __getstate__(self) -> dict[str, Any]:
        dropped = dict.fromkeys(self._OF_A_TRAINING)
        return vars(self) | dropped | {"_watched": [], "_used": set(), "_weights": {}}

    def get_state(self) -> dict[str, Any]:
        """Return the state that a checkpoint must keep."""
        steps = self._steps if self._model is None else self.look()
        return {"batches": self.batches, "steps": steps}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state from `get_state`, before the first epoch."""
        self.batches, self._steps = state["batches"], state["steps"]

    # --- events of training

    def begin_epoch(self, model: Any, epoch: int, total: int | None) -> None:
        """Note the start of an epoch (from 0) of `total` batches; None if `fit` does not know how many there are."""
        self._total, self._execution_size = total, execution_size_of(model)
        self._batches_before_epoch = self.batches
        self._is_in_batch = False
        self._is_first_epoch = self._model is None
        if self._is_first_epoch:
            self._begin(model, epoch)

    def begin_batch(self, batch: int) -> None:
        """Note the start of a batch (from 0 in the epoch), or of several batches in one execution."""
        if not self._hears_ends:
            self.batches = self._batches_before_epoch + batch
        self._is_in_batch = True
        is_first = self.batches == self._batches_before_epoch  # Another callback may have reset a counter.
        if is_first or self._is_compiled_again or self._may_take_turns or (self._hears_ends and self._may_end_anywhere):
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
    def counts_batches(self) -> bool:
        """Whether a step is a batch, because no optimizer has worked."""
        return not (self._is_keras_step or self._used)

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

    @property
    def _may_take_turns(self) -> bool:
        # Only looks between any two batches tell how the steps of several optimizers are spread over batches.
        if self._is_keras_step or self._is_by_hand or keras.backend.backend() == "jax":
            return False  # Under JAX the variables have no values between batches.
        is_second = self.batches - self._batches_before_epoch == self._execution_size
        if self._is_first_epoch and is_second:  # The first batch may have made optimizers.
            return True
        return len(self._watched) > 1 and (self._is_first_epoch or len(self._used) > 1)

    # --- counters of the optimizers

    def look(self) -> int:
        """Return the number of steps taken so far."""
        batches = self.batches - self._batches_at_look
        made = self._made_by_optimizers(batches)
        if made is None and batches:
            made = self._made_without_optimizers(batches)
        if made is not None:
            self._steps, self._batches_at_look = (self._steps or 0) + made, self.batches
        return self._steps or 0

    def _made_by_optimizers(self, batches: int) -> int | None:
        """Return the steps that the optimizers have taken since the last look; None if none of them has worked."""
        is_replaced = self._is_compiled_again
        made = self._moved()
        most = max(made, default=0)
        if min(made, default=0) < 0:  # A callback has reset a counter.
            most = max(most, batches)
        if is_replaced or (batches and not made):  # The model may have a new optimizer.
            known = {id(watched.optimizer) for watched in self._watched}
            self._watch()
            late = [w for w in self._watched if id(w.optimizer) not in known and self._trains_model(w.optimizer)]
            taken = max((watched.steps for watched in late), default=0)
            if is_replaced:  # The new optimizer may have trained another model before.
                taken = min(taken, max(batches - most, 0))
            if taken:
                self._used |= {id(watched.optimizer) for watched in late if watched.steps}
                made, most = [*made, taken], most + taken
        return most if made else None

    def _made_without_optimizers(self, batches: int) -> int | None:
        """Return the steps in batches in which no optimizer has worked; None if it is not known yet."""
        if self._used:
            return 0
        if self._is_keras_step or self._is_by_hand or not self._watched:
            return batches  # A counter of Keras's own step that stands still was reset.
        self._is_by_hand = self._have_weights_changed()
        return batches if self._is_by_hand else None

    def _moved(self) -> list[int]:
        """Return the steps that each optimizer has taken since the last look, if it has worked, and note counters.

        Optimizers of other variables than the model's, such as those of a temperature or an adversary, do not count.
        """
        moved = []
        for watched in self._watched:
            now = look_at(watched.optimizer)
            if now.counters != watched.counters:
                moved.append((watched.optimizer, now.steps - watched.steps))
                watched.counters, watched.steps = now.counters, now.steps
        moved = [(optimizer, steps) for optimizer, steps in moved if self._trains_model(optimizer)]
        self._used |= {id(optimizer) for optimizer, _ in moved}
        return [steps for _, steps in moved]

    def _trains_model(self, optimizer: Any) -> bool:
        trained = variables_trained_by(optimizer)
        variables = {id(variable) for variable in self._model.trainable_variables}
        return not trained or not variables or bool(trained & variables)

    def _have_weights_changed(self) -> bool:
        now = {id(v): hashlib.sha256(to_numpy(v.value).tobytes()).digest() for v in self._model.trainable_variables}
        first = [self._weights.setdefault(key, value) for key, value in now.items()]
        return first != list(now.values())

    def _begin(self, model: Any, epoch: int) -> None:
        self._model = model
        self._watch()
        self._batches_at_look = self.batches
        if not self._is_keras_step:
            self._have_weights_changed()  # It takes the checksums.
        if self._steps is None:
            self._steps = self._steps_before(epoch)

    def _watch(self) -> None:
        self._compiled = getattr(self._model, "optimizer", None)
        self._is_keras_step = self._compiled is not None and is_trained_by_keras(self._model)
        found = [self._compiled] if self._is_keras_step else [each for _, each in optimizers_of(self._model)]
        self._watched = [look_at(optimizer) for optimizer in found]

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


def is_trained_by_keras(model: Any) -> bool:
    """Return whether a running `fit` of Keras trains a model by Keras's own `train_step`."""
    return has_keras_train_step(model) and any(given.get("self") is model for given in fits_in())


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
