"""Starts `horovodrun` with time limits that hold on a slow machine under load."""

import os
import subprocess
import sys
from pathlib import Path

TIMEOUT = 3600  # seconds for a whole job
# If a rank waits longer than the last limit for another rank, the job ends, so that a stall makes the test fail. The
# limits are far larger than necessary, because ranks import TensorFlow and trace at different speeds.
ENVIRONMENT = {
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "2",
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_backend_optimization_level=0",  # compiling is most of what XLA's functions take here
    "HOROVOD_CYCLE_TIME": "5",  # ms; with one, each rank takes 6% of a core while it waits
    "HOROVOD_GLOO_TIMEOUT_SECONDS": "600",
    "HOROVOD_START_TIMEOUT": "600",
    "HOROVOD_STALL_CHECK_TIME_SECONDS": "60",
    "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "600",
}


def horovodrun(size, *command, hosts=None, before=(), path=(), **environment):
    """Run a Python command on ranks; return the finished process, with all its output in `stdout`.

    `hosts` are Horovod's arguments for hosts; None means this machine. `before` precedes the launcher on the command
    line, and `path` is put in front of PATH.
    """
    folders = [*map(str, path), str(Path(sys.executable).parent), os.environ["PATH"]]
    hosts = ["-H", f"localhost:{size}"] if hosts is None else hosts
    return subprocess.run(
        [*before, "horovodrun", "-np", str(size), *hosts, sys.executable, *map(str, command)],
        env={**os.environ, **ENVIRONMENT, "PATH": os.pathsep.join(folders), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
    )
