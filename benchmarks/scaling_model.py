"""The latency-bandwidth model: fitted to measured messages, it predicts sweeps on thousands of ranks.

A sum over N ranks of n bytes takes w + k(N) a + 2 (N - 1) / N n b seconds. Horovod looks for messages once per cycle: w
is the wait until all ranks agree on this message. There are k hops of latency a: 2 (N - 1) if the ranks form a ring, as
with Gloo, and 2 log2(N) in a tree, as MPI and NCCL choose for short messages. The n bytes are sent with a bandwidth of
1 / b. On two ranks a ring is a tree, and measurements with two cycles distinguish w from 2 a. A sweep takes c + d rows
/ N seconds of work, a sum for each layer, and one for the logs.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize

# Published seconds of a whole training, to a test accuracy of 64% on HIGGS and 95% on SVHN, by number of cores
# (Taylor et al. 2016, section 6).
PUBLISHED = {
    "HIGGS": {"rows": 10_500_000, "widths": "28-300-1", "seconds": {240: 304.0, 7200: 7.8}},
    "SVHN": {
        "rows": 120_290,
        "widths": "648-100-50-1",
        "seconds": {1: 750.0, 8: 116.0, 48: 25.0, 1010: 13.8},
    },
}
NUM_RANKS = np.unique(np.geomspace(1, 10_000, 60).round().astype(int))


@dataclass(frozen=True)
class Network:
    """The cost of a message.

    Attributes:
        wait: w, seconds, with Horovod's default cycle of a millisecond.
        latency: a, seconds.
        seconds_per_byte: b.
    """

    wait: float
    latency: float
    seconds_per_byte: float

    @classmethod
    def fit(cls, results: list[dict]) -> "Network":
        """Fit to messages between two ranks in results of `scaling.py` with different cycles, by relative errors."""
        rows = [
            (result["cycle_milliseconds"], 2.0, float(size), seconds)
            for result in results
            for size, seconds in result["messages"].items()
        ]
        *columns, seconds = np.array(rows).T
        found, _ = scipy.optimize.nnls(np.stack(columns, axis=1) / seconds[:, None], np.ones(len(rows)))
        return cls(*found.tolist())

    def sum_seconds(self, num_ranks: Any, num_bytes: float, in_ring: bool) -> Any:
        """Return the predicted seconds of a sum over `num_ranks`, a number or an array, in a ring or a tree."""
        hops = 2 * (num_ranks - 1) if in_ring else 2 * np.log2(num_ranks)
        wait = np.where(np.asarray(num_ranks) > 1, self.wait, 0.0)
        return wait + hops * self.latency + 2 * (num_ranks - 1) / num_ranks * num_bytes * self.seconds_per_byte


def predict_sweep(
    one: dict, two: dict, network: Network, shape: str, preset: str, rows: int, num_ranks: Any, in_ring: bool
) -> Any:
    """Return the predicted seconds of a sweep on `num_ranks`, a number or array, in a ring or a tree."""
    # `one` and `two` are the contents of `scaling_1_ranks.json` (computation) and `scaling_2_ranks.json` (messages).
    # `shape` are widths as in their names, and `preset` is "penalty" or "restarted in one block".
    cases = [(name, row) for name, row in one["sweeps"].items() if name.startswith(f"{shape}, {preset}, ")]
    counts = [int(name.split(", ")[-1].removesuffix(" rows").replace(",", "")) for name, _ in cases]
    (per_row, constant), _ = scipy.optimize.nnls(
        np.vander(np.array(counts, float), 2), np.array([row["seconds"] for _, row in cases])
    )
    num_sums = shape.count("-") + 1
    sums = num_sums * network.sum_seconds(num_ranks, two["sweeps"][cases[0][0]]["bytes_reduced"] / num_sums, in_ring)
    return constant + per_row * rows / num_ranks + sums


def draw(one: dict, two: dict, network: Network, path: Path) -> None:
    """Write a figure of predicted sweeps, measured sweeps, and the published trainings, from both scaling results."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    from tfopt import _plotting

    blue, orange, *_ = _plotting.COLORS
    figure, axes = _plotting.make_panels(1, 2, sharey=True)
    for axis, (name, published) in zip(axes, PUBLISHED.items(), strict=True):
        for in_ring, style in ((True, "-"), (False, "--")):
            seconds = predict_sweep(
                one, two, network, published["widths"], "penalty", published["rows"], NUM_RANKS, in_ring
            )
            axis.loglog(
                NUM_RANKS, seconds, style, color=blue, label=f"a sweep, {'ring' if in_ring else 'tree'}: predicted"
            )
        for size, result in ((1, one), (2, two)):
            found = [(n, r) for n, r in result["sweeps"].items() if n.startswith(f"{published['widths']}, penalty, ")]
            case, row = found[-1]
            count = int(case.split(", ")[-1].removesuffix(" rows").replace(",", ""))
            label = "a sweep, measured and scaled" if size == 1 else None
            axis.plot(size, row["seconds"] * published["rows"] / count, "o", color=blue, label=label)
        seconds = published["seconds"]
        axis.plot(list(seconds), list(seconds.values()), "s", color=orange, label="a training, published")
        axis.set(title=f"{name}, {published['widths']}", xlabel="ranks (published: cores)")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("seconds")
    _plotting.move_legends_above(figure)
    figure.savefig(path, dpi=150)
    plt.close(figure)
