"""The communicator of a job of one process."""

from collections.abc import Sequence
from typing import Any

from tfopt._checks import check_integer
from tfopt.communicator.protocol import check_axis, check_tensors

__all__ = ["SerialCommunicator"]


class SerialCommunicator:
    """The communicator of a job of one process: every method returns its argument; see `Communicator`.

    Example:
        >>> import tensorflow as tf
        >>> communicator = SerialCommunicator()
        >>> (total,) = communicator.allreduce_sum([tf.constant([1.0, 2.0])])
        >>> total.numpy().tolist(), communicator.rank, communicator.size, communicator.bytes_reduced
        ([1.0, 2.0], 0, 1, 0)
    """

    rank = 0
    size = 1
    bytes_reduced = 0  # Nothing leaves the process.

    def allreduce_sum(self, tensors: Sequence[Any], name: str = "sum") -> list[Any]:
        """Return the tensors, of any shapes and numeric dtypes."""
        return check_tensors("tensors", tensors)

    def allreduce_mean(self, tensors: Sequence[Any], name: str = "mean") -> list[Any]:
        """Return the tensors, of any shapes and floating-point dtypes."""
        return check_tensors("tensors", tensors, floating=True)

    def allgather(self, tensor: Any, name: str = "gather") -> Any:
        """Return the tensor; a scalar raises `ValueError`."""
        return check_axis(tensor)

    def allgather_object(self, item: Any, name: str = "object") -> list[Any]:
        """Return a list of the object."""
        return [item]

    def broadcast(self, tensors: Sequence[Any], root_rank: int = 0, name: str = "broadcast") -> list[Any]:
        """Return the tensors; `root_rank` must be 0."""
        check_integer("root_rank", root_rank, minimum=0, maximum=0)
        return check_tensors("tensors", tensors)

    def barrier(self) -> None:
        """Do nothing."""

    def join(self) -> None:
        """Do nothing."""
