"""The serial communicator: everything comes back as it is."""

import numpy as np
import pytest
import tensorflow as tf

from tfopt.communicator import SerialCommunicator


def test_alone_everything_comes_back_as_it_is():
    alone = SerialCommunicator()
    for method in (alone.allreduce_sum, alone.allreduce_mean, alone.broadcast):
        one, two = method([np.array([1.0, 2.0]), tf.constant(3.0)])
        assert one.numpy().tolist() == [1.0, 2.0]
        assert float(two) == 3.0
    assert alone.allgather([[1], [2]]).numpy().tolist() == [[1], [2]]
    assert alone.allgather_object("x") == ["x"]
    alone.barrier()
    alone.join()
    assert (alone.rank, alone.size, alone.bytes_reduced) == (0, 1, 0)


@pytest.mark.parametrize(
    ("method", "argument", "message"),
    [
        ("allreduce_sum", tf.ones(2), "`tensors` must be a list of tensors. Received: tensors of type EagerTensor"),
        ("allreduce_sum", [tf.constant("a")], "`tensors` must have numeric dtypes. Received: string"),
        ("allreduce_mean", [tf.constant(1)], "`tensors` must have floating-point dtypes. Received: int32"),
        ("allreduce_sum", [tf.IndexedSlices(tf.ones([1, 2]), tf.constant([0]))], "`tensors` must be dense tensors"),
    ],
)
def test_refuses_what_is_no_list_of_tensors(method, argument, message):
    with pytest.raises(TypeError, match=message):
        getattr(SerialCommunicator(), method)(argument)


def test_refuses_a_root_that_is_no_rank():
    with pytest.raises(ValueError, match="`root_rank` must be an integer >= 0 and <= 0"):
        SerialCommunicator().broadcast([tf.ones(1)], root_rank=1)
