"""The newest checkpoints of a training, one file for each rank. Two generations are kept."""

import re
import secrets
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfopt._checkpoints import state_file
from tfopt._checkpoints.folder_lock import FolderLock
from tfopt.communicator.agreement import in_agreement

_GENERATIONS = 2
_NAME = re.compile(r"epoch-([0-9]{6,})\.rank-([0-9]+)-of-([0-9]+)\.npz")


class CheckpointFiles:
    """The checkpoints in a folder.

    Args:
        folder: The folder, which need not exist yet.
        communicator: The job's communicator.
        owner: The name of the writer, for messages and for the check that checkpoints are its own.
        is_running: Returns whether the training is still running, if a training that ends in an error does not call
            `close`. None (default) if `close` is always called.
    """

    def __init__(
        self, folder: Path, communicator: Any, owner: str, is_running: Callable[[], bool] | None = None
    ) -> None:
        self.folder, self._communicator, self._owner = folder, communicator, owner
        self._is_running = is_running
        self._lock: FolderLock | None = None
        self._unreadable: set[int] = set()

    def open(self) -> None:
        """Make the folder, lock it against other trainings, and check that it is writable; all ranks call this."""
        rank = self._communicator.rank
        job = self._communicator.allgather_object(secrets.token_hex(16), f"{self._owner} opens its folder")[0]
        before = self._lock
        # Rank 0 is first, so that the others find its lock if they share the folder.
        try:
            in_agreement(self._communicator, lambda: self._open(job) if rank == 0 else None)
            in_agreement(self._communicator, lambda: self._open(job) if rank > 0 else None)
        except BaseException:
            if self._lock is not before:
                self.close()
            self._lock = before
            raise

    def close(self) -> None:
        """Release the folder for other trainings."""
        if self._lock is not None:
            self._lock.release()

    def _make(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"`folder` must be a folder that can be created. Received: folder={str(self.folder)!r}: {error}"
            ) from error

    def _open(self, job: str) -> None:
        self._make()
        for path in self.folder.glob(f"epoch-*.{self._suffix}.npz"):
            if _NAME.fullmatch(path.name) and path.is_dir():
                raise ValueError(
                    f"{path} is a directory. Received: a folder in which {self._owner} writes a file of this name. "
                    "Move it elsewhere, or pass another folder"
                )
        lock = FolderLock(self.folder, job, self._owner, self._is_running)
        trial = self.folder / f"trial.{self._suffix}"
        try:
            lock.acquire(is_first=self._communicator.rank == 0)
            self._lock = lock
            # A process that was killed while it wrote a file has left a partial file.
            for path in self.folder.glob(f"*.{self._suffix}*{state_file.PARTIAL}"):
                path.unlink()
            state_file.write(trial, {})
            trial.unlink()
        except OSError as error:
            raise ValueError(f"`folder` must be writable. Received: folder={str(self.folder)!r}: {error}") from error

    @property
    def _suffix(self) -> str:
        return f"rank-{self._communicator.rank}-of-{self._communicator.size}"

    def _path(self, epochs: int) -> Path:
        return self.folder / f"epoch-{epochs:06d}.{self._suffix}.npz"

    def _epochs(self) -> list[int]:
        """Return the epochs of this rank's files in ascending order."""
        found = [_NAME.fullmatch(path.name) for path in self.folder.glob(f"epoch-*.{self._suffix}.npz")]
        epochs = {int(match[1]) for match in found if match}
        return sorted(epoch for epoch in epochs if self._path(epoch).is_file())

    def write(self, epochs: int, state: dict[str, Any]) -> None:
        """Write this rank's checkpoint after a number of epochs, and remove all but two generations."""
        if self._lock is not None:
            if not self.folder.is_dir():
                warnings.warn(
                    f"{self.folder} was deleted during training, with the checkpoints in it. It is created again",
                    stacklevel=2,
                )
                self._make()
            self._lock.renew()
        path = self._path(epochs)
        state_file.write(path, {"owner": self._owner, "name": path.name, "state": state})
        self._unreadable.discard(epochs)
        # A file that cannot be read does not count as a generation. It stays, because another machine may read it.
        for old in [there for there in self._epochs() if there not in self._unreadable][:-_GENERATIONS]:
            self._path(old).unlink(missing_ok=True)

    def read_newest(self) -> dict[str, Any] | None:
        """Return this rank's state from the newest checkpoint that is complete on every rank; None if there is none."""
        sizes, foreign = self._sizes(), self._foreign()
        whole, unreadable = self._whole()
        if self._communicator.rank == 0:
            for name in foreign:
                warnings.warn(
                    f"Ignoring {self.folder / name}: checkpoints have other names. The file is kept", stacklevel=2
                )
        found_here = (whole, sizes, self._epochs(), unreadable)
        everybody = self._communicator.allgather_object(found_here, f"{self._owner} before training")
        self._check_sizes(set().union(*(sizes for _, sizes, _, _ in everybody)))
        common = set(everybody[0][0]).intersection(*(epochs for epochs, *_ in everybody))
        files = [there for _, _, there, _ in everybody]
        if common:
            return self._read(max(common), whole)
        if not any(files):
            return None
        if _was_cut_off_at_the_first([whole for whole, *_ in everybody], files):
            if self._communicator.rank == 0:
                warnings.warn(
                    f"Training was cut off while its first checkpoint in {self.folder} was written, before all "
                    "ranks had written theirs. It starts again",
                    stacklevel=2,
                )
            return None
        damaged = "; ".join(dict.fromkeys(text for *_, texts in everybody for text in texts))
        raise ValueError(
            f"No epoch in {self.folder} has a whole checkpoint on every rank: by rank, there are "
            f"{[epochs for epochs, *_ in everybody]}. {f'Damaged: {damaged}. ' if damaged else ''}"
            "Restore the files from a copy; or move these elsewhere, or delete the folder, to start again"
        )

    def _sizes(self) -> list[int]:
        found = (_NAME.fullmatch(path.name) for path in self.folder.glob("epoch-*") if path.is_file())
        return sorted({int(match[3]) for match in found if match})

    def _foreign(self) -> list[str]:
        # These names look like names of checkpoints, as names of copies do. All other files are ignored.
        names = sorted(path.name for path in self.folder.glob("epoch-*.npz"))
        return [name for name in names if not _NAME.fullmatch(name)]

    def _whole(self) -> tuple[list[int], list[str]]:
        """Return the epochs of this rank's readable files, and error texts of the others, with a warning for each."""
        whole, unreadable = [], []
        for epochs in self._epochs():
            try:
                self._content(epochs)
                whole.append(epochs)
            except state_file.DamagedFileError as error:
                self._unreadable.add(epochs)
                unreadable.append(str(error))
                warnings.warn(f"Ignoring a damaged checkpoint: {error}", stacklevel=3)
        return whole, unreadable

    def _content(self, epochs: int) -> dict[str, Any]:
        path = self._path(epochs)
        content = state_file.read(path)
        if not isinstance(content, dict) or not {"owner", "name", "state"} <= content.keys():
            raise state_file.DamagedFileError(f"{path}: it is not a checkpoint of a training")
        if content["name"] != path.name:
            raise state_file.DamagedFileError(f"{path}: it was written as {content['name']}, and renamed")
        return content

    def _check_sizes(self, found: set[int]) -> None:
        size = self._communicator.size
        if others := found - {size}:
            jobs = f"a job of {', '.join(map(str, sorted(others)))} ranks"
            if size in found:
                raise ValueError(
                    f"{self.folder} holds checkpoints of a job of {size} ranks, and of {jobs}. Received: a job of "
                    f"{size} ranks. Move the files of one of the two trainings out of the folder"
                )
            raise ValueError(
                f"The checkpoints in {self.folder} were written by {jobs}. Received: a job of {size} ranks. Start the "
                "same number of ranks; or move the files elsewhere, or delete the folder, to start again"
            )

    def _read(self, epochs: int, whole: list[int]) -> dict[str, Any]:
        content = self._content(epochs)
        if content["owner"] != self._owner:
            raise ValueError(
                f"The checkpoints in {self.folder} were written by {content['owner']}. Received: the same folder for "
                f"{self._owner}. Pass another folder, or delete this one to start again"
            )
        # Newer files were not written by all ranks. They must not mix with the files that the ranks write from now on.
        for newer in (there for there in whole if there > epochs):
            self._path(newer).unlink(missing_ok=True)
        return content["state"]


def _was_cut_off_at_the_first(whole: list[list[int]], files: list[list[int]]) -> bool:
    # If some ranks have one undamaged file of the same epoch, and the others none, no checkpoint was ever complete.
    epochs = {epoch for there in files for epoch in there}
    return whole == files and [] in files and len(epochs) == 1
