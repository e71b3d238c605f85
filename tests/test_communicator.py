"""The serial communicator, and how a launched process finds out what it is part of."""

import sys

import numpy as np
import pytest
import tensorflow as tf

from tfopt import communicator
from tfopt.communicator import LAUNCHER_VARIABLES, SerialCommunicator, check_communicator


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for variable in LAUNCHER_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(communicator, "_current", {})


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


def test_without_a_launcher_the_job_is_one_process():
    assert isinstance(communicator.current(), SerialCommunicator)
    assert communicator.current() is communicator.current()


@pytest.mark.parametrize("variable", LAUNCHER_VARIABLES)
def test_a_launched_process_without_horovod_is_an_error(variable, monkeypatch):
    monkeypatch.setenv(variable, "2")
    monkeypatch.setitem(sys.modules, "horovod", None)
    monkeypatch.setitem(sys.modules, "horovod.tensorflow", None)
    with pytest.raises(ImportError, match="python -m tfopt.distributed.build_horovod"):
        communicator.current()


def test_a_launcher_of_one_process_needs_no_horovod(monkeypatch):
    monkeypatch.setenv("HOROVOD_SIZE", "1")
    assert isinstance(communicator.current(), SerialCommunicator)


def test_a_launcher_that_horovod_does_not_see_is_an_error(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setitem(communicator._factories, "horovod", SerialCommunicator)
    with pytest.raises(RuntimeError, match="has started 4 processes, but Horovod sees 1.*HOROVOD_WITH_MPI=1"):
        communicator.current()


@pytest.mark.parametrize("value", ["two", "0", "-1"])
def test_a_launcher_variable_that_is_no_number_is_an_error(value, monkeypatch):
    monkeypatch.setenv("PMI_SIZE", value)
    with pytest.raises(ValueError, match="PMI_SIZE must be a number of processes. Received: '" + value):
        communicator.current()


def test_what_is_no_communicator_is_refused():
    assert check_communicator(None) is communicator.current()
    with pytest.raises(TypeError, match="`communicator` must be a tfopt.communicator.Communicator or None"):
        check_communicator("horovod")
