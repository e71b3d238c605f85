"""What the processes of one job say to each other: sums, means, broadcasts; and nothing at all in a single process.

The data-parallel parts of tfopt take `communicator=None`, which means `current()`: Horovod's under `horovodrun`, a
serial one otherwise. Only `tfopt.distributed` knows Horovod; it registers its communicator here when it is needed.
"""

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from tfopt._checks import check_integer

__all__ = ["Communicator", "SerialCommunicator", "current"]

# A launcher tells each process by one of these how many there are: horovodrun, Open MPI's mpirun, MPICH's.
LAUNCHER_VARIABLES = ("HOROVOD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")

_PROVIDER = "tfopt.distributed.horovod_communicator"  # imported by name, on demand: imports go down only
_factories: dict[str, Callable[[], "Communicator"]] = {}
_current: dict[int, "Communicator"] = {}


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
        """Bytes that this process has handed over to be summed or averaged, those inside `tf.function` included."""

    def allreduce_sum(self, tensors: Sequence[Any], name: str = "sum") -> list[Any]:
        """Add tensors up over all processes.

        Args:
            tensors: A list of tensors, of any shapes and numeric dtypes.
            name: A word that says what is reduced, for messages.

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
            item: Something that can be pickled.
            name: A few words that say what is collected; processes that collect different things raise ValueError.

        Returns:
            The objects, in the order of ranks.
        """

    def broadcast(self, tensors: Sequence[Any], root_rank: int = 0, name: str = "broadcast") -> list[Any]:
        """Hand out the tensors of one process to all.

        Args:
            tensors: A list of tensors.
            root_rank: Whose tensors to hand out.
            name: As in `allreduce_sum`.

        Returns:
            The root's tensors, in the same order.
        """

    def barrier(self) -> None:
        """Wait until every process has come here."""

    def join(self) -> None:
        """Wait until every process has come here, taking part with zeros in the reductions of those that have not."""


class SerialCommunicator:
    """The communicator of a job of one process: everything comes back as it is.

    Example:
        >>> import tensorflow as tf
        >>> communicator = SerialCommunicator()
        >>> (total,) = communicator.allreduce_sum([tf.constant([1.0, 2.0])])
        >>> total.numpy().tolist(), communicator.rank, communicator.size, communicator.bytes_reduced
        ([1.0, 2.0], 0, 1, 0)
    """

    rank = 0
    size = 1
    bytes_reduced = 0  # nothing leaves the process

    def allreduce_sum(self, tensors: Sequence[Any], name: str = "sum") -> list[Any]:
        """Return the tensors.

        Args:
            tensors: A list of tensors.
            name: Not used.

        Returns:
            The same tensors.
        """
        return check_tensors("tensors", tensors)

    def allreduce_mean(self, tensors: Sequence[Any], name: str = "mean") -> list[Any]:
        """Return the tensors.

        Args:
            tensors: A list of tensors with floating-point dtypes.
            name: Not used.

        Returns:
            The same tensors.
        """
        return check_tensors("tensors", tensors, floating=True)

    def allgather(self, tensor: Any, name: str = "gather") -> Any:
        """Return the tensor.

        Args:
            tensor: A tensor with at least one axis.
            name: Not used.

        Returns:
            The same tensor.

        Raises:
            ValueError: The tensor is a scalar.
        """
        return check_axis(tensor)

    def allgather_object(self, item: Any, name: str = "object") -> list[Any]:
        """Return the object in a list.

        Args:
            item: Anything.
            name: Not used.

        Returns:
            A list of one.
        """
        return [item]

    def broadcast(self, tensors: Sequence[Any], root_rank: int = 0, name: str = "broadcast") -> list[Any]:
        """Return the tensors.

        Args:
            tensors: A list of tensors.
            root_rank: Must be 0.
            name: Not used.

        Returns:
            The same tensors.
        """
        check_integer("root_rank", root_rank, minimum=0, maximum=0)
        return check_tensors("tensors", tensors)

    def barrier(self) -> None:
        """Do nothing."""

    def join(self) -> None:
        """Do nothing."""


def check_communicator(communicator: Any) -> "Communicator":
    """Check an argument `communicator`, and replace None by `current()`.

    Args:
        communicator: What came.

    Returns:
        The communicator.

    Raises:
        TypeError: This is none.
    """
    if communicator is None:
        return current()
    if not all(hasattr(communicator, name) for name in ("rank", "size")):
        raise TypeError(
            "`communicator` must be a tfopt.communicator.Communicator or None. "
            f"Received: {communicator!r} of type {type(communicator).__name__}"
        )
    return communicator


def check_axis(tensor: Any) -> Any:
    """Check that a tensor can be joined with others along its first axis.

    Args:
        tensor: What came as `tensor`.

    Returns:
        The tensor.

    Raises:
        TypeError: This is no tensor of numbers.
        ValueError: It is a scalar.
    """
    (tensor,) = check_tensors("tensor", [tensor])
    if tensor.shape.rank == 0:
        raise ValueError("`tensor` must have at least one axis. Received: a scalar")
    return tensor


def check_tensors(name: str, tensors: Any, floating: bool = False) -> list[Any]:
    """Check that an argument is a list of tensors, and make them TensorFlow's.

    Args:
        name: The argument's name, for the message.
        tensors: What came.
        floating: Whether integers are refused.

    Returns:
        A list of tensors.

    Raises:
        TypeError: This is not a list, or an element is no tensor, sparse, or of a wrong dtype.
    """
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
    """Make a way to build the communicator of a launched job known; for `tfopt.distributed`.

    Args:
        name: Its name.
        factory: Returns the communicator.
    """
    _factories[name] = factory


def launched_size() -> int:
    """Return the number of processes that the launcher says it has started.

    Returns:
        The number; 1 without a launcher.

    Raises:
        ValueError: A launcher's variable is not a positive integer.
    """
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
        started more than one process, a serial one otherwise.

    Raises:
        ImportError: A launcher has started several processes, and Horovod cannot be imported.
        RuntimeError: Horovod sees another number of processes than the launcher.

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
                    f"The launcher says that it has started {size} processes, but Horovod sees {communicator.size}. "
                    "A Horovod without MPI does not understand mpirun: use horovodrun, or rebuild it with "
                    "HOROVOD_WITH_MPI=1 python -m tfopt.distributed.build_horovod"
                )
            _current[size] = communicator
        else:
            _current[size] = SerialCommunicator()
    return _current[size]
