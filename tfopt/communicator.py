"""Sums, means and broadcasts between the processes of one job. In a job of one process they return their arguments.

The data-parallel parts of tfopt take `communicator=None`, which means `current()`: Horovod's communicator under
`horovodrun`, and a serial one otherwise. Only `tfopt.distributed` imports Horovod. It registers its communicator here
when a job needs it.
"""

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from tfopt._checks import check_integer

__all__ = ["Communicator", "SerialCommunicator", "current"]

# Launchers set one of these to the number of processes: horovodrun, Open MPI's mpirun, MPICH's mpirun.
LAUNCHER_VARIABLES = ("HOROVOD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")

_PROVIDER = (
    "tfopt.distributed.horovod_communicator"  # imported by name when needed, because imports must point to lower layers
)
_factories: dict[str, Callable[[], "Communicator"]] = {}
_current: dict[int, "Communicator"] = {}


class Communicator(Protocol):
    """The communicator of one process of a job.

    Every process of the job must call the same methods in the same order, with tensors of the same shapes and dtypes.
    All methods except `allgather_object`, `barrier` and `join` also work inside `tf.function`.

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
        """Bytes of this process that were summed or averaged so far, inside `tf.function` too."""

    def allreduce_sum(self, tensors: Sequence[Any], name: str = "sum") -> list[Any]:
        """Sum tensors over all processes.

        Args:
            tensors: A list of tensors, of any shapes and numeric dtypes.
            name: A word for error messages that says what is summed.

        Returns:
            The sums, in the same order, equal on every process.
        """

    def allreduce_mean(self, tensors: Sequence[Any], name: str = "mean") -> list[Any]:
        """Average tensors over all processes.

        Args:
            tensors: A list of tensors, of any shapes and floating-point dtypes.
            name: As in `allreduce_sum`.

        Returns:
            The means, in the same order, equal on every process.
        """

    def allgather(self, tensor: Any, name: str = "gather") -> Any:
        """Concatenate the tensors of all processes along the first axis, whose length may differ between processes.

        Args:
            tensor: A tensor with at least one axis.
            name: As in `allreduce_sum`.

        Returns:
            The concatenated tensors, in the order of ranks.
        """

    def allgather_object(self, item: Any, name: str = "object") -> list[Any]:
        """Collect one Python object from each process.

        Args:
            item: An object that can be pickled.
            name: A few words that say what is collected. If the names differ between processes, all raise ValueError.

        Returns:
            The objects, in the order of ranks.
        """

    def broadcast(self, tensors: Sequence[Any], root_rank: int = 0, name: str = "broadcast") -> list[Any]:
        """Send the tensors of one process to all processes.

        Args:
            tensors: A list of tensors.
            root_rank: Rank of the process that sends its tensors. Default 0.
            name: As in `allreduce_sum`.

        Returns:
            The tensors of that process, in the same order.
        """

    def barrier(self) -> None:
        """Wait until every process has called this method."""

    def join(self) -> None:
        """Wait until all processes call this; until then, contribute zeros to the reductions of the others."""


class SerialCommunicator:
    """The communicator of a job of one process, whose methods return their arguments.

    Example:
        >>> import tensorflow as tf
        >>> communicator = SerialCommunicator()
        >>> (total,) = communicator.allreduce_sum([tf.constant([1.0, 2.0])])
        >>> total.numpy().tolist(), communicator.rank, communicator.size, communicator.bytes_reduced
        ([1.0, 2.0], 0, 1, 0)
    """

    rank = 0
    size = 1
    bytes_reduced = 0  # this process sends nothing

    def allreduce_sum(self, tensors: Sequence[Any], name: str = "sum") -> list[Any]:
        """Return the tensors, a list with any shapes and numeric dtypes; `name` has no effect."""
        return check_tensors("tensors", tensors)

    def allreduce_mean(self, tensors: Sequence[Any], name: str = "mean") -> list[Any]:
        """Return the tensors, a list with any shapes and floating-point dtypes; `name` has no effect."""
        return check_tensors("tensors", tensors, floating=True)

    def allgather(self, tensor: Any, name: str = "gather") -> Any:
        """Return the tensor, which must have at least one axis, or ValueError is raised; `name` has no effect."""
        return check_axis(tensor)

    def allgather_object(self, item: Any, name: str = "object") -> list[Any]:
        """Return any object in a list of one; `name` has no effect."""
        return [item]

    def broadcast(self, tensors: Sequence[Any], root_rank: int = 0, name: str = "broadcast") -> list[Any]:
        """Return the tensors, a list; `root_rank` must be 0, and `name` has no effect."""
        check_integer("root_rank", root_rank, minimum=0, maximum=0)
        return check_tensors("tensors", tensors)

    def barrier(self) -> None:
        """Do nothing."""

    def join(self) -> None:
        """Do nothing."""


def check_communicator(communicator: Any) -> "Communicator":
    """Return the argument `communicator`, or `current()` for None; other objects raise TypeError."""
    if communicator is None:
        return current()
    if not all(hasattr(communicator, name) for name in ("rank", "size")):
        raise TypeError(
            "`communicator` must be a tfopt.communicator.Communicator or None. "
            f"Received: {communicator!r} of type {type(communicator).__name__}"
        )
    return communicator


def check_axis(tensor: Any) -> Any:
    """Return a numeric tensor with at least one axis; a scalar raises ValueError."""
    (tensor,) = check_tensors("tensor", [tensor])
    if tensor.shape.rank == 0:
        raise ValueError("`tensor` must have at least one axis. Received: a scalar")
    return tensor


def check_tensors(name: str, tensors: Any, floating: bool = False) -> list[Any]:
    """Return a list of dense numeric tensors as TensorFlow's; `floating` refuses integers."""
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


def register(name: str, factory: Callable[[], Communicator]) -> None:
    """Register a function that returns the communicator of a launched job, by name, for `tfopt.distributed`."""
    _factories[name] = factory


def launched_size() -> int:
    """Return the number of processes that the launcher says it has started; 1 without a launcher."""
    for variable in LAUNCHER_VARIABLES:
        value = os.environ.get(variable, "")
        if value:
            if not value.isdecimal() or int(value) < 1:
                raise ValueError(
                    f"The environment variable {variable} must be a number of processes. Received: {value!r}"
                )
            if int(value) > 1:
                return int(value)
    return 1


def current() -> Communicator:
    """Return the communicator of this job.

    The first call under a launcher starts Horovod.

    Returns:
        Horovod's communicator if a launcher (`horovodrun`, or `mpirun` with a Horovod that was built with MPI) has
        started more than one process; otherwise a serial one.

    Raises:
        ImportError: A launcher has started several processes, and Horovod cannot be imported.
        RuntimeError: Horovod reports another number of processes than the launcher.
        ValueError: The launcher's environment variable is not a positive integer.

    Example:
        >>> current().size
        1
    """
    size = launched_size()
    if size not in _current:
        if size > 1:
            importlib.import_module(_PROVIDER)
            communicator = _factories["horovod"]()
            if communicator.size != size:
                raise RuntimeError(
                    f"The launcher has started {size} processes, but Horovod sees {communicator.size}. "
                    "A Horovod without MPI does not understand mpirun: use horovodrun, or rebuild it with "
                    "HOROVOD_WITH_MPI=1 python -m tfopt.distributed.build_horovod"
                )
            _current[size] = communicator
        else:
            _current[size] = SerialCommunicator()
    return _current[size]
