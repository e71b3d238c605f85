"""A lock that allows one training at a time in a folder, and that ends with the process that trains."""

import contextlib
import errno
import json
import os
import socket
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = "training.lock"
# Seconds to wait until another process of this job has written its name into the file that it has just locked, or until
# a process that was forked by the former holder, which has ended, releases the lock.
_PATIENCE = 5.0
_HELD: "list[FolderLock]" = []


class FolderLock:
    """A lock on a folder, which the processes of one job share.

    The lock is on an open file: the operating system removes it when the process ends, for any reason. The file says
    which process holds it. The lock works across hosts if the file system supports locks, as NFS does. If the file
    system does not, a warning says so.

    Args:
        folder: The folder, which must exist.
        job: A string that distinguishes this job from others.
        owner: The name of the writer, for messages.
        is_running: Returns whether the training that holds the lock is still running, if the training can end in an
            error without a call of `release`. None (default) if it always releases its lock.
    """

    def __init__(self, folder: Path, job: str, owner: str, is_running: Callable[[], bool] | None = None) -> None:
        self._path, self._job, self._owner, self._is_running = folder / NAME, job, owner, is_running
        self._descriptor: int | None = None

    def acquire(self, is_first: bool = True) -> None:
        """Take the lock, unless another process of this job has it; `is_first` says that no process of the job has."""
        if fcntl is None:
            self._warn("this system has no file locks")
            return
        for lock in list(_HELD):
            if lock._path == self._path and lock._is_running is not None and not lock._is_running():
                lock.release()
        deadline = time.monotonic() + _PATIENCE
        while True:
            self._check_that_it_can_be_a_file()
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(descriptor)
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    self._warn(str(error))
                elif is_first or not self._is_held_by_this_job():
                    if self._holder_has_ended() and time.monotonic() < deadline:
                        time.sleep(0.05)  # a process that the holder has forked releases the lock as soon as it runs
                        continue
                    raise ValueError(self._refusal()) from error
                return
            if self._is_still_there(descriptor):
                break
            os.close(descriptor)  # the former holder has removed the file in the meantime
        content = {"host": socket.gethostname(), "pid": os.getpid(), "job": self._job}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(content).encode(), 0)
        self._descriptor = descriptor
        _HELD.append(self)

    def renew(self) -> None:
        """Take the lock again if its file was deleted; ValueError if another training has it by now."""
        if self._descriptor is not None and not self._is_still_there(self._descriptor):
            self._let_go()
            self.acquire()

    def release(self) -> None:
        """Release the lock if this process holds it."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                if self._is_still_there(self._descriptor):
                    # The file is still locked. A process that has already opened it notices this and opens a new file.
                    self._path.unlink()
            self._let_go()

    def _let_go(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            _HELD.remove(self)

    def _check_that_it_can_be_a_file(self) -> None:
        if self._path.is_symlink() or (self._path.exists() and not self._path.is_file()):
            kind = "a link" if self._path.is_symlink() else "a directory" if self._path.is_dir() else "no regular file"
            raise ValueError(
                f"{self._path} is {kind}. Received: a folder in which {self._owner} locks a file of this name. Move it "
                "elsewhere, or pass another folder"
            )

    def _is_still_there(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _is_held_by_this_job(self) -> bool:
        deadline = time.monotonic() + _PATIENCE
        while self._holder().get("job") != self._job:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def _holder(self) -> dict[str, Any]:
        try:
            content = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _holder_has_ended(self) -> bool:
        holder = self._holder()
        pid = holder.get("pid")
        if holder.get("host") != socket.gethostname() or not isinstance(pid, int):
            return False
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False

    def _refusal(self) -> str:
        holder = self._holder()
        return (
            f"Another training writes its checkpoints into {self._path.parent}: process {holder.get('pid', 'unknown')} "
            f"on host {holder.get('host', 'unknown')}. End that process, or pass another folder to {self._owner}"
        )

    def _warn(self, reason: str) -> None:
        warnings.warn(
            f"{self._path.parent} cannot be locked ({reason}). A second training that writes checkpoints there would "
            "not be detected. Start only one",
            stacklevel=2,
        )


def _let_go_of_all() -> None:
    # A forked process shares the locks of its parent, and would hold them after the parent was killed.
    for lock in list(_HELD):
        lock._let_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_of_all)
