"""One training at a time in a folder, whatever happens to the process that trains."""

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
# Seconds for another process of this job to write its name into the file that it has just locked, and for one that was
# forked by a process that has ended to let go.
_PATIENCE = 5.0
_HELD: "list[FolderLock]" = []


class FolderLock:
    """A lock on a folder, which the processes of one job share.

    It is a lock on an open file: the system takes it away when the process ends, in whatever way. The file says who
    has it. Across hosts it holds where the file system passes locks on, as NFS does; on one that knows no locks a
    warning says so.

    Args:
        folder: The folder, which must exist.
        job: What distinguishes this job from others.
        owner: Who asks, for messages.
        is_running: Returns whether the training that asks is still running, for those that can end in an error
            without a word; None (default) if it always releases its lock.
    """

    def __init__(self, folder: Path, job: str, owner: str, is_running: Callable[[], bool] | None = None) -> None:
        self._path, self._job, self._owner, self._is_running = folder / NAME, job, owner, is_running
        self._descriptor: int | None = None

    def acquire(self, is_first: bool = True) -> None:
        """Take the lock, unless another process of this job has it.

        Args:
            is_first: Whether no other process of the job has been here.

        Raises:
            ValueError: Another training has it, or it is no file.
        """
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
                        time.sleep(0.05)  # a process that it has forked lets go as soon as it runs
                        continue
                    raise ValueError(self._refusal()) from error
                return
            if self._is_still_there(descriptor):
                break
            os.close(descriptor)  # the one who had it has removed the file meanwhile
        content = {"host": socket.gethostname(), "pid": os.getpid(), "job": self._job}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(content).encode(), 0)
        self._descriptor = descriptor
        _HELD.append(self)

    def renew(self) -> None:
        """Take the lock again if its file was deleted, with its folder or alone; another training may have it by now.

        Raises:
            ValueError: Another training has it.
        """
        if self._descriptor is not None and not self._is_still_there(self._descriptor):
            self._let_go()
            self.acquire()

    def release(self) -> None:
        """Give the lock back, if this process has it."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                if self._is_still_there(self._descriptor):
                    self._path.unlink()  # while it is locked: whoever has opened it by now notices and opens a new one
            self._let_go()

    def _let_go(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            _HELD.remove(self)

    def _check_that_it_can_be_a_file(self) -> None:
        if self._path.is_symlink() or (self._path.exists() and not self._path.is_file()):
            kind = "a link" if self._path.is_symlink() else "a directory" if self._path.is_dir() else "no plain file"
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
            f"on host {holder.get('host', 'unknown')}. End it, or pass another folder to {self._owner}"
        )

    def _warn(self, reason: str) -> None:
        warnings.warn(
            f"{self._path.parent} cannot be locked ({reason}): nobody notices if a second training writes its "
            "checkpoints there",
            stacklevel=2,
        )


def _let_go_of_all() -> None:
    # A forked process shares the locks of its parent, and would keep them when the parent is killed.
    for lock in list(_HELD):
        lock._let_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_of_all)
