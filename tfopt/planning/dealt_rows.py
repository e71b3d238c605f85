"""The rows of the data, dealt to the runs of a measurement."""

from collections.abc import Sequence

import numpy as np

from tfopt.communicator import Communicator
from tfopt.curvature.batch import Batch, join, row_form
from tfopt.curvature.probe import Probe

# A run splits its rows into about this many groups or more, for their gradients.
NUM_GROUPS = 32
# A product uses at most this many rows at once.
LARGEST_BATCH = 512
# A short time limit may allow no more rows than this in a product, and in a run.
SMALLEST_BATCH = 64
# Fewer rows in a run say little about the rest.
FEWEST_ROWS = 8


class DealtRows:
    """The rows of this rank, in random order whatever batches they come in, and the rows of each run.

    If runs share the rows, each run has all of them, in an order of its own. Otherwise each has an equal share, and
    no two have the same row; less than one row for each run is left over, at random. Rows whose shapes differ are in
    different batches.

    Attributes:
        group_size: Smallest number of rows in a group of gradients, where a batch has so many.
        batch_size: Largest number of rows in a batch, of any rank.
        num_batches: Largest number of batches in a run, of any rank.
    """

    def __init__(
        self,
        probe: Probe,
        num_runs: int,
        are_shared: bool,
        rng: np.random.Generator,
        communicator: Communicator,
        largest_batch: int = LARGEST_BATCH,
    ) -> None:
        counts = communicator.allgather_object(probe.num_rows, "rows")
        if are_shared and sum(counts) < 2:
            raise ValueError("`objective` must have at least 2 rows. Received: 1")
        if not are_shared and min(counts) < FEWEST_ROWS * num_runs:
            raise ValueError(
                f"`objective` must have at least {FEWEST_ROWS} rows for each of {num_runs} runs on every rank, where "
                f"runs do not have all rows of the training (`num_examples`). Received: {min(counts)} rows"
            )
        by_form: dict[object, list[Batch]] = {}
        for batch in probe.batches:
            by_form.setdefault(row_form(batch), []).append(batch)
        self._sources = list(by_form.values())
        self._num_runs, self._are_shared, self._largest_batch = num_runs, are_shared, largest_batch
        self._seed = int(rng.integers(2**31))
        sizes = [len(chosen) for _, chosen in self._parts(0)]
        everyone = np.array(communicator.allgather_object((len(sizes), max(sizes)), "batches"))
        self.num_batches, self.batch_size = everyone.max(axis=0).tolist()
        groups = max(-(-NUM_GROUPS // self.num_batches), 2)
        most = max(self.batch_size // groups, 1)
        # Groups of equal size need fewer compiled programs.
        self.group_size = min(range(most, most // 2, -1), key=lambda size: self.batch_size % size)

    def batches(self, index: int, count: int | None = None) -> list[Batch]:
        """Return the rows of a run, in batches of nearly equal size, of each form of rows."""
        # At most `count` batches on the rank that has most of them; other ranks have the same fraction of their rows.
        parts = self._parts(index)
        if count is not None:
            if len(self._sources) > 1:  # the first ones are to be of any form
                order = np.random.default_rng([self._seed, index]).permutation(len(parts))
                parts = [parts[at] for at in order]
            parts = parts[: -(-count * len(parts) // self.num_batches)]
        batches: list[Batch] = []
        for form, sources in enumerate(self._sources):
            if mine := [chosen for owner, chosen in parts if owner == form]:
                rows, ends = _take(sources, np.concatenate(mine)), np.cumsum([len(chosen) for chosen in mine])
                batches += [rows.rows(end - len(chosen), end) for chosen, end in zip(mine, ends.tolist(), strict=True)]
        return batches

    def _parts(self, index: int) -> list[tuple[int, np.ndarray]]:
        # Returns for each batch of a run the form of its rows, and their indices among all of this form.
        parts = []
        for form in range(len(self._sources)):
            indices = self._indices(index, form)
            if len(indices):
                parts += [(form, part) for part in np.array_split(indices, -(-len(indices) // self._largest_batch))]
        return parts

    def _indices(self, index: int, form: int) -> np.ndarray:
        # Returns the indices of a run's rows among all of a form.
        num_rows = sum(batch.num_rows for batch in self._sources[form])
        if self._are_shared:
            # Each run shuffles the rows again, because equal groups in all runs would have equal errors.
            return np.random.default_rng([self._seed, form, index]).permutation(num_rows)
        # Of fewer rows than runs each goes to another run; the other runs draw blanks.
        drawn = np.random.default_rng([self._seed, form]).permutation(max(num_rows, self._num_runs))
        share = max(num_rows // self._num_runs, 1)
        mine = drawn[index * share : (index + 1) * share]
        return mine[mine < num_rows]


def _take(sources: Sequence[Batch], indices: np.ndarray) -> Batch:
    """Return rows from several batches, by their indices in all of them together, in this order."""
    starts = np.cumsum([0, *(batch.num_rows for batch in sources)])
    owners = np.searchsorted(starts, indices, side="right") - 1
    order = np.argsort(owners, kind="stable")
    parts = [sources[one].take(indices[owners == one] - starts[one]) for one in np.unique(owners)]
    return join(parts).take(np.argsort(order))
