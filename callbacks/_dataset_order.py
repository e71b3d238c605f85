"""The order in which a `tf.data.Dataset` serves its rows, where it shuffles them anew in each epoch."""

import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

# Those that draw the seeds of all their sources when an epoch begins, and draw no more before it ends.
_DRAW_AT_ONCE = (
    "_AssertCardinalityDataset",
    "_BatchDataset",
    "_FilterDataset",
    "_MapDataset",
    "_OptionsDataset",
    "_PaddedBatchDataset",
    "_ParallelBatchDataset",
    "_ParallelMapDataset",
    "_PrefetchDataset",
    "_RebatchDataset",
    "_RestructuredDataset",
    "_ShardDataset",
    "_SkipDataset",
    "_TakeDataset",
    "_UnbatchDataset",
    "_ZipDataset",
)


class DatasetOrder:
    """Keeps the states of the generators from which shuffled data sets draw the order of each epoch.

    An iterator that has served no row shows that state to TensorFlow's checkpoints. Keras makes one at the end of each
    epoch, so that nothing more is drawn than without this class; for data of unknown size, one is made when `fit`
    begins, which draws once.

    Args:
        epoch_iterator: What hands out the batches of a `fit`, or None.
        validation: What `fit` validates by: a data set, or anything else.
    """

    def __init__(self, epoch_iterator: Any, validation: Any) -> None:
        dataset = getattr(epoch_iterator, "_distributed_dataset", None)
        self._dataset = dataset if is_shuffled(dataset) else None
        self._epoch_iterator = epoch_iterator
        self._own: dict[str, Any] = {}
        if self._dataset is not None and epoch_iterator.num_batches is None:
            self._own["training"] = iter(self._dataset)
        if is_shuffled(validation) and validation is not dataset:
            self._own["validation"] = iter(validation)

    def state(self) -> dict[str, np.ndarray]:
        """Return the state, to be saved between two epochs.

        Returns:
            Compressed bytes, by the ending of the file's name; nothing where no data set shuffles anew.
        """
        iterators = dict(self._own)
        if self._dataset is not None and "training" not in iterators:
            iterators["training"] = self._epoch_iterator._current_iterator
        if not iterators:
            return {}
        with tempfile.TemporaryDirectory() as folder:
            tf.train.Checkpoint(**iterators).write(str(Path(folder) / "order"))
            files = {path.suffix: path.read_bytes() for path in Path(folder).iterdir()}
        return {suffix: np.frombuffer(zlib.compress(content, 1), np.uint8) for suffix, content in files.items()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Let the next epoch be shuffled as if training had not been interrupted.

        Args:
            state: From `state`, of the same data sets.
        """
        iterators = dict(self._own)
        if self._dataset is not None:
            iterators.setdefault("training", iter(self._dataset))
        if not iterators or not state:
            return
        with tempfile.TemporaryDirectory() as folder:
            for suffix, content in state.items():
                (Path(folder) / f"order{suffix}").write_bytes(zlib.decompress(content.tobytes()))
            tf.train.Checkpoint(**iterators).read(str(Path(folder) / "order")).assert_consumed()


def parts_of(dataset: Any) -> Iterator[Any]:
    """Yield a data set and those that it is made of.

    Args:
        dataset: A `tf.data.Dataset`.

    Yields:
        Data sets, from the last operation to the first.
    """
    yield dataset
    for source in getattr(dataset, "_inputs", list)():
        yield from parts_of(source)


def is_shuffled(data: Any) -> bool:
    """Return whether data come in another order, or are other data, in each epoch.

    Args:
        data: A `tf.data.Dataset`; anything else is not looked at.

    Returns:
        Whether they are.
    """
    return isinstance(data, tf.data.Dataset) and any(map(shuffles_anew, parts_of(data)))


def shuffles_anew(part: Any) -> bool:
    """Return whether one of the data sets that a data set is made of has another order or content in each epoch.

    Args:
        part: From `parts_of`.

    Returns:
        Whether it has, by its own doing.
    """
    names = ("_reshuffle_each_iteration", "_rerandomize_each_iteration", "_rerandomize")
    anew = any(getattr(part, name, None) is not None and bool(getattr(part, name)) for name in names)
    return anew or "ShuffleAndRepeat" in type(part).__name__


def sources_of(dataset: Any) -> Iterator[Any]:
    """Yield the parts of a data set that serve the same rows whenever they are iterated.

    Args:
        dataset: A `tf.data.Dataset`.

    Yields:
        The data set itself, or what it shuffles, each as large as it can be.
    """
    if is_shuffled(dataset):
        for source in dataset._inputs():
            yield from sources_of(source)
    else:
        yield dataset


def why_lost(dataset: Any) -> str | None:
    """Return why the order of a data set cannot be saved.

    Args:
        dataset: A `tf.data.Dataset`.

    Returns:
        A clause; None for an order that can be saved, or that is always the same.
    """
    for part in parts_of(dataset):
        kind = type(part).__name__
        below = [source for source in parts_of(part) if source is not part and shuffles_anew(source)]
        if shuffles_anew(part) and kind != "_ShuffleDataset":
            return f"a {kind.strip('_')} draws anew in each epoch"
        if not all(map(_has_seed, parts_of(part))):
            return "no seed is set, so that its order is another one in each run"
        if below and shuffles_anew(part):
            return "one `shuffle` stands behind another"
        if below and kind not in _DRAW_AT_ONCE:
            return f"a {kind.strip('_')} stands behind `shuffle`"
    return None


def description_of(dataset: Any) -> str:
    """Return what in a data set decides on the order of its rows, as text.

    Args:
        dataset: A `tf.data.Dataset`.

    Returns:
        The operations that have a size, a count, a seed or a function, with these; of functions a checksum.
    """
    words = []
    for part in parts_of(dataset):
        names = ("_batch_size", "_buffer_size", "_count", "_seed", "_seed2")
        found: dict[str, Any] = {name.strip("_"): _number(getattr(part, name)) for name in names if hasattr(part, name)}
        functions: list[Any] = getattr(part, "_functions", list)()
        if functions:
            found["functions"] = [_checksum_of(function) for function in functions]
        if found and "Prefetch" not in type(part).__name__:
            words.append(type(part).__name__.strip("_").removesuffix("Dataset") + str(found))
    return " of ".join(words)


def _checksum_of(function: Any) -> str:
    """Return a checksum of what a function computes, without the names in it."""
    graph = getattr(function.function, "graph", None)
    if graph is None:  # in tf.data's debug mode
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
