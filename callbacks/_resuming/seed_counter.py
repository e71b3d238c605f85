"""Reads and sets the number of seeds that a shuffled `tf.data.Dataset` has drawn for its epochs."""

from typing import Any

import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from tfopt import _keras

_NAME = b"epoch_num_random_samples"  # The name of the number in the saved state of an iterator.
_PER_EPOCH = 2  # Number of seeds that an iterator draws when it is made.


class SeedCounter:
    """Reads and sets the number of seeds that were drawn for the epochs of a `tf.data.Dataset.shuffle`.

    TensorFlow shows the number only in the saved state of an iterator. The iterator that is made here serves no row,
    and its draws from the generator, which all iterators over the data set share, are undone.
    """

    def __init__(self, dataset: tf.data.Dataset) -> None:
        self._iterator = iter(dataset)
        state = self._read()
        self.at_start = int(_numbers_in(state[2])[0]) - _PER_EPOCH
        self._write(*state, self.at_start)

    @property
    def number(self) -> int:
        """The number of seeds that were drawn."""
        _, _, entry = self._read()
        return int(_numbers_in(entry)[0])

    @number.setter
    def number(self, number: int) -> None:
        self._write(*self._read(), number)

    def _write(self, entries: list[bytes], index: int, entry: Any, number: int) -> None:
        changed = tf.raw_ops.CompressElement(components=[tf.constant(number, tf.int64), *_numbers_in(entry)[1:]])
        entry.tensors[0].ParseFromString(tf.io.serialize_tensor(changed).numpy())
        entries[index] = entry.SerializeToString()
        state = tensor_pb2.TensorProto(dtype=tf.variant.as_datatype_enum, tensor_content=_joined(entries))
        state.tensor_shape.dim.add(size=len(entries))
        tf.raw_ops.DeserializeIterator(
            resource_handle=_keras.iterator_resource(self._iterator),
            serialized=tf.io.parse_tensor(state.SerializeToString(), tf.variant),
        )

    def _read(self) -> tuple[list[bytes], int, Any]:
        """Return the entries of the iterator's state, and the index and content of the entry that has the number."""
        state = tf.raw_ops.SerializeIterator(resource_handle=_keras.iterator_resource(self._iterator))
        content = tensor_pb2.TensorProto.FromString(tf.io.serialize_tensor(state).numpy()).tensor_content
        entries = _split(content, len(state))
        for index, serialized in enumerate(entries):
            entry = tensor_pb2.VariantTensorDataProto.FromString(serialized)
            if _names_in(entry)[:1] == [_NAME] and len(entry.tensors) == 1:
                return entries, index, entry
        raise NotImplementedError(
            f"TensorFlow {tf.__version__} saves the state of a shuffled data set in a form that tfopt does not know. "
            "Use tfopt.datasets.EpochBatches, or shuffle(..., reshuffle_each_iteration=False)"
        )


def _names_in(entry: Any) -> list[bytes]:
    return entry.metadata.split(b"@@")[1:]  # The first is the operation.


def _numbers_in(entry: Any) -> list[Any]:
    packed = tf.io.parse_tensor(entry.tensors[0].SerializeToString(), tf.variant)
    count = len(_names_in(entry))
    return tf.raw_ops.UncompressElement(compressed=packed, output_types=[tf.int64] * count, output_shapes=[()] * count)


def _split(content: bytes, count: int) -> list[bytes]:
    """Split the content, which begins with the lengths of all entries: seven bits in a byte, the lowest first."""
    lengths, index = [], 0
    for _ in range(count):
        length = shift = 0
        while content[index] >= 0x80:
            length |= (content[index] & 0x7F) << shift
            shift, index = shift + 7, index + 1
        lengths.append(length | content[index] << shift)
        index += 1
    entries = []
    for length in lengths:
        entries.append(content[index : index + length])
        index += length
    return entries


def _joined(entries: list[bytes]) -> bytes:
    lengths = bytearray()
    for entry in entries:
        length = len(entry)
        while length >= 0x80:
            lengths.append(length & 0x7F | 0x80)
            length >>= 7
        lengths.append(length)
    return bytes(lengths) + b"".join(entries)
