"""The order in which a `tf.data.Dataset` serves its rows if it shuffles them again in each epoch."""

import zlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfopt import _keras

# These data sets read each source without a pause. The seeds that a source draws do not depend on when it is read.
_IN_ONE_GO = (
    "_AssertCardinalityDataset",
    "_BatchDataset",
    "CacheDataset",
    "_ConcatenateDataset",
    "_FilterDataset",
    "_FlatMapDataset",
    "_GroupByWindowDataset",
    "_InterleaveDataset",
    "_MapDataset",
    "_OptionsDataset",
    "_PaddedBatchDataset",
    "_ParallelBatchDataset",
    "_ParallelInterleaveDataset",
    "_ParallelMapDataset",
    "_PrefetchDataset",
    "_RebatchDataset",
    "_RepeatDataset",
    "_RestructuredDataset",
    "_ScanDataset",
    "_ShardDataset",
    "_ShuffleDataset",
    "_SkipDataset",
    "_TakeDataset",
    "_TakeWhileDataset",
    "_UnbatchDataset",
    "_UniqueDataset",
    "_WindowDataset",
    "_ZipDataset",
)
# The first group may stop before a source ends. The second group draws again, or keeps rows, only at the end of one.
_LEAVING_OFF = ("_TakeDataset", "_TakeWhileDataset", "_ZipDataset")
_DRAWING_LATE = ("CacheDataset", "_ConcatenateDataset", "_RepeatDataset")


def stages_of(dataset: Any) -> Iterator[Any]:
    """Yield a data set and all data sets that it is made of, from the last operation to the first."""
    yield dataset
    for source in _keras.dataset_inputs(dataset, list)():
        yield from stages_of(source)


def is_shuffled(data: Any) -> bool:
    """Return whether data are a `tf.data.Dataset` whose order or content changes in each epoch."""
    return isinstance(data, tf.data.Dataset) and any(map(shuffles_anew, stages_of(data)))


def shuffles_anew(part: Any) -> bool:
    """Return whether one of `stages_of` itself changes its order or content in each epoch."""
    names = ("_reshuffle_each_iteration", "_rerandomize_each_iteration", "_rerandomize")
    anew = any(getattr(part, name, None) is not None and bool(getattr(part, name)) for name in names)
    return anew or "ShuffleAndRepeat" in type(part).__name__


def sources_of(dataset: Any) -> Iterator[Any]:
    """Yield the largest parts of a data set that serve the same rows in each iteration."""
    if is_shuffled(dataset):
        for source in _keras.dataset_inputs(dataset)():
            yield from sources_of(source)
    else:
        yield dataset


def why_lost(dataset: Any, leaves_off: bool = False) -> str | None:
    """Return why the order of a data set cannot be saved, or None; `leaves_off`: each epoch may stop before its end."""
    for part in stages_of(dataset):
        kind = type(part).__name__
        if shuffles_anew(part) and kind != "_ShuffleDataset":
            return f"a {kind.strip('_')} draws anew in each epoch"
        if not all(map(_has_seed, stages_of(part))):
            return "no seed is set, so that its order differs in each run"
        late = [source for source in stages_of(part) if type(source).__name__ in _DRAWING_LATE and is_shuffled(source)]
        if is_shuffled(part) and kind not in _IN_ONE_GO:
            return f"a {kind.strip('_')} comes after `shuffle`"
        if late and (leaves_off or kind in _LEAVING_OFF):
            by = f"a {kind.strip('_')}" if kind in _LEAVING_OFF else "`validation_steps`"
            return f"a {type(late[0]).__name__.strip('_')} comes after `shuffle`, and {by} may stop before its end"
    return None


def description_of(dataset: Any) -> str:
    """Return the operations that determine the order of rows, with sizes, counts, seeds and checksums of functions."""
    words = []
    for part in stages_of(dataset):
        names = ("_batch_size", "_buffer_size", "_count", "_seed", "_seed2")
        found: dict[str, Any] = {name.strip("_"): _number(getattr(part, name)) for name in names if hasattr(part, name)}
        functions: list[Any] = _keras.dataset_functions(part, list)()
        if functions:
            found["functions"] = [_checksum_of(function) for function in functions]
        if found and "Prefetch" not in type(part).__name__:
            words.append(type(part).__name__.strip("_").removesuffix("Dataset") + str(found))
    return " of ".join(words)


def _checksum_of(function: Any) -> str:
    """Return a checksum of what a function computes, independent of the names in it."""
    graph = getattr(function.function, "graph", None)
    if graph is None:  # tf.data's debug mode has no graph.
        return ""
    definition = graph.as_graph_def()
    bodies = [definition.node, *(inner.node_def for inner in definition.library.function)]
    texts = [
        str([(n.op, n.attr["value"].tensor.SerializeToString(deterministic=True)) for n in body]) for body in bodies
    ]
    return f"{zlib.crc32(str([texts[0], *sorted(texts[1:])]).encode()):08x}"


def _number(value: Any) -> int | None:
    return None if value is None else int(value)


def _has_seed(part: Any) -> bool:
    # Two zeros mean that no seed was given.
    seeds = [getattr(part, name, None) for name in ("_seed", "_seed2")]
    return any(seed is None or int(seed) != 0 for seed in seeds)
