"""The methods of a communicator, and the checks of their arguments."""

from collections.abc import Sequence
from typing import Any, Protocol

__all__ = ["Communicator"]


class Communicator(Protocol):
    """One process's view of its job.

    Every process of the job must call the same methods in the same order with tensors of the same shapes and dtypes.
    All methods but `allgather_object`, `barrier` and `join` work inside `tf.function` as well as outside.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
    """

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""

    @property
    def size(self) -> int:
        """Number of processes."""

    @property
    def bytes_reduced(self) -> int:
        """Bytes that this process has sent to be summed or averaged, those inside `tf.function` included."""

    def allreduce_sum(self, tensors: Sequence[Any], name: str = "sum") -> list[Any]:
        """Sum tensors over all processes.

        Args:
            tensors: A list of tensors, of any shapes and numeric dtypes.
            name: A word for the reduced tensors, for messages.

        Returns:
            The sums, in the same order, the same on every process.
        """

    def allreduce_mean(self, tensors: Sequence[Any], name: str = "mean") -> list[Any]:
        """Average tensors over all processes.

        Args:
            tensors: A list of tensors, of any shapes and floating-point dtypes.
            name: As in `allreduce_sum`.

        Returns:
            The means, in the same order, the same on every process.
        """

    def allgather(self, tensor: Any, name: str = "gather") -> Any:
        """Join tensors along their first axis, which may have a different length on each process.

        Args:
            tensor: A tensor with at least one axis.
            name: As in `allreduce_sum`.

        Returns:
            The tensors of all processes one after the other, in the order of ranks.
        """

    def allgather_object(self, item: Any, name: str = "object") -> list[Any]:
        """Collect one Python object from each process.

        Args:
            item: An object that can be pickled.
            name: A few words for the collected objects; processes with different words raise ValueError.

        Returns:
            The objects, in the order of ranks.
        """

    def broadcast(self, tensors: Sequence[Any], root_rank: int = 0, name: str = "broadcast") -> list[Any]:
        """Send the tensors of one process to all processes.

        Args:
            tensors: A list of tensors.
            root_rank: Number of the process that sends its tensors.
            name: As in `allreduce_sum`.

        Returns:
            The root's tensors, in the same order.
        """

    def barrier(self) -> None:
        """Wait until every process has called this method."""

    def join(self) -> None:
        """Wait until every process has called this method, and add zeros to the reductions of the others until then."""


def check_axis(tensor: Any) -> Any:
    """Return a tensor that can be joined with others along its first axis; a scalar raises `ValueError`."""
    (tensor,) = check_tensors("tensor", [tensor])
    if tensor.shape.rank == 0:
        raise ValueError("`tensor` must have at least one axis. Received: a scalar")
    return tensor


def check_tensors(name: str, tensors: Any, floating: bool = False) -> list[Any]:
    """Return dense tensors of numbers (floats if `floating`) as TensorFlow's; raise `TypeError` for anything else."""
    import tensorflow as tf

    if not isinstance(tensors, list | tuple):
        raise TypeError(f"`{name}` must be a list of tensors. Received: {name} of type {type(tensors).__name__}")
    if any(isinstance(tensor, tf.IndexedSlices | tf.SparseTensor) for tensor in tensors):
        raise TypeError(f"`{name}` must be dense tensors. Received: {[type(tensor).__name__ for tensor in tensors]}")
    converted = [tf.convert_to_tensor(tensor) for tensor in tensors]
    for tensor in converted:
        if not (tensor.dtype.is_floating or (tensor.dtype.is_integer and not floating)):
            kind = "floating-point" if floating else "numeric"
            raise TypeError(f"`{name}` must have {kind} dtypes. Received: {tensor.dtype.name}")
    return converted
