"""Batches of rows whose products fit into a given memory."""

from collections.abc import Callable
from typing import Any

from tfopt.curvature.batch import Batch, row_form
from tfopt.curvature.model_checks import has_batch_norm
from tfopt.curvature.objective import Objective
from tfopt.curvature.probe import Probe
from tfopt.curvature.row_means import Evaluations, NotAMeanError, RowMeanCheck


def with_batches_that_fit(objective: Objective, max_memory: int, measure: Callable[[Batch], int]) -> Objective:
    """Return an objective whose batches are cut so that `measure` of each, in bytes, is at most `max_memory`."""
    # Raises ValueError on all ranks alike, if a single row takes more, or if the cut would change the loss.
    largest: dict[Any, Batch] = {}
    for batch in objective.probe.batches:
        known = largest.setdefault(row_form(batch), batch)
        largest[row_form(batch)] = max(batch, known, key=lambda each: each.num_rows)
    found = {form: _rows_that_fit(batch, max_memory, measure) for form, batch in largest.items()}
    ranks = objective.communicator
    excess = [needed for rank in ranks.allgather_object(found, "rows that fit") for _, needed in rank.values()]
    if max(excess) > max_memory:
        raise ValueError(
            f"`max_memory` must hold a product on one row, which takes {max(excess):,} bytes. Received: {max_memory:,}"
        )
    cut = [part for batch in objective.probe.batches for part in _cut(batch, found[row_form(batch)][0])]
    is_cut = any(ranks.allgather_object(len(cut) > len(objective.probe.batches), "whether batches are cut"))
    if not is_cut:
        return objective
    if objective.batch_norm == "batch" and has_batch_norm(objective.model):
        _refuse(objective, max_memory, "batch normalisation by the statistics of batches")
    if objective.batch_loss.reduction:
        _refuse(objective, max_memory, f"a loss with the reduction {objective.batch_loss.reduction!r}")
    smaller = objective.over(Probe.from_batches(cut))
    try:
        ranges = [(index, 0, batch.num_rows) for index, batch in enumerate(cut)]
        RowMeanCheck(smaller, cut, ranges)(Evaluations(smaller, cut, ranges))
    except NotAMeanError as error:
        _refuse(objective, max_memory, f"a loss that is not a mean over rows ({error})", error)
    return smaller


def _refuse(objective: Objective, max_memory: int, found: str, cause: Exception | None = None) -> None:
    sizes = sorted({batch.num_rows for batch in objective.probe.batches})
    raise ValueError(
        f"`max_memory` must hold a product on each batch, because the loss changes where a batch is cut. Received: "
        f"max_memory={max_memory:,}, batches of {', '.join(map(str, sizes))} rows, and {found}. Pass a larger "
        "`max_memory`, or smaller batches, which define another loss"
    ) from cause


def _rows_that_fit(batch: Batch, max_memory: int, measure: Callable[[Batch], int]) -> tuple[int, int]:
    """Return the largest number of rows found that fits, and the bytes that these take; 1 if none fits."""
    rows, needed = batch.num_rows, measure(batch)
    above = per_row = None
    while needed > max_memory and rows > 1:
        if above is not None:  # memory is a constant and a part for each row
            per_row = (above[1] - needed) / (above[0] - rows)
        above = rows, needed
        fewer = rows * max_memory / needed if not per_row else rows - (needed - max_memory) / per_row
        rows = max(1, min(rows - 1, int(fewer)))
        needed = measure(batch.rows(0, rows))
    return rows, needed


def _cut(batch: Batch, rows: int) -> list[Batch]:
    if batch.num_rows <= rows:
        return [batch]
    count = -(-batch.num_rows // rows)
    size = -(-batch.num_rows // count)
    return [batch.rows(start, start + size) for start in range(0, batch.num_rows, size)]
