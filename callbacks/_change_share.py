"""Which share of a loss's way was made while something was so."""

import math
from dataclasses import dataclass


@dataclass
class ChangeShare:
    """Adds up the absolute change of a loss between measurements, apart by whether a quantity was positive.

    A stretch between two measurements counts by the sign at its beginning. Where the sign at its end is another one, it
    changed somewhere in between, and the stretch is also counted as undecided.

    Attributes:
        total: Sum of |dl|.
        positive: Of the stretches that began with a positive quantity.
        undecided: Of the stretches that ended with another sign than they began with.
        num_steps: Number of steps in all stretches.
        num_positive_steps: In those that began with a positive quantity.
    """

    total: float = 0.0
    positive: float = 0.0
    undecided: float = 0.0
    num_steps: int = 0
    num_positive_steps: int = 0
    _last: tuple[float, bool, int] | None = None

    def update(self, loss: float, quantity: float, step: int) -> None:
        """Take a measurement.

        Args:
            loss: The loss.
            quantity: The quantity whose sign counts.
            step: Number of the step; the same as before for a second measurement there, which changes nothing.
        """
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
        """Let the next measurement begin a new stretch: the loss before it was another function."""
        self._last = None

    @property
    def fraction(self) -> float:
        """The share of the change; NaN before there is any."""
        return self.positive / self.total if self.total > 0 else math.nan

    @property
    def fraction_undecided(self) -> float:
        """The share of the change that lies in stretches whose ends differ; NaN before there is any."""
        return self.undecided / self.total if self.total > 0 else math.nan

    @property
    def fraction_of_steps(self) -> float:
        """The share of steps; NaN before there are any."""
        return self.num_positive_steps / self.num_steps if self.num_steps else math.nan
