"""An estimate with its standard error."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfopt._record import Record


@dataclass(frozen=True)
class Estimate(Record):
    """A number or an array that is known up to a standard error, such as a mean over random draws.

    Attributes:
        value: The estimate.
        standard_error: Its standard error, of the same shape; NaN where it is unknown, as for a single draw.
        num_draws: Number of draws.
        batch_norm: How batch normalisation was computed, "batch" or "moving"; None for a matrix without a model.
    """

    value: Any
    standard_error: Any
    num_draws: int
    batch_norm: str | None = field(default=None, repr=False)

    @classmethod
    def from_draws(cls, draws: Any, batch_norm: str | None = None) -> "Estimate":
        """Return the mean of draws.

        Args:
            draws: Independent draws of a number or an array, of shape (k,) or (k, ...) with k >= 1.
            batch_norm: How batch normalisation was computed, "batch" or "moving"; None (default) without a model.

        Returns:
            The mean, and its standard error: the sample's standard deviation over the square root of k.
        """
        draws = np.asarray(draws, np.float64)
        mean = draws.mean(axis=0)
        error = draws.std(axis=0, ddof=1) / np.sqrt(len(draws)) if len(draws) > 1 else np.full(mean.shape, np.nan)
        if draws.ndim == 1:
            mean, error = float(mean), float(error)
        return cls(mean, error, len(draws), batch_norm)
