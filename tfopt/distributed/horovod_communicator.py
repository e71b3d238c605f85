"""The communicator that uses Horovod."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfopt import communicator
from tfopt._checks import check_integer
from tfopt.communicator.protocol import check_axis, check_tensors

# Seconds after which a process stops waiting for another process, unless the user sets another limit. One rank can
# write a checkpoint or evaluate in this time while the others wait.
STALL_SHUTDOWN_SECONDS = 600


def import_horovod() -> Any:
    """Return the module `horovod.tensorflow`; raise `ImportError` if it is missing or built for another TensorFlow."""
    try:
        import horovod.tensorflow as hvd
    except Exception as error:  # A library built for another TensorFlow fails in many ways.
        raise ImportError(
            "This needs Horovod for TensorFlow, which cannot be imported here "
            f"({type(error).__name__}: {error}). `pip install horovod` does not compile against today's TensorFlow; "
            "build it with: python -m tfopt.distributed.build_horovod"
        ) from error
    return hvd


class HorovodCommunicator:
    """One process of a job that `horovodrun` started; see `tfopt.communicator.Communicator` for the methods.

    The constructor starts Horovod. If a rank waits for another rank longer than `HOROVOD_STALL_SHUTDOWN_TIME_SECONDS`
    (600 s unless the environment sets it), the job ends.

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
        """Bytes that this process has sent to be summed or averaged, those inside `tf.function` included."""
        return int(self._bytes.numpy())

    def allreduce_sum(self, tensors: Sequence[Any], name: str = "sum") -> list[Any]:
        """Return sums over all processes, of any shapes and numeric dtypes; one grouped operation per dtype."""
        return self._reduce(check_tensors("tensors", tensors), self._horovod.Sum, name)

    def allreduce_mean(self, tensors: Sequence[Any], name: str = "mean") -> list[Any]:
        """Return means over all processes, of any shapes and floating dtypes; one grouped operation per dtype."""
        tensors = check_tensors("tensors", tensors, floating=True)
        # Divide tensors of 16 bits before the sum, so that it does not overflow.
        half = [tensor.dtype.size == 2 for tensor in tensors]
        means = self._reduce([t for t, h in zip(tensors, half, strict=True) if not h], self._horovod.Average, name)
        scaled = [t / self.size for t, h in zip(tensors, half, strict=True) if h]
        halves = self._reduce(scaled, self._horovod.Sum, name)
        return [(halves if h else means).pop(0) for h in half]

    def _reduce(self, tensors: list[Any], operation: Any, name: str) -> list[Any]:
        reduced: list[Any] = [None] * len(tensors)
        for dtype in sorted({tensor.dtype for tensor in tensors}, key=lambda dtype: dtype.name):
            indices = [index for index, tensor in enumerate(tensors) if tensor.dtype == dtype]
            group = [tensors[index] for index in indices]
            self._count(group)
            sums = self._in_turn(
                lambda *sent, name=f"tfopt.{name}.{dtype.name}": self._horovod.grouped_allreduce(
                    list(sent), op=operation, name=name, ignore_name_scope=True
                ),
                *group,
            )
            for index, tensor in zip(indices, sums, strict=True):
                tensor.set_shape(tensors[index].shape)
                reduced[index] = tensor
        return reduced

    def _in_turn(self, operation: Callable[..., list[Any]], *tensors: Any) -> list[Any]:
        # Horovod matches operations in flight by name, and nothing orders them inside a graph. It would mix up two
        # operations of the same name in different branches or functions. TensorFlow keeps the accesses to a variable in
        # program order, through functions, conditions and loops. Therefore each operation waits for its turn at a
        # variable.
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
        """Join tensors, not scalars, along their first axis in rank order; the lengths may differ between ranks."""
        tensor = check_axis(tensor)
        send: Callable[..., Any] = self._horovod.allgather
        return self._in_turn(lambda sent: [send(sent, name=f"tfopt.{name}", ignore_name_scope=True)], tensor)[0]

    def allgather_object(self, item: Any, name: str = "object") -> list[Any]:
        """Return one picklable object from each process, in rank order; raise `ValueError` if names differ."""
        with tf.init_scope():
            everybody = self._horovod.allgather_object((name, item), name="tfopt.object")
        for rank, (theirs, _) in enumerate(everybody):
            if theirs != everybody[0][0]:
                raise ValueError(
                    f"The ranks have reached different points: rank 0 is at {everybody[0][0]}, rank {rank} at {theirs}."
                    " Every rank must make the same calls; in `fit`, pass callbacks that communicate to all ranks"
                )
        return [item for _, item in everybody]

    def broadcast(self, tensors: Sequence[Any], root_rank: int = 0, name: str = "broadcast") -> list[Any]:
        """Return the tensors of the process `root_rank` on all processes, in the same order."""
        check_integer("root_rank", root_rank, minimum=0, maximum=self.size - 1)
        send: Callable[..., Any] = self._horovod.broadcast
        return self._in_turn(
            lambda *sent: [
                send(tensor, root_rank, name=f"tfopt.{name}.{index}", ignore_name_scope=True)
                for index, tensor in enumerate(sent)
            ],
            *check_tensors("tensors", tensors),
        )

    def barrier(self) -> None:
        """Wait until every process calls this."""
        with tf.init_scope():
            int(self._horovod.allreduce(tf.constant(1), op=self._horovod.Sum, name="tfopt.barrier"))

    def join(self) -> None:
        """Wait until every process calls this; until then contribute zeros to the reductions of the others."""
        # TensorFlow caches the result of an operation without inputs. A new function each time makes it run again.
        with tf.init_scope():
            int(tf.function(self._horovod.join, autograph=False).get_concrete_function()())


communicator.register("horovod", HorovodCommunicator)
