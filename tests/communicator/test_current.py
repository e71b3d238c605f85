"""How a process finds out what job it is part of."""

import sys

import pytest

from tfopt import communicator
from tfopt.communicator import LAUNCHER_VARIABLES, SerialCommunicator, check_communicator


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for variable in LAUNCHER_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(communicator, "_current", {})


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
