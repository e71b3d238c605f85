"""The fraction of the total loss change that happened while a quantity was positive."""

import math
from dataclasses import dataclass


@dataclass
class ChangeShare:
    """Sums the absolute loss change over the intervals between measurements, by the sign of a quantity.

    An interval belongs to the sign at its beginning. If the sign at its end differs, the interval also counts as
    undecided, because the step at which the sign changed is not known.
    """

    total: float = 0.0  # Sum of |dl|.
    positive: float = 0.0  # Change in intervals that began with a positive quantity.
    undecided: float = 0.0  # Change in intervals whose ends have different signs.
    num_steps: int = 0
    num_positive_steps: int = 0  # Steps in intervals that began with a positive quantity.
    _last: tuple[float, bool, int] | None = None

    def update(self, loss: float, quantity: float, step: int) -> None:
        """Add a measurement; a second one at the same step, or one with a loss that is not finite, changes nothing."""
        if not math.isfinite(loss) or (self._last is not None and step == self._last[2]):
            return
        if self._last is not None:
            before, was_positive, last_step = self._last
            change = abs(loss - before)
            self.total += change
            self.positive += change * was_positive
            self.undecided += change * (was_positive != bool(quantity > 0))
            self.num_steps += step - last_step
            self.num_positive_steps += (step - last_step) * was_positive
        self._last = (loss, bool(quantity > 0), step)

    def interrupt(self) -> None:
        """Start a new interval at the next measurement, because the loss before it was another function."""
        self._last = None

    @property
    def fraction(self) -> float:
        """The fraction of the loss change that began with a positive quantity; NaN before any change."""
        return self.positive / self.total if self.total > 0 else math.nan

    @property
    def fraction_undecided(self) -> float:
        """The fraction of the loss change in intervals whose ends have different signs; NaN before any change."""
        return self.undecided / self.total if self.total > 0 else math.nan

    @property
    def fraction_of_steps(self) -> float:
        """The fraction of steps in intervals that began with a positive quantity; NaN before any step."""
        return self.num_positive_steps / self.num_steps if self.num_steps else math.nan
