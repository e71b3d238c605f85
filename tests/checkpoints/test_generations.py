"""Which checkpoint the ranks of a job agree on, whatever a killed job has left; ranks are threads here."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tfopt._checkpoints import folder_lock, state_file
from tfopt._checkpoints.generations import CheckpointFiles


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
    assert "Ignoring a damaged checkpoint" in said[0]


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


def test_names_that_only_look_like_checkpoints_are_passed_over_and_kept(tmp_path):
    write(tmp_path, 0, 1, 2, size=1)
    newest = tmp_path / "epoch-000002.rank-0-of-1.npz"
    names = ["epoch-best.rank-0-of-1.npz", "epoch-000002.rank-0-of-1 (copy).npz", "epoch-12.rank-0-of-1.npz"]
    for name in [*names, "notes.txt", "epoch-000002.rank-0-of-1.npz~"]:
        shutil.copy(newest, tmp_path / name)
    (tmp_path / "epoch-000009.rank-0-of-1.npz").mkdir()
    (found,), said = read_on_all(tmp_path, 1)
    assert found["epoch"] == 2
    assert sorted(text.split(str(tmp_path) + "/")[1].split(":")[0] for text in said) == sorted(names)
    write(tmp_path, 0, 3, 4, size=1)
    assert all((tmp_path / name).exists() for name in names)


def test_a_file_under_the_name_of_another_is_passed_over(tmp_path):
    write(tmp_path, 0, 1, 2, size=1)
    shutil.copy(tmp_path / "epoch-000001.rank-0-of-1.npz", tmp_path / "epoch-000007.rank-0-of-1.npz")
    (found,), said = read_on_all(tmp_path, 1)
    assert found["epoch"] == 2
    assert "epoch-000007.rank-0-of-1.npz: it was written as epoch-000001.rank-0-of-1.npz" in said[0]


def test_what_cannot_be_read_stays_and_is_no_generation(tmp_path):
    write(tmp_path, 0, 1, 2, size=1)
    damage(tmp_path, 0, 2)
    files = CheckpointFiles(tmp_path, Threads(1).rank(0), "a test")
    with pytest.warns(UserWarning, match="Ignoring a damaged checkpoint"):
        assert files.read_newest()["epoch"] == 1
    left = []
    for epochs in (3, 5, 2):
        files.write(epochs, {})
        left.append(sorted(int(path.name[6:12]) for path in tmp_path.iterdir()))
    assert left == [[1, 2, 3], [2, 3, 5], [3, 5]]


def test_a_sealed_file_that_is_no_checkpoint_is_passed_over(tmp_path):
    write(tmp_path, 0, 1, size=1)
    for epochs, content in ((2, [1, 2]), (3, {"owner": "a test"})):
        state_file.write(tmp_path / f"epoch-{epochs:06d}.rank-0-of-1.npz", content)
    (found,), said = read_on_all(tmp_path, 1)
    assert found["epoch"] == 1
    assert all("it is not a checkpoint of a training" in text for text in said)
    assert len(said) == 2


def test_two_jobs_in_one_folder_are_told_apart(tmp_path):
    write(tmp_path, 0, 1, size=1)
    write(tmp_path, 0, 1, size=2)
    (found,), _ = read_on_all(tmp_path, 1)
    assert "of a job of 1 ranks, and of a job of 2 ranks" in found
    assert "Delete" not in found


# ---- The lock

HOLD = """
import os, sys, time
from pathlib import Path
from tfopt._checkpoints.folder_lock import FolderLock
FolderLock(Path(sys.argv[1]), "job", "a test").acquire()
if sys.argv[2:] and os.fork() == 0:
    time.sleep(600)
print("held", flush=True)
time.sleep(600)
"""


def hold(folder, *arguments):
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def opened(folder, size=1, rank=0, communicator=None):
    files = CheckpointFiles(folder, communicator or Threads(size).rank(rank), "a test")
    files.open()
    return files


def test_another_process_has_the_folder_until_it_is_killed(tmp_path):
    process = hold(tmp_path)
    try:
        with pytest.raises(ValueError, match=f"Another training .* into {tmp_path}: process {process.pid} on host ."):
            opened(tmp_path)
    finally:
        process.kill()
        process.communicate()
    opened(tmp_path).close()
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_the_killed_one_has_forked_does_not_block(tmp_path):
    process = hold(tmp_path, "fork")
    child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
    try:
        process.kill()
        process.wait()
        opened(tmp_path).close()
    finally:
        os.kill(child, signal.SIGKILL)
        process.communicate()


def test_a_forked_process_that_has_not_run_yet_is_waited_for(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    (tmp_path / "training.lock").write_text(json.dumps({"host": socket.gethostname(), "pid": process.pid}))
    descriptor = os.open(tmp_path / "training.lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # as a process has it that was forked by one that has ended
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(opened, tmp_path)
        time.sleep(0.3)
        assert not opening.done()
        os.close(descriptor)
        opening.result().close()


def test_the_lock_of_a_training_that_has_ended_without_a_word_is_taken_away(tmp_path):
    is_running = [True]
    old = CheckpointFiles(tmp_path, Threads(1).rank(0), "a test", lambda: is_running[0])
    old.open()
    with ThreadPoolExecutor(1) as pool:
        for ask in (lambda: opened(tmp_path), lambda: pool.submit(opened, tmp_path).result(), old.open):
            with pytest.raises(ValueError, match=f"process {os.getpid()} "):
                ask()
        is_running[0] = False
        new = pool.submit(opened, tmp_path).result()
    old.close()  # has nothing any more
    with pytest.raises(ValueError, match=f"process {os.getpid()} "):
        opened(tmp_path)
    new.close()
    opened(tmp_path).close()


@pytest.mark.parametrize("is_all_gone", [True, False], ids=["folder", "lock"])
def test_what_is_deleted_during_training_is_made_anew(is_all_gone, tmp_path):
    folder = tmp_path / "folder"
    files = opened(folder)
    files.write(1, {})
    shutil.rmtree(folder) if is_all_gone else (folder / folder_lock.NAME).unlink()
    with pytest.warns(UserWarning, match="was deleted during training") if is_all_gone else contextlib.nullcontext():
        files.write(2, {"a": 1})
    with pytest.raises(ValueError, match="Another training"):
        opened(folder)
    (folder / folder_lock.NAME).unlink()
    other = opened(folder)
    with pytest.raises(ValueError, match="Another training"):
        files.write(3, {})
    files.close()
    with pytest.raises(ValueError, match="Another training"):
        opened(folder)
    assert other.read_newest() == {"a": 1}
    other.close()
    assert sorted(path.name[:12] for path in folder.iterdir()) == ["epoch-000001", "epoch-000002"][is_all_gone:]


def test_ranks_share_the_folder(tmp_path):
    ranks = Threads(3)
    with ThreadPoolExecutor(3) as pool:
        files = list(pool.map(lambda rank: opened(tmp_path, communicator=ranks.rank(rank)), range(3)))
    assert [path.name for path in tmp_path.iterdir()] == [folder_lock.NAME]
    assert json.loads((tmp_path / folder_lock.NAME).read_text())["pid"] == os.getpid()
    for file in files:
        file.close()


def test_all_ranks_are_refused(tmp_path):
    opened(tmp_path)
    ranks = Threads(2)

    def refused(rank):
        with pytest.raises(ValueError, match="Rank 0: Another training"):
            opened(tmp_path, communicator=ranks.rank(rank))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(refused, range(2)))


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(folder_lock.fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match=r"cannot be locked \(.*not supported\). A second training .* not be detected"):
        opened(tmp_path)


def test_a_folder_that_cannot_be_written_is_named():
    with pytest.raises(ValueError, match="`folder` must be writable. Received: folder='/proc/self/task'"):
        opened(Path("/proc/self/task"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.symlink_to(path.parent / "elsewhere"), "is a link"),
        (lambda path: path.mkdir(), "is a directory"),
        (os.mkfifo, "is no regular file"),
    ],
    ids=["link", "directory", "pipe"],
)
def test_what_stands_in_the_place_of_the_lock_is_named(make, message, tmp_path):
    make(tmp_path / folder_lock.NAME)
    with pytest.raises(ValueError, match=f"{folder_lock.NAME} {message}.*Move it elsewhere"):
        opened(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [folder_lock.NAME]


def test_a_directory_with_the_name_of_a_checkpoint_is_refused_before_training(tmp_path):
    (tmp_path / "epoch-000009.rank-0-of-1.npz").mkdir()
    (tmp_path / "epoch-000009.rank-0-of-3.npz").mkdir()
    with pytest.raises(ValueError, match=r"epoch-000009.rank-0-of-1.npz is a directory.*Move it elsewhere"):
        opened(tmp_path)
    (tmp_path / "epoch-000009.rank-0-of-1.npz").rmdir()
    files = opened(tmp_path)
    assert files.read_newest() is None
    files.close()


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    for name in ("epoch-000003.rank-0-of-1.npz.0f.partial", "epoch-000003.rank-0-of-2.npz.0f.partial"):
        (tmp_path / name).write_bytes(b"part")
    opened(tmp_path).close()
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-000003.rank-0-of-2.npz.0f.partial"]
