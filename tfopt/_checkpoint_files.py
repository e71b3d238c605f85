"""The newest checkpoints of a training, one file for each rank, of which two generations are kept."""

import warnings
from pathlib import Path
from typing import Any

from tfopt import _state_file

_GENERATIONS = 2


class CheckpointFiles:
    """The checkpoints in a folder.

    Args:
        folder: The folder; need not exist yet.
        communicator: The job's processes.
        owner: Who asks, for messages.
    """

    def __init__(self, folder: Path, communicator: Any, owner: str) -> None:
        self.folder, self._communicator, self._owner = folder, communicator, owner

    @property
    def _suffix(self) -> str:
        return f"rank-{self._communicator.rank}-of-{self._communicator.size}"

    def _path(self, epochs: int) -> Path:
        return self.folder / f"epoch-{epochs:06d}.{self._suffix}.npz"

    def _epochs(self) -> list[int]:
        names = [path.name for path in self.folder.glob(f"epoch-*.{self._suffix}.npz")]
        return [int(name.split(".")[0].removeprefix("epoch-")) for name in names]

    def write(self, epochs: int, state: dict[str, Any]) -> None:
        """Write this rank's checkpoint, and remove those older than the one before.

        Args:
            epochs: How many epochs are done.
            state: What to write.
        """
        _state_file.write(self._path(epochs), {"owner": self._owner, **state})
        for old in sorted(self._epochs())[:-_GENERATIONS]:
            self._path(old).unlink(missing_ok=True)

    def read_newest(self) -> dict[str, Any] | None:
        """Read the newest checkpoint that is whole on every rank.

        Returns:
            This rank's state; None if there is no checkpoint.

        Raises:
            ValueError: The checkpoints are of another number of ranks or of another owner, or none is whole on every
                rank.
        """
        sizes = {path.name.split("-of-")[1].removesuffix(".npz") for path in self.folder.glob("epoch-*-of-*.npz")}
        whole = []
        for epochs in sorted(self._epochs()):
            try:
                _state_file.read(self._path(epochs))
                whole.append(epochs)
            except _state_file.DamagedFileError as error:
                warnings.warn(f"Passing over a damaged checkpoint: {error}", stacklevel=2)
        found_here = (whole, sorted(sizes), self._epochs())
        everybody = self._communicator.allgather_object(found_here, f"{self._owner} before training")
        found = set().union(*(sizes for _, sizes, _ in everybody))
        if found - {str(self._communicator.size)}:
            raise ValueError(
                f"The checkpoints in {self.folder} were written by a job of {', '.join(sorted(found))} ranks. "
                f"Received: a job of {self._communicator.size} ranks. Delete the folder to begin anew"
            )
        common = set(everybody[0][0]).intersection(*(epochs for epochs, _, _ in everybody))
        files = [there for _, _, there in everybody]
        if not common and any(files):
            if _was_cut_off_at_the_first([whole for whole, _, _ in everybody], files):
                if self._communicator.rank == 0:
                    warnings.warn(
                        f"Training was cut off while its first checkpoint in {self.folder} was written, before all "
                        "ranks had done so: it begins anew",
                        stacklevel=2,
                    )
                return None
            raise ValueError(
                f"No epoch in {self.folder} has a whole checkpoint on every rank: by rank, there are "
                f"{[epochs for epochs, _, _ in everybody]}. Delete the folder to begin anew"
            )
        return self._read(max(common)) if common else None

    def _read(self, epochs: int) -> dict[str, Any]:
        state = dict(_state_file.read(self._path(epochs)))
        owner = state.pop("owner", "another version of tfopt")
        if owner != self._owner:
            raise ValueError(
                f"The checkpoints in {self.folder} were written by {owner}. Received: the same folder for "
                f"{self._owner}. Pass another one, or delete it to begin anew"
            )
        # What is newer was not written by all ranks: it would count as one of the generations.
        for newer in filter(lambda there: there > epochs, self._epochs()):
            self._path(newer).unlink(missing_ok=True)
        return state


def _was_cut_off_at_the_first(whole: list[list[int]], files: list[list[int]]) -> bool:
    # Some ranks have one file, of the same epoch and whole, and the others none: no checkpoint was ever complete.
    epochs = {epoch for there in files for epoch in there}
    return whole == files and [] in files and len(epochs) == 1
