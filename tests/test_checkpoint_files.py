"""Which checkpoint the ranks of a job agree on, whatever a killed job has left; ranks are threads here."""

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from tfopt._checkpoint_files import CheckpointFiles


class Threads:
    """Collects objects between threads."""

    def __init__(self, size):
        self.size, self.items, self.barrier = size, [None] * size, threading.Barrier(size)

    def rank(self, rank):
        job = self

        class Rank:
            size = job.size

            def allgather_object(self, item, name):
                job.items[rank] = item
                job.barrier.wait(10)
                return list(job.items)

        Rank.rank = rank
        return Rank()


def read_on_all(folder, size):
    """What each rank finds, or the message of its error; and the warnings."""
    ranks = Threads(size)

    def read(rank):
        try:
            return CheckpointFiles(folder, ranks.rank(rank), "a test").read_newest()
        except ValueError as error:
            return str(error)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with ThreadPoolExecutor(size) as pool:
            return list(pool.map(read, range(size))), [str(w.message) for w in caught]


def write(folder, rank, *epochs, size=2):
    for epoch in epochs:
        CheckpointFiles(folder, Threads(size).rank(rank), "a test").write(epoch, {"epoch": epoch, "rank": rank})


def damage(folder, rank, epoch):
    (path,) = folder.glob(f"epoch-{epoch:06d}.rank-{rank}-*")
    path.write_bytes(path.read_bytes()[:50])


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert read_on_all(tmp_path, 2) == ([None, None], [])


def test_two_generations_are_kept(tmp_path):
    write(tmp_path, 0, 1, 2, 3)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "epoch-000002.rank-0-of-2.npz",
        "epoch-000003.rank-0-of-2.npz",
    ]


@pytest.mark.parametrize("ahead", [0, 1])
def test_the_newest_that_all_ranks_have_counts(tmp_path, ahead):
    write(tmp_path, ahead, 1, 2, 3)
    write(tmp_path, 1 - ahead, 1, 2)
    assert read_on_all(tmp_path, 2) == ([{"epoch": 2, "rank": rank} for rank in range(2)], [])
    # What is newer would count as one of two generations, and push the other out before the next is complete.
    assert sorted(path.name[:12] for path in tmp_path.iterdir()) == ["epoch-000001", "epoch-000002", "epoch-000002"]


def test_checkpoints_of_something_else_are_refused(tmp_path):
    write(tmp_path, 0, 1, size=1)
    with pytest.raises(ValueError, match=r"were written by a test\. Received: the same folder for another test"):
        CheckpointFiles(tmp_path, Threads(1).rank(0), "another test").read_newest()


def test_a_damaged_file_is_passed_over_by_all(tmp_path):
    write(tmp_path, 0, 1, 2)
    write(tmp_path, 1, 1, 2)
    damage(tmp_path, 1, 2)
    found, said = read_on_all(tmp_path, 2)
    assert found == [{"epoch": 1, "rank": rank} for rank in range(2)]
    assert len(said) == 1
    assert "Passing over a damaged checkpoint" in said[0]


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_job_cut_off_at_its_first_checkpoint_begins_anew(tmp_path, ahead):
    write(tmp_path, ahead, 1)
    found, said = read_on_all(tmp_path, 2)
    assert found == [None, None]
    assert len(said) == 1
    assert "cut off while its first checkpoint" in said[0]


def test_what_is_lost_is_an_error(tmp_path):
    for epochs, damaged in (((1, 2), None), ((1,), 1)):  # two generations of one rank; all that there was
        folder = tmp_path / str(len(epochs))
        folder.mkdir()
        write(folder, 0, *epochs)
        if damaged:
            damage(folder, 0, damaged)
        found, _ = read_on_all(folder, 2)
        assert found[0] == found[1]
        assert "has a whole checkpoint on every rank" in found[0]


def test_a_job_of_another_size_is_an_error(tmp_path):
    write(tmp_path, 0, 1)
    found, _ = read_on_all(tmp_path, 3)
    assert all("were written by a job of 2 ranks. Received: a job of 3 ranks" in message for message in found)
