"""The position of a `fit` in its data sets: seeds of shuffled data sets, and the number of batches served."""

import itertools
from collections import deque
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfopt import _keras
from tfopt.callbacks._resuming.dataset_order import shuffles_anew
from tfopt.callbacks._resuming.seed_counter import SeedCounter

# Attribute of a data set in front of a cache: the number of seeds drawn when the cache was filled.
_FILLED_AT = "_tfopt_filled_at"


class DataPosition:
    """Saves and restores the position of a `fit` in training data (or None) and validation data, without drawing seeds.

    With `steps_per_epoch` Keras keeps one iterator over all epochs. It is restored by reading its batches again.
    Data whose generator cannot be saved raise ValueError.
    """

    def __init__(self, epoch_iterator: Any, validation: Any) -> None:
        self._epoch_iterator = epoch_iterator
        self._dataset = _keras.distributed_dataset(epoch_iterator, None)
        self._keeps_iterator = getattr(epoch_iterator, "steps_per_epoch", None) is not None
        parts = {"training": list(_shuffled_in(self._dataset)), "validation": list(_shuffled_in(validation))}
        self._check(parts["training"], parts["validation"])
        caches: dict[int, set[int]] = {}  # ids of caches, by the id of the data set in front of them
        for part, cache in itertools.chain(*parts.values()):
            caches.setdefault(id(part), set()).update([id(cache)] if cache is not None else [])
        self._draws: dict[str, list[_Draws]] = {}
        known: set[int] = set()
        for name, pairs in parts.items():
            new = {id(part): part for part, _ in pairs if id(part) not in known}
            self._draws[name] = [_Draws(part, len(caches[key])) for key, part in new.items()]
            known |= set(new)
        self._seeds_of_iterator: dict[str, list[int]] = {}
        if self._keeps_iterator and isinstance(self._dataset, tf.data.Dataset):
            self._watch_iterators(epoch_iterator)

    def rewind(self) -> None:
        """Undo what was drawn since this object was made; call it before training begins."""
        for one in itertools.chain(*self._draws.values()):
            one.rewind()

    def state(self) -> dict[str, Any]:
        """Return the position between two epochs, as `restore` takes it."""
        iterator = self._epoch_iterator
        if not self._keeps_iterator or iterator is None:
            return {"seeds": self._seeds()}
        position = {
            "served": _keras.steps_seen(iterator),
            "seeds": self._seeds_of_iterator,
            "num_batches": _keras.num_batches(iterator),
        }
        has_begun = _keras.current_iterator(iterator) is not None
        return {"seeds": self._seeds(), "iterator": position if has_begun else None}

    def restore(self, state: dict[str, Any], is_over: bool) -> int:
        """Set a position of the same data sets; return how many batches were read again, 0 if no epoch follows."""
        position = state.get("iterator")
        if position is None or is_over:
            self._set_seeds(state["seeds"])
            return 0
        self._set_seeds(state["seeds"] | {"training": position["seeds"]["training"]})
        self._seeds_of_iterator, iterator = position["seeds"], self._epoch_iterator
        _keras.num_batches.set(iterator, position["num_batches"])
        if position["served"] == 0:
            return 0  # Keras makes the iterator itself.
        batches: Iterator[Any] = iter(_keras.distributed_dataset(iterator))
        deque(itertools.islice(batches, position["served"]), maxlen=0)
        _keras.current_iterator.set(iterator, batches)
        _keras.steps_seen.set(iterator, position["served"])
        return int(position["served"])

    def lost(self) -> bool:
        """Return whether a cache was filled more than once, so that the order of its rows is not known."""
        return any(draws.is_lost() for draws in itertools.chain(*self._draws.values()))

    def _check(self, training: list[Any], validation: list[Any]) -> None:
        shared = {id(part) for part, _ in training} & {id(part) for part, _ in validation}
        before = {id(part) for part, cache in training + validation if cache is not None}
        if before & {id(part) for part, cache in training + validation if cache is None}:
            raise ValueError(
                "A tf.data.Dataset shuffles again in each epoch in front of `cache`, and is used without that `cache` "
                "too. The order in which the cache is filled cannot be saved. Use shuffle(..., "
                "reshuffle_each_iteration=False)"
            )
        if shared and self._keeps_iterator:
            raise ValueError(
                "With `steps_per_epoch`, training and validation data cannot be resumed if both are made of one data "
                "set that shuffles again in each epoch, because both draw from its generator at any time. Use "
                "shuffle(..., reshuffle_each_iteration=False), which also separates their rows"
            )

    def _watch_iterators(self, epoch_iterator: Any) -> None:
        get_iterator = _keras.get_iterator(type(epoch_iterator))

        def watched() -> Any:
            self._seeds_of_iterator = self._seeds()
            return get_iterator(epoch_iterator)

        _keras.get_iterator.set(epoch_iterator, watched)

    def _seeds(self) -> dict[str, list[int]]:
        return {name: [one.to_save() for one in draws] for name, draws in self._draws.items()}

    def _set_seeds(self, seeds: dict[str, list[int]]) -> None:
        for name, draws in self._draws.items():
            if len(seeds[name]) == len(draws):  # The validation data may be other ones now.
                for one, number in zip(draws, seeds[name], strict=True):
                    one.restore(number)


class _Draws:
    """The number of seeds that a shuffled data set has drawn; in front of a cache, those drawn when it was filled."""

    def __init__(self, part: Any, num_caches: int) -> None:
        self._part, self._num_caches, self._counter = part, num_caches, SeedCounter(part)
        if num_caches and not hasattr(part, _FILLED_AT):
            setattr(part, _FILLED_AT, self._counter.at_start)

    def rewind(self) -> None:
        if self._counter.number != self._counter.at_start:
            self._counter.number = self._counter.at_start

    def to_save(self) -> int:
        return getattr(self._part, _FILLED_AT) if self._num_caches else self._counter.number

    def restore(self, number: int) -> None:
        self._counter.number = number
        if self._num_caches:
            setattr(self._part, _FILLED_AT, number)

    def is_lost(self) -> bool:
        if not self._num_caches:
            return False
        return self._counter.number > getattr(self._part, _FILLED_AT) + 2 * self._num_caches


def _shuffled_in(dataset: Any, cache: Any = None) -> Iterator[tuple[Any, Any]]:
    """Yield each reshuffled part of a data set, with the first cache behind it, or None."""
    if not isinstance(dataset, tf.data.Dataset):
        return
    if shuffles_anew(dataset):
        yield dataset, cache
    if "Cache" in type(dataset).__name__:
        cache = dataset
    for source in _keras.dataset_inputs(dataset)():
        yield from _shuffled_in(source, cache)
