"""Which batch size pays off? The noisy quadratic model answers in seconds, before any training.

The problem is the paper's: 10,000 directions whose curvature falls as 1/i, with proportional noise. Replace its
curvatures and noise by those of your own problem. For SGD, momentum and averaged weights the script prints the fewest
steps to the target at every batch size, with their settings, and the critical batch size. It also prints the best
schedule at one batch size, ready for a Keras optimizer. It writes `runs/nqm_batch_size/figure.png`.

Run `python examples/nqm_batch_size.py`; it takes ten seconds.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from tfopt import _plotting, nqm

FAMILIES = {"SGD": "sgd", "momentum": "momentum", "averaged SGD": "ema"}


def main(argv: list[str] | None = None) -> dict[str, nqm.OptimalSettings]:
    """Compare algorithms over batch sizes; return the best settings of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/nqm_batch_size"))
    parser.add_argument("--target", type=float, default=0.01, help="loss to reach")
    parser.add_argument("--batch-size", type=int, default=64, help="batch size of the schedule")
    parser.add_argument("--smoke", action="store_true", help="fewer directions and batch sizes, as a test")
    arguments = parser.parse_args(argv)
    problem = nqm.NoisyQuadratic.power_law(num_bins=20 if arguments.smoke else 100)
    sizes = 64.0 ** np.arange(0, 4) if arguments.smoke else 4.0 ** np.arange(0, 10)
    best = {name: nqm.optimize(problem, family, sizes, arguments.target) for name, family in FAMILIES.items()}
    for name, settings in best.items():
        print(f"{name}: {settings}")
        critical = nqm.critical_batch_size(settings)
        print(f"Batch size {critical.batch_size:,.0f} uses twice the examples that small batches need.\n")
    schedule = nqm.optimal_schedule(problem, arguments.batch_size, arguments.target)
    keras.optimizers.SGD(schedule.to_keras())  # Pass this optimizer to `model.compile`.
    print(
        f"SGD with the best of {len(schedule.lengths)} pieces: {schedule.num_steps:,} steps at "
        f"batch size {arguments.batch_size}, from a rate of {schedule.learning_rates[0]:.3g} to "
        f"{schedule.learning_rates[-1]:.3g}"
    )
    figure, panels = _plotting.make_panels(3, height=9.0)
    bound = sizes, nqm.information_bound(problem, sizes, arguments.target)
    nqm.plot_steps_to_target(best, bound=bound, ax=panels[0])
    nqm.plot_learning_rates(best, ax=panels[1])
    schedule.plot(ax=panels[2])
    arguments.output.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.output / "figure.png", dpi=150)
    plt.close(figure)
    print(f"Figure: {arguments.output / 'figure.png'}")
    return best


if __name__ == "__main__":
    main()
