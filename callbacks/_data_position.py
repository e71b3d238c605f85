"""Where a `fit` stands in its data sets: which seeds shuffled ones draw next, and how many batches were served."""

import itertools
from collections import deque
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from tfopt.callbacks._dataset_order import shuffles_anew
from tfopt.callbacks._seed_counter import SeedCounter

_FILLED_AT = "_tfopt_filled_at"  # attribute of what stands before a cache: seeds drawn when the cache was filled


class DataPosition:
    """Saves and restores the place of the data sets of a `fit`, and draws nothing from their generators.

    With `steps_per_epoch` Keras keeps one iterator over epochs. It is restored by reading again what it has served.

    Args:
        epoch_iterator: What hands out the batches of a `fit`, or None; it is watched.
        validation: What `fit` validates by: a data set, or anything else.

    Raises:
        ValueError: Training and validation data draw from one generator in a way that cannot be saved.
    """

    def __init__(self, epoch_iterator: Any, validation: Any) -> None:
        self._epoch_iterator = epoch_iterator
        self._dataset = getattr(epoch_iterator, "_distributed_dataset", None)
        self._keeps_iterator = getattr(epoch_iterator, "steps_per_epoch", None) is not None
        parts = {"training": list(_shuffled_in(self._dataset)), "validation": list(_shuffled_in(validation))}
        self._check(parts["training"], parts["validation"])
        caches: dict[int, set[int]] = {}  # by what stands before them
        for part, cache in itertools.chain(*parts.values()):
            caches.setdefault(id(part), set()).update([id(cache)] if cache is not None else [])
        self._draws: dict[str, list[_Draws]] = {}
        known: set[int] = set()
        for name, pairs in parts.items():
            new = {id(part): part for part, _ in pairs if id(part) not in known}
            self._draws[name] = [_Draws(part, len(caches[place])) for place, part in new.items()]
            known |= set(new)
        self._seeds_of_iterator: dict[str, list[int]] = {}
        if self._keeps_iterator and isinstance(self._dataset, tf.data.Dataset):
            self._watch_iterators(epoch_iterator)

    def rewind(self) -> None:
        """Undo what was drawn since this object was made, before training begins."""
        for one in itertools.chain(*self._draws.values()):
            one.rewind()

    def state(self) -> dict[str, Any]:
        """Return the place between two epochs.

        Returns:
            What `restore` takes.
        """
        iterator = self._epoch_iterator
        if not self._keeps_iterator or iterator is None:
            return {"seeds": self._seeds()}
        place = {"served": iterator._steps_seen, "seeds": self._seeds_of_iterator, "num_batches": iterator._num_batches}
        return {"seeds": self._seeds(), "iterator": place if iterator._current_iterator is not None else None}

    def restore(self, state: dict[str, Any], is_over: bool) -> int:
        """Let the next epoch go on as if training had not been interrupted.

        Args:
            state: From `state`, of the same data sets.
            is_over: Whether there is no next epoch.

        Returns:
            How many batches were read again.
        """
        place = state.get("iterator")
        if place is None or is_over:
            self._set_seeds(state["seeds"])
            return 0
        self._set_seeds(state["seeds"] | {"training": place["seeds"]["training"]})
        self._seeds_of_iterator, iterator = place["seeds"], self._epoch_iterator
        iterator._num_batches = place["num_batches"]
        if place["served"] == 0:
            return 0  # Keras makes the iterator
        batches: Iterator[Any] = iter(self._epoch_iterator._distributed_dataset)
        deque(itertools.islice(batches, place["served"]), maxlen=0)
        iterator._current_iterator, iterator._steps_seen = batches, place["served"]
        return int(place["served"])

    def lost(self) -> bool:
        """Return whether a cache was filled more than once, so that it is not known in which order it has its rows."""
        return any(draws.is_lost() for draws in itertools.chain(*self._draws.values()))

    def _check(self, training: list[Any], validation: list[Any]) -> None:
        shared = {id(part) for part, _ in training} & {id(part) for part, _ in validation}
        before = {id(part) for part, cache in training + validation if cache is not None}
        if before & {id(part) for part, cache in training + validation if cache is None}:
            raise ValueError(
                "A tf.data.Dataset is shuffled anew in front of `cache` and is used without that `cache` too, so that "
                "the order in which the cache is filled cannot be saved. Use shuffle(..., "
                "reshuffle_each_iteration=False)"
            )
        if shared and self._keeps_iterator:
            raise ValueError(
                "With `steps_per_epoch`, training and validation data that are made of one data set which is shuffled "
                "anew cannot be resumed: both draw from its generator at any time. Use shuffle(..., "
                "reshuffle_each_iteration=False), which also keeps their rows apart"
            )

    def _watch_iterators(self, epoch_iterator: Any) -> None:
        get_iterator = type(epoch_iterator)._get_iterator

        def watched() -> Any:
            self._seeds_of_iterator = self._seeds()
            return get_iterator(epoch_iterator)

        epoch_iterator._get_iterator = watched

    def _seeds(self) -> dict[str, list[int]]:
        return {name: [one.to_save() for one in draws] for name, draws in self._draws.items()}

    def _set_seeds(self, seeds: dict[str, list[int]]) -> None:
        for name, draws in self._draws.items():
            if len(seeds[name]) == len(draws):  # validation data can change
                for one, number in zip(draws, seeds[name], strict=True):
                    one.restore(number)


class _Draws:
    """What a shuffled part has drawn, as it matters to the next epoch: in front of a cache, when that was filled."""

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
    """Yield the parts of a data set that are shuffled anew, each with the first cache behind it, or None."""
    if not isinstance(dataset, tf.data.Dataset):
        return
    if shuffles_anew(dataset):
        yield dataset, cache
    if "Cache" in type(dataset).__name__:
        cache = dataset
    for source in dataset._inputs():
        yield from _shuffled_in(source, cache)
