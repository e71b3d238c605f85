"""Bootstrap intervals cover what they say, from few runs too."""

import numpy as np
import pytest

from tfopt.planning import Interval
from tfopt.planning.interval import bootstrap, expanded_percentiles


@pytest.mark.parametrize("level", [0.8, 0.9])
def test_intervals_from_eight_runs_cover(level):
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(400):
        runs = 3.0 + rng.standard_normal(8)
        found = bootstrap(lambda at, runs=runs: runs[at].mean(), 8, level, 200, seed)
        assert found.value == runs.mean()
        hits += found.low <= 3.0 <= found.high
    # Plain percentiles would cover 0.83 at level 0.9.
    assert abs(hits / 400 - level) < 3.5 * np.sqrt(level * (1 - level) / 400)


def test_arrays_are_bounded_entry_by_entry():
    runs = np.random.default_rng(1).standard_normal((6, 3)) * [1.0, 10.0, 100.0]
    found = bootstrap(lambda at: runs[at].mean(axis=0), 6, 0.9, 100, 0)
    assert found.low.shape == found.high.shape == (3,)
    assert (found.low < found.value).all()
    assert (found.value < found.high).all()
    assert (np.diff(found.high - found.low) > 0).all()


def test_what_is_unknown_or_endless_widens_the_interval():
    replicates = np.arange(100.0)
    replicates[:30] = np.inf
    low, high = expanded_percentiles(replicates, 8, 0.9)
    assert 30.0 <= low < 40.0
    assert high == np.inf
    replicates[:30] = np.nan
    assert expanded_percentiles(replicates, 8, 0.9) == (-np.inf, np.inf)


def test_intervals_read_like_numbers():
    assert repr(Interval(43.123, 38.25, 1234.6, 0.9)) == "43.1 (38.2 to 1,235)"
    assert repr(Interval(np.inf, 4000.0, np.inf, 0.9)) == "infinity (4,000 to infinity)"
    assert repr(Interval(np.nan, -np.inf, np.inf, 0.9)) == "unknown"
    assert repr(Interval(np.ones(3), np.ones(3), np.ones(3), 0.9)) == "Interval of shape (3,) of confidence 0.9"
