"""The newest checkpoints of a training, one file for each rank, of which two generations are kept."""

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
        folder: The folder; need not exist yet.
        communicator: The job's processes.
        owner: Who asks, for messages.
        is_running: Returns whether the training is still running, for trainings that do not call `close` where they
            end in an error; None (default) for those that always do.
    """

    def __init__(
        self, folder: Path, communicator: Any, owner: str, is_running: Callable[[], bool] | None = None
    ) -> None:
        self.folder, self._communicator, self._owner = folder, communicator, owner
        self._is_running = is_running
        self._lock: FolderLock | None = None
        self._unreadable: set[int] = set()

    def open(self) -> None:
        """Make the folder, lock it against other trainings, and check that it can be written; all ranks call this.

        Raises:
            ValueError: It cannot be made or written, another training has it, or a directory has a checkpoint's name.
        """
        rank = self._communicator.rank
        job = self._communicator.allgather_object(secrets.token_hex(16), f"{self._owner} opens its folder")[0]
        before = self._lock
        # Rank 0 before the others, so that they find its lock where they share the folder.
        try:
            in_agreement(self._communicator, lambda: self._open(job) if rank == 0 else None)
            in_agreement(self._communicator, lambda: self._open(job) if rank > 0 else None)
        except BaseException:
            if self._lock is not before:
                self.close()
            self._lock = before
            raise

    def close(self) -> None:
        """Let other trainings have the folder."""
        if self._lock is not None:
            self._lock.release()

    def _make(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"`folder` must be one that can be made. Received: folder={str(self.folder)!r}: {error}"
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
            # What was being written when a process was killed.
            for path in self.folder.glob(f"*.{self._suffix}*{state_file.PARTIAL}"):
                path.unlink()
            state_file.write(trial, {})
            trial.unlink()
        except OSError as error:
            raise ValueError(
                f"`folder` must be one that can be written. Received: folder={str(self.folder)!r}: {error}"
            ) from error

    @property
    def _suffix(self) -> str:
        return f"rank-{self._communicator.rank}-of-{self._communicator.size}"

    def _path(self, epochs: int) -> Path:
        return self.folder / f"epoch-{epochs:06d}.{self._suffix}.npz"

    def _epochs(self) -> list[int]:
        """Return the epochs of this rank's files, in order."""
        found = [_NAME.fullmatch(path.name) for path in self.folder.glob(f"epoch-*.{self._suffix}.npz")]
        epochs = {int(match[1]) for match in found if match}
        return sorted(epoch for epoch in epochs if self._path(epoch).is_file())

    def write(self, epochs: int, state: dict[str, Any]) -> None:
        """Write this rank's checkpoint, and remove those older than the one before.

        Args:
            epochs: How many epochs are done.
            state: What to write.

        Raises:
            NotWrittenError: The file cannot be written.
            ValueError: The folder was deleted, and another training has it now.
        """
        if self._lock is not None:
            if not self.folder.is_dir():
                warnings.warn(
                    f"{self.folder} was deleted during training, with the checkpoints in it: it is made anew",
                    stacklevel=2,
                )
                self._make()
            self._lock.renew()
        path = self._path(epochs)
        state_file.write(path, {"owner": self._owner, "name": path.name, "state": state})
        self._unreadable.discard(epochs)
        # What could not be read is no generation. It stays, since it may be readable elsewhere.
        for old in [there for there in self._epochs() if there not in self._unreadable][:-_GENERATIONS]:
            self._path(old).unlink(missing_ok=True)

    def read_newest(self) -> dict[str, Any] | None:
        """Read the newest checkpoint that is whole on every rank.

        Returns:
            This rank's state; None if there is no checkpoint.

        Raises:
            ValueError: The checkpoints are of another number of ranks or of another owner, or none is whole on every
                rank.
        """
        sizes, foreign = self._sizes(), self._foreign()
        whole, unreadable = self._whole()
        if self._communicator.rank == 0:
            for name in foreign:
                warnings.warn(
                    f"Passing over {self.folder / name}: no checkpoint has such a name. It stays as it is", stacklevel=2
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
                    "ranks had done so: it begins anew",
                    stacklevel=2,
                )
            return None
        passed = "; ".join(dict.fromkeys(text for *_, texts in everybody for text in texts))
        raise ValueError(
            f"No epoch in {self.folder} has a whole checkpoint on every rank: by rank, there are "
            f"{[epochs for epochs, *_ in everybody]}. {f'Passed over: {passed}. ' if passed else ''}"
            "Bring back whole files from a copy; or move these elsewhere, or delete the folder, to begin anew"
        )

    def _sizes(self) -> list[int]:
        found = (_NAME.fullmatch(path.name) for path in self.folder.glob("epoch-*") if path.is_file())
        return sorted({int(match[3]) for match in found if match})

    def _foreign(self) -> list[str]:
        # Names that look like those of checkpoints, such as copies have. All other files are nobody's business.
        names = sorted(path.name for path in self.folder.glob("epoch-*.npz"))
        return [name for name in names if not _NAME.fullmatch(name)]

    def _whole(self) -> tuple[list[int], list[str]]:
        """Return the epochs of this rank's whole files, and what is wrong with the others, about which it warns."""
        whole, unreadable = [], []
        for epochs in self._epochs():
            try:
                self._content(epochs)
                whole.append(epochs)
            except state_file.DamagedFileError as error:
                self._unreadable.add(epochs)
                unreadable.append(str(error))
                warnings.warn(f"Passing over a damaged checkpoint: {error}", stacklevel=3)
        return whole, unreadable

    def _content(self, epochs: int) -> dict[str, Any]:
        path = self._path(epochs)
        content = state_file.read(path)
        if not isinstance(content, dict) or not {"owner", "name", "state"} <= content.keys():
            raise state_file.DamagedFileError(f"{path}: it is no checkpoint of a training")
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
                    f"{size} ranks. Move the files of the training that is not to go on out of the folder"
                )
            raise ValueError(
                f"The checkpoints in {self.folder} were written by {jobs}. Received: a job of {size} ranks. Start as "
                "many ranks; or move the files elsewhere, or delete the folder, to begin anew"
            )

    def _read(self, epochs: int, whole: list[int]) -> dict[str, Any]:
        content = self._content(epochs)
        if content["owner"] != self._owner:
            raise ValueError(
                f"The checkpoints in {self.folder} were written by {content['owner']}. Received: the same folder for "
                f"{self._owner}. Pass another one, or delete it to begin anew"
            )
        # What is newer was not written by all ranks, and must not meet what they write from here on.
        for newer in (there for there in whole if there > epochs):
            self._path(newer).unlink(missing_ok=True)
        return content["state"]


def _was_cut_off_at_the_first(whole: list[list[int]], files: list[list[int]]) -> bool:
    # Some ranks have one file, of the same epoch and whole, and the others none: no checkpoint was ever complete.
    epochs = {epoch for there in files for epoch in there}
    return whole == files and [] in files and len(epochs) == 1
