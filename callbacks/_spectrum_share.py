"""How many Hessian products a callback's share of time allows for the spectrum."""

from collections.abc import Callable
from typing import Any

from tfopt.callbacks import _time_share
from tfopt.callbacks._time_share import TimeShare

# In the middle of training, eigenvalues take at least this many products, or are put off.
FEWEST = 10
# At the end they are not put off.
FEWEST_AT_END = 6


class SpectrumShare:
    """The products for eigenvalues, at most `most`, where `others` (for trace and density) are always as many.

    With `is_exact` the share of time limits nothing.
    """

    def __init__(self, time: TimeShare, most: int, others: int, is_exact: bool) -> None:
        self.is_limited = time.is_limited and not is_exact
        self.product_seconds = 0.0  # 0 as long as it is unknown.
        self._time, self._most, self._others = time, most, others

    @property
    def cost_at_end(self) -> float:
        """The expected seconds of the spectrum after the last step."""
        products = min(self._most, FEWEST_AT_END) if self.is_limited else self._most
        return self.product_seconds * (products + self._others)

    def allowed(self, is_end: bool = False, num_ahead: float = 0.0) -> int | None:
        """Return the products that are allowed; None if they are too few."""
        # Before the first step, `num_ahead` products are expected to take as long as the whole training.
        if not (self.is_limited and self.product_seconds):
            return self._most
        reserved = self._time.cost if is_end else 2 * self._time.cost + self.cost_at_end
        left = self._time.left(num_ahead * self.product_seconds) - reserved
        count = min(int(left // self.product_seconds) - self._others, self._most)
        fewest = min(FEWEST_AT_END if is_end else FEWEST, self._most)
        count = self._time.agree(max(count, fewest if is_end else -1))
        return count if count >= fewest else None

    def try_product(self, multiply: Callable[[], Any]) -> None:
        """Measure the seconds of a product, if they are needed and unknown."""
        if self.is_limited and not self.product_seconds:
            begin = _time_share.clock()
            multiply()
            self.add(_time_share.clock() - begin, 1)

    def add(self, seconds: float, products: int) -> None:
        """Count products."""
        self._time.add_extra(seconds)
        if products:
            self.product_seconds = seconds / products
