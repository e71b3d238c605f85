"""Starts all subjects of `run_on_ranks.py` once for each number of ranks."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from launch_ranks import horovodrun

SUPPORT = Path(__file__).resolve().parents[1] / "support"


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


@pytest.fixture
def start_ranks():
    """`horovodrun`, for scripts of `tests/support`."""
    return lambda size, script, arguments=(), **environment: horovodrun(
        size, SUPPORT / script, *arguments, PYTHONPATH=str(SUPPORT), **environment
    )


@pytest.fixture(scope="session")
def launch_once(tmp_path_factory):
    """Starts all subjects on a number of ranks, at its first call."""

    @functools.cache
    def launch_on(size):
        folder = tmp_path_factory.mktemp(f"ranks{size}")
        done = horovodrun(size, SUPPORT / "run_on_ranks.py", folder, PYTHONPATH=str(SUPPORT))
        assert done.returncode == 0, done.stdout[-5000:]
        return Launch(size, folder, [json.loads((folder / f"report-{rank}.json").read_text()) for rank in range(size)])

    return launch_on


@pytest.fixture(scope="session", params=[2, 3], ids=["2-ranks", "3-ranks"])
def launch(request, launch_once):
    """What two ranks have done, and what three have."""
    return launch_once(request.param)


@pytest.fixture(scope="session")
def two_ranks(launch_once):
    """What two ranks have done: all subjects."""
    return launch_once(2)


@pytest.fixture(scope="session")
def three_ranks(launch_once):
    """What three ranks have done, which are the subjects in which a third rank changes something."""
    return launch_once(3)
