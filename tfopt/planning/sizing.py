"""Choose the rows and products of a fit, so that it keeps its budget."""

from collections.abc import Callable

from tfopt._progress import Progress
from tfopt.planning.budget import FIRST_GRADIENTS, PLANNED, SIZED_FOR, Budget, Costs, Effort
from tfopt.planning.dealt_rows import LARGEST_BATCH, SMALLEST_BATCH
from tfopt.planning.measurement import RunMeasurer

# A function of the largest number of rows in a batch that returns the measurer of runs, and the largest effort.
MakeMeasurer = Callable[[int], tuple[RunMeasurer, Effort]]


def size_fit(
    make: MakeMeasurer, budget: Budget, num_runs: int, bar: Progress
) -> tuple[RunMeasurer, Effort, Costs | None]:
    """Return the measurer of runs, their largest effort, and the costs on a batch, which are None without a limit.

    With a limit, costs are measured on a small batch first, because the product of a large one may take longer than
    the budget. If the smallest fit does not fit into the budget, ValueError says what does.
    """
    bar.show("compiling")
    if budget.seconds is None:
        measurer, most = make(LARGEST_BATCH)
        measurer.check()
        measurer.check_products()
        return measurer, most, None
    measurer, most = make(SMALLEST_BATCH)
    first, guess = measurer.guess_costs()
    budget.check(guess, most, measurer.batch_size, FIRST_GRADIENTS * first, factor=2.0)
    measurer.check()
    measurer.check_products()
    costs = measurer.costs()
    budget.check(costs, most, measurer.batch_size)
    bar.show(_estimate(costs, most, measurer, budget, num_runs))
    share = PLANNED * budget.left() / min(SIZED_FOR, num_runs)
    count = int(min(share / costs.of_run(Effort(most.num_matvecs, 1)), LARGEST_BATCH // SMALLEST_BATCH))
    if count < 2:
        return measurer, most, costs
    larger, more = make(SMALLEST_BATCH * 2 ** (count.bit_length() - 1))
    if larger.batch_size == measurer.batch_size:
        return measurer, most, costs
    larger.adopt(measurer)
    return larger, more, larger.costs((costs, measurer.batch_size))


def _estimate(costs: Costs, most: Effort, measurer: RunMeasurer, budget: Budget, num_runs: int) -> str:
    whole = num_runs * costs.of_run(most)
    if whole <= PLANNED * budget.left():
        return f"about {budget.elapsed + whole:.0f} s in all"
    return f"{budget.seconds:g} s in all; a fit to all rows would take about {budget.elapsed + whole:.0f} s"
