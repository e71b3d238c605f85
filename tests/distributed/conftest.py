"""Starts all subjects of `run_on_ranks.py` once for each number of ranks."""

import functools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

SUPPORT = Path(__file__).resolve().parents[1] / "support"
# A rank that waits for another one longer than this ends the job, so that a stall is a failure and not a wait.
ENVIRONMENT = {
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "2",
    "OMP_NUM_THREADS": "1",
    "HOROVOD_STALL_CHECK_TIME_SECONDS": "20",
    "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "60",
}


@dataclass(frozen=True)
class Launch:
    """What the ranks of one job have written."""

    size: int
    folder: Path
    reports: list[dict]

    def results(self, subject):
        """What a subject returned, by rank."""
        for rank, report in enumerate(self.reports):
            assert subject in report, f"rank {rank} did not get to {subject}"
            assert "failure" not in report[subject], f"rank {rank}: {report[subject]['failure']}"
        return [report[subject]["result"] for report in self.reports]


def horovodrun(size, *command, timeout=900, **environment):
    """Run a command on ranks of this machine; return the finished process."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["horovodrun", "-np", str(size), "-H", f"localhost:{size}", sys.executable, *map(str, command)],
        env={**os.environ, **ENVIRONMENT, "PATH": path, "PYTHONPATH": str(SUPPORT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )


@pytest.fixture
def start_ranks():
    """`horovodrun`, for scripts of `tests/support`."""
    return lambda size, script, arguments=(), **options: horovodrun(size, SUPPORT / script, *arguments, **options)


@pytest.fixture(scope="session")
def launch_once(tmp_path_factory):
    """Starts all subjects on a number of ranks, at its first call."""

    @functools.cache
    def launch_on(size):
        folder = tmp_path_factory.mktemp(f"ranks{size}")
        done = horovodrun(size, SUPPORT / "run_on_ranks.py", folder)
        assert done.returncode == 0, done.stdout[-5000:]
        return Launch(size, folder, [json.loads((folder / f"report-{rank}.json").read_text()) for rank in range(size)])

    return launch_on


@pytest.fixture(scope="session", params=[2, 3], ids=["2-ranks", "3-ranks"])
def launch(request, launch_once):
    """What two ranks have done, and what three have."""
    return launch_once(request.param)


@pytest.fixture(scope="session")
def two_ranks(launch_once):
    """What two ranks have done, for subjects that three do not run."""
    return launch_once(2)
