"""Vectors over the variables of a model, as one array or as a list of arrays shaped like the variables."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf


class VectorForm:
    """The shapes and dtypes of the parts of a vector; `size` is its number of entries, `dtype` that of one array."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[Any]) -> None:
        self._shapes, self._dtypes = list(shapes), list(dtypes)
        self._sizes = [int(np.prod(shape)) for shape in shapes]
        self.size = sum(self._sizes)
        self.dtype = np.result_type(*(dtype.as_numpy_dtype for dtype in dtypes))

    def split(self, vector: Any, name: str = "vector") -> list[Any]:
        """Return the parts of a vector, tensors; ValueError with the argument's `name` if it has another shape."""
        if self._is_in_parts(vector):
            parts = list(vector)
            shapes = [tuple(np.shape(part)) for part in parts]
            if shapes != self._shapes:
                raise ValueError(f"`{name}` must have the shapes {self._shapes}. Received: {shapes}")
        else:
            if tuple(np.shape(vector)) != (self.size,):
                raise ValueError(
                    f"`{name}` must have {self.size} entries, or be a list of {len(self._shapes)} arrays shaped "
                    f"like the variables. Received: a {type(vector).__name__} of shape {tuple(np.shape(vector))}"
                )
            vector = vector if isinstance(vector, tf.Tensor) else np.asarray(vector)
            reshape = tf.reshape if isinstance(vector, tf.Tensor) else np.reshape
            ends = np.cumsum(self._sizes)
            pieces = [vector[end - size : end] for end, size in zip(ends, self._sizes, strict=True)]
            parts = [reshape(piece, shape) for piece, shape in zip(pieces, self._shapes, strict=True)]
        return [_as_tensor(part, dtype) for part, dtype in zip(parts, self._dtypes, strict=True)]

    def join(self, parts: Sequence[Any], like: Any) -> Any:
        """Return the parts as a list if `like` is one, else as one vector of NumPy's or TensorFlow's, as `like` is."""
        if self._is_in_parts(like):
            return list(parts)
        if isinstance(like, tf.Tensor):
            return tf.concat([tf.reshape(tf.cast(part, self.dtype), [-1]) for part in parts], axis=0)
        return np.concatenate([np.asarray(memoryview(part)).reshape(-1) for part in parts], dtype=self.dtype)

    def _is_in_parts(self, vector: Any) -> bool:
        is_list = isinstance(vector, list | tuple) and len(vector) == len(self._shapes)
        return is_list and np.ndim(vector[0]) == len(self._shapes[0])


def _as_tensor(part: Any, dtype: Any) -> Any:
    # `tf.cast` of an array takes three times as long, which counts if a model has many small variables.
    is_ready = isinstance(part, np.ndarray) and part.dtype == dtype.as_numpy_dtype
    return tf.convert_to_tensor(part) if is_ready else tf.cast(part, dtype)
