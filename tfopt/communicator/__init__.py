"""Communication of the processes of one job: sums, means, broadcasts. A single process does not communicate.

The data-parallel parts of tfopt take `communicator=None`, which means `current()`: Horovod's communicator under
`horovodrun`, else a serial one. Only `tfopt.distributed` imports Horovod. It registers its communicator here on demand.
"""

import importlib
import os
from collections.abc import Callable
from typing import Any

from tfopt.communicator.protocol import Communicator
from tfopt.communicator.serial import SerialCommunicator

__all__ = ["Communicator", "SerialCommunicator", "current"]

# Launchers (horovodrun, Open MPI's mpirun, MPICH's mpirun) tell each process the number of processes in one of these.
LAUNCHER_VARIABLES = ("HOROVOD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")

_PROVIDER = "tfopt.distributed.horovod_communicator"  # Imported by name, on demand, because imports go down only.
_factories: dict[str, Callable[[], Communicator]] = {}
_current: dict[int, Communicator] = {}


def check_communicator(communicator: Any) -> Communicator:
    """Return an argument `communicator`, or `current()` for None; anything else raises `TypeError`."""
    if communicator is None:
        return current()
    if not all(hasattr(communicator, name) for name in ("rank", "size")):
        raise TypeError(
            "`communicator` must be a tfopt.communicator.Communicator or None. "
            f"Received: {communicator!r} of type {type(communicator).__name__}"
        )
    return communicator


def register(name: str, factory: Callable[[], Communicator]) -> None:
    """Register the function that makes the communicator of a launched job; for `tfopt.distributed`."""
    _factories[name] = factory


def launched_size() -> int:
    """Return the number of processes that the launcher started, or 1; raise `ValueError` if it is no number."""
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
        started more than one process, else a serial one.

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
                    f"The launcher has started {size} processes, but Horovod sees {communicator.size}. "
                    "A Horovod without MPI does not understand mpirun: use horovodrun, or rebuild it with "
                    "HOROVOD_WITH_MPI=1 python -m tfopt.distributed.build_horovod"
                )
            _current[size] = communicator
        else:
            _current[size] = SerialCommunicator()
    return _current[size]
