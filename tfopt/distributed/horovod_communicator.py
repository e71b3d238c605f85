"""The communicator that speaks through Horovod."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfopt import communicator
from tfopt._checks import check_integer
from tfopt.communicator import check_axis, check_tensors

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
            self._turn = tf.Variable(0, dtype=tf.int64, trainable=False, name="turn")

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
            sums = self._in_turn(
                lambda *sent, name=f"tfopt.{name}.{dtype.name}": self._horovod.grouped_allreduce(
                    list(sent), op=operation, name=name, ignore_name_scope=True
                ),
                *group,
            )
            for place, tensor in zip(places, sums, strict=True):
                tensor.set_shape(tensors[place].shape)
                reduced[place] = tensor
        return reduced

    def _in_turn(self, operation: Callable[..., list[Any]], *tensors: Any) -> list[Any]:
        # Horovod pairs what is in flight by name, and nothing orders its operations inside a graph: two of the same
        # name, in different branches or functions, would be mixed up. TensorFlow keeps the accesses to a variable in
        # the order of the program, through functions, conditions and loops; so each operation takes its turn.
        if tf.executing_eagerly():
            return operation(*tensors)
        with tf.control_dependencies([self._turn.read_value()]):
            results = operation(*[tf.identity(tensor) for tensor in tensors])
        with tf.control_dependencies(results):
            self._turn.assign_add(1, read_value=False)
        return results

    def _count(self, tensors: list[Any]) -> None:
        known = sum(t.shape.num_elements() * t.dtype.size for t in tensors if t.shape.is_fully_defined())
        unknown = [tf.size(t, tf.int64) * t.dtype.size for t in tensors if not t.shape.is_fully_defined()]
        self._bytes.assign_add(tf.add_n([tf.constant(known, tf.int64), *unknown]), read_value=False)

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
        tensor = check_axis(tensor)
        send: Callable[..., Any] = self._horovod.allgather
        return self._in_turn(lambda sent: [send(sent, name=f"tfopt.{name}", ignore_name_scope=True)], tensor)[0]

    def allgather_object(self, item: Any, name: str = "object") -> list[Any]:
        """Collect one Python object from each process.

        Args:
            item: Something that can be pickled.
            name: A few words that say what is collected.

        Returns:
            The objects, in the order of ranks.

        Raises:
            ValueError: Another rank collects something else.
        """
        with tf.init_scope():
            everybody = self._horovod.allgather_object((name, item), name="tfopt.object")
        for rank, (theirs, _) in enumerate(everybody):
            if theirs != everybody[0][0]:
                raise ValueError(
                    f"The ranks have come to different places: rank 0 to {everybody[0][0]}, rank {rank} to {theirs}. "
                    "Every rank must make the same calls; in `fit`, pass callbacks that speak to other ranks to all"
                )
        return [item for _, item in everybody]

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
        return self._in_turn(
            lambda *sent: [
                send(tensor, root_rank, name=f"tfopt.{name}.{place}", ignore_name_scope=True)
                for place, tensor in enumerate(sent)
            ],
            *check_tensors("tensors", tensors),
        )

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
