"""The communicator that speaks through Horovod."""

import os
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfopt import communicator
from tfopt._checks import check_integer
from tfopt.communicator import check_tensors

# Seconds after which a process that waits for another gives up, unless the user has set another limit. Long enough
# for one rank to write a checkpoint or to evaluate while the others wait.
STALL_SHUTDOWN_SECONDS = 600


def import_horovod() -> Any:
    """Import Horovod for TensorFlow.

    Returns:
        The module `horovod.tensorflow`.

    Raises:
        ImportError: It is not installed, or it was built for another TensorFlow.
    """
    try:
        import horovod.tensorflow as hvd
    except Exception as error:  # a library built for another TensorFlow fails in many ways
        raise ImportError(
            "This needs Horovod for TensorFlow, which cannot be imported here "
            f"({type(error).__name__}: {error}). `pip install horovod` does not compile against today's TensorFlow; "
            "build it with: python -m tfopt.distributed.build_horovod"
        ) from error
    return hvd


class HorovodCommunicator:
    """One process of a job that `horovodrun` has started; see `tfopt.communicator.Communicator` for the methods.

    Starts Horovod. A rank that waits for another one for longer than `HOROVOD_STALL_SHUTDOWN_TIME_SECONDS` (set to 600
    unless the environment says otherwise) ends the job.

    Raises:
        ImportError: Horovod cannot be imported.
    """

    def __init__(self) -> None:
        os.environ.setdefault("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", str(STALL_SHUTDOWN_SECONDS))
        self._horovod = import_horovod()
        self._horovod.init()
        self.rank: int = self._horovod.rank()
        self.size: int = self._horovod.size()
        with tf.init_scope(), tf.device("CPU"):
            self._bytes = tf.Variable(0, dtype=tf.int64, trainable=False, name="bytes_reduced")
        self._names: weakref.WeakKeyDictionary[Any, dict[str, int]] = weakref.WeakKeyDictionary()

    @property
    def bytes_reduced(self) -> int:
        """Bytes that this process has handed over to be summed or averaged, those inside `tf.function` included."""
        return int(self._bytes.numpy())

    def allreduce_sum(self, tensors: Sequence[Any], name: str = "sum") -> list[Any]:
        """Add tensors up over all processes, with one grouped operation for each dtype.

        Args:
            tensors: A list of tensors, of any shapes and numeric dtypes.
            name: A word that says what is reduced.

        Returns:
            The sums, in the same order.
        """
        return self._reduce(check_tensors("tensors", tensors), self._horovod.Sum, name)

    def allreduce_mean(self, tensors: Sequence[Any], name: str = "mean") -> list[Any]:
        """Average tensors over all processes, with one grouped operation for each dtype.

        Args:
            tensors: A list of tensors, of any shapes and floating-point dtypes. Those of 16 bits are divided before
                they are added up, so that their sum does not overflow.
            name: A word that says what is reduced.

        Returns:
            The means, in the same order.
        """
        tensors = check_tensors("tensors", tensors, floating=True)
        half = [tensor.dtype.size == 2 for tensor in tensors]
        means = self._reduce([t for t, h in zip(tensors, half, strict=True) if not h], self._horovod.Average, name)
        scaled = [t / self.size for t, h in zip(tensors, half, strict=True) if h]
        halves = self._reduce(scaled, self._horovod.Sum, name)
        return [(halves if h else means).pop(0) for h in half]

    def _reduce(self, tensors: list[Any], operation: Any, name: str) -> list[Any]:
        reduced: list[Any] = [None] * len(tensors)
        for dtype in sorted({tensor.dtype for tensor in tensors}, key=lambda dtype: dtype.name):
            places = [place for place, tensor in enumerate(tensors) if tensor.dtype == dtype]
            group = [tensors[place] for place in places]
            self._count(group)
            sums = self._horovod.grouped_allreduce(
                group, op=operation, name=self._unique(f"{name}.{dtype.name}"), ignore_name_scope=True
            )
            for place, tensor in zip(places, sums, strict=True):
                tensor.set_shape(tensors[place].shape)
                reduced[place] = tensor
        return reduced

    def _count(self, tensors: list[Any]) -> None:
        known = sum(t.shape.num_elements() * t.dtype.size for t in tensors if t.shape.is_fully_defined())
        unknown = [tf.size(t, tf.int64) * t.dtype.size for t in tensors if not t.shape.is_fully_defined()]
        self._bytes.assign_add(tf.add_n([tf.constant(known, tf.int64), *unknown]), read_value=False)

    def _unique(self, name: str) -> str:
        # Horovod pairs operations by name; inside a graph they may run at the same time, so names must differ.
        name = "tfopt." + name
        if tf.executing_eagerly():
            return name
        used = self._names.setdefault(tf.compat.v1.get_default_graph(), {})
        used[name] = used.get(name, 0) + 1
        return name if used[name] == 1 else f"{name}.{used[name]}"

    def allgather(self, tensor: Any, name: str = "gather") -> Any:
        """Join tensors along their first axis, which may have a different length on each process.

        Args:
            tensor: A tensor with at least one axis.
            name: A word that says what is gathered.

        Returns:
            The tensors of all processes one after the other, in the order of ranks.

        Raises:
            ValueError: The tensor is a scalar.
        """
        (tensor,) = check_tensors("tensor", [tensor])
        if tensor.shape.rank == 0:
            raise ValueError("`tensor` must have at least one axis. Received: a scalar")
        return self._horovod.allgather(tensor, name=self._unique(name), ignore_name_scope=True)

    def allgather_object(self, item: Any) -> list[Any]:
        """Collect one Python object from each process.

        Args:
            item: Something that can be pickled.

        Returns:
            The objects, in the order of ranks.
        """
        with tf.init_scope():
            return list(self._horovod.allgather_object(item, name="tfopt.object"))

    def broadcast(self, tensors: Sequence[Any], root_rank: int = 0, name: str = "broadcast") -> list[Any]:
        """Hand out the tensors of one process to all.

        Args:
            tensors: A list of tensors.
            root_rank: Whose tensors to hand out.
            name: A word that says what is handed out.

        Returns:
            The root's tensors, in the same order.
        """
        check_integer("root_rank", root_rank, minimum=0, maximum=self.size - 1)
        send: Callable[..., Any] = self._horovod.broadcast
        return [
            send(tensor, root_rank, name=self._unique(f"{name}.{place}"), ignore_name_scope=True)
            for place, tensor in enumerate(check_tensors("tensors", tensors))
        ]

    def barrier(self) -> None:
        """Wait until every process has come here."""
        with tf.init_scope():
            int(self._horovod.allreduce(tf.constant(1), op=self._horovod.Sum, name="tfopt.barrier"))

    def join(self) -> None:
        """Wait until every process has come here, taking part with zeros in the reductions of those that have not."""
        # TensorFlow remembers the result of an operation without inputs; a new function each time makes it run again.
        with tf.init_scope():
            int(tf.function(self._horovod.join, autograph=False).get_concrete_function()())


communicator.register("horovod", HorovodCommunicator)
