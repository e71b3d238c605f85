"""A rank dies in the middle of training: the job ends and says who; started again, it goes on to the same bits."""

import re
import time

import pytest

pytestmark = pytest.mark.slow_by_nature

LIMIT = 60  # seconds from the death to the end of the job


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


def test_a_killed_rank_ends_the_job_which_then_goes_on_to_the_same_bits(start_ranks, folder):
    for who, done in (("keras", 0), ("bregman", 5)):
        job = start_ranks(2, "train_until_a_rank_dies.py", arguments=[folder, who])
        died = float((folder / f"{who}-died").read_text())
        assert time.monotonic() - died < LIMIT
        assert job.returncode != 0
        assert job.stdout.count("dying") == 1
        assert "Process name: 1" in job.stdout
        assert "Exit code: 137" in job.stdout
        assert max(int(path.name[6:12]) for path in (folder / who).glob("epoch-*.rank-0-*")) == 3
        assert len(list((folder / "keras").glob(f"epoch-{done:06d}.*"))) == (2 if done else 0)
    job = start_ranks(2, "train_until_a_rank_dies.py", arguments=[folder, "nobody"])
    assert job.returncode == 0, job.stdout[-3000:]
    assert "SAME [[True, True], [True, True]]" in job.stdout


def test_a_rank_that_raises_ends_the_job_with_its_message(start_ranks, tmp_path):
    job = start_ranks(2, "train_until_a_rank_dies.py", arguments=[tmp_path, "raises"])
    assert job.returncode != 0
    # Its traceback, with its number. Which rank is gone first is chance: Horovod tells the others when one shuts down.
    assert re.search(r"\[1\]<stderr>:.*row 36 of the last shard cannot be read", job.stdout)
