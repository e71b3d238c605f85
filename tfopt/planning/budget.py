"""The time limit of a fit, and what fits into it."""

import math
import time
from dataclasses import dataclass

from tfopt.communicator import Communicator

# Intervals from fewer runs would mean little.
FEWEST_RUNS = 4
FEWEST_MATVECS = 20
# A short budget is divided among this many runs.
SIZED_FOR = 6
# Plans leave the rest of the time to a machine that slows down.
PLANNED = 0.8
# A product takes about as long as this many gradients. The first product, which is traced and checked, takes as long as
# this many first gradients.
GRADIENTS_IN_A_PRODUCT, FIRST_GRADIENTS = 2.5, 4.0

clock = time.perf_counter


@dataclass(frozen=True)
class Effort:
    """The amount of work in one run."""

    num_matvecs: int  # Products for each vector
    num_batches: int  # Batches of rows, on which gradients and products are computed


@dataclass(frozen=True)
class Costs:
    """Seconds on a batch, without compilation: of the gradients of all its groups, and of a product."""

    gradients: float
    product: float
    num_vectors: int  # Vectors in a run, each of which is multiplied `num_matvecs` times

    def of_run(self, effort: Effort) -> float:
        """Return the seconds of a run."""
        return effort.num_batches * (self.gradients + self.num_vectors * effort.num_matvecs * self.product)

    def least(self, most: Effort) -> Effort:
        """Return the smallest effort of an honest run."""
        return Effort(min(FEWEST_MATVECS, most.num_matvecs), 1)

    def affordable(self, most: Effort, seconds: float) -> Effort:
        """Return the effort of a run of about `seconds`, or the smallest one: rather fewer rows than fewer products."""
        batches = seconds / self.of_run(Effort(most.num_matvecs, 1))
        batches = min(max(int(min(batches, 1e9)), 1), most.num_batches)
        matvecs = (seconds / batches - self.gradients) / (self.num_vectors * self.product)
        fewest = self.least(most).num_matvecs
        return Effort(min(max(int(min(matvecs, 1e9)), fewest), most.num_matvecs), batches)


class Budget:
    """The seconds of a fit, counted from now, or None for no limit. All ranks get the same answers.

    The `reserved` seconds are those of what follows the fit.
    """

    def __init__(self, seconds: float | None, ranks: Communicator, reserved: float = 0.0) -> None:
        self.seconds, self._ranks, self._reserved = seconds, ranks, reserved
        self._begin = clock()

    @property
    def elapsed(self) -> float:
        """The seconds so far, on this rank."""
        return clock() - self._begin

    def left(self) -> float:
        """Return the seconds left on the rank that has fewest; infinity without a limit."""
        if self.seconds is None:
            return math.inf
        return float(min(self._ranks.allgather_object(self.seconds - self._reserved - self.elapsed, "seconds")))

    def release(self) -> None:
        """Go on to what the reserved seconds are for."""
        self._reserved = 0.0

    def check(self, costs: Costs, most: Effort, num_rows: int, setup: float = 0.0, factor: float = 1.0) -> None:
        """Raise ValueError on all ranks if not even the smallest fit, on batches of `num_rows`, is done in time."""
        # `setup` are the seconds that compiling takes yet. Uncertain costs refuse only what takes longer than the
        # budget by a `factor`.
        if self.seconds is None:
            return
        least = costs.least(most)
        needed = setup + FEWEST_RUNS * costs.of_run(least)
        left = self.left()
        # What ends soon is not refused because compiling took long.
        if needed <= max(factor * left, 0.1 * self.seconds):
            return
        enough = _rounded_up((self.seconds - left + needed) / PLANNED)
        per_product = FEWEST_RUNS * costs.num_vectors * costs.product
        matvecs = int((PLANNED * left - setup - FEWEST_RUNS * costs.gradients) / per_product)
        fewer = f", or num_matvecs={matvecs} for a coarser spectrum" if 5 <= matvecs < least.num_matvecs else ""
        raise ValueError(
            f"`budget_seconds` is too short: the smallest fit takes about {needed:.3g} s more. It has {FEWEST_RUNS} "
            f"runs of {num_rows} rows, with {least.num_matvecs} products of {costs.product:.2g} s for each of "
            f"{costs.num_vectors} vectors. Received: budget_seconds={self.seconds:g}. "
            f"Pass budget_seconds={enough:g}{fewer}"
        )


def _rounded_up(seconds: float) -> float:
    """Return a number of seconds with two digits, at least as large."""
    unit = 10.0 ** (math.floor(math.log10(seconds)) - 1)
    return round(math.ceil(seconds / unit) * unit, 6)
