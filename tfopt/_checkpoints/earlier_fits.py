"""What the `fit`s of this process have left in folders of checkpoints.

A `fit` resumes what an interruption has left there, in this process or in an earlier one. After a `fit` of this process
has ended, another one in the same folder may be another training, which must not be taken for the same one.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass
class _Left:
    first: int | str  # A checksum of the values with which the training in the folder began.
    epochs: int  # Largest number of epochs that a `fit` of this process was to reach.
    has_ended: bool


_LEFT: dict[tuple[str, int], _Left] = {}  # By folder and rank.


class EarlierFits:
    """The earlier `fit`s of this process in a folder.

    Args:
        folder: The folder of the checkpoints.
        rank: This process's rank; ranks may share the folder.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder, self._key = folder, (os.path.realpath(folder), rank)

    def check(
        self, first: int | str, changed: Callable[[], list[str]], reached: tuple[int, bool], asked: tuple[int, int]
    ) -> None:
        """Refuse a `fit` that is another training than the one that has ended in the folder.

        Args:
            first: A checksum of the values with which this `fit` begins.
            changed: Returns the names of those values that differ from the checkpoint.
            reached: The epoch of the checkpoint, and whether a callback has stopped the training there.
            asked: The arguments `initial_epoch` and `epochs` of this `fit`.

        Raises:
            ValueError: The checkpoint would replace other values, or this `fit` would train nothing.
        """
        left, (done, is_stopped), (begin, end) = _LEFT.get(self._key), reached, asked
        if left is None or not left.has_ended or first == left.first:
            return  # The same training again, from the same values, has the result that the checkpoint has.
        ended = f"A `fit` of this process has ended the training in {self._folder} after {done} epochs"
        if names := changed():
            several = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(
                f"{ended}, and this one begins with other values of {', '.join(names[:3])}{several}: those of the "
                "checkpoint would replace them. Pass another folder for each training (seed, fold, phase). To go on "
                "with that training, leave the model and its optimizer as they were after its last epoch: do not set "
                "weights, compile, or train without checkpoints in between, or let a callback change weights at the "
                "end, such as EarlyStopping(restore_best_weights=True)"
            )
        if begin >= end:
            return
        if is_stopped:
            raise ValueError(
                f"{ended}, because a callback stopped it, and a stopped training stays stopped. Received: "
                f"initial_epoch={begin}, epochs={end}. Pass another folder to train the model further"
            )
        if end <= left.epochs:
            raise ValueError(
                f"{ended}, and this one would train nothing. Received: initial_epoch={begin}, epochs={end}. To train "
                f"the model further, count epochs from the beginning: initial_epoch={done}, "
                f"epochs={done + end - begin}. For another training, pass another folder"
            )

    def begin(self, first: int | str, epochs: int, is_resumed: bool) -> None:
        """Note that a `fit` of so many epochs has begun, from a checkpoint or from values with the checksum `first`."""
        left = _LEFT.get(self._key) if is_resumed else None
        if left is not None:
            first, epochs = left.first, max(left.epochs, epochs)
        _LEFT[self._key] = _Left(first, epochs, has_ended=False)

    def end(self) -> None:
        """Note that the `fit` has ended, and no exception has interrupted it."""
        if (left := _LEFT.get(self._key)) is not None:
            left.has_ended = True
