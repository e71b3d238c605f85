"""Zhang et al. 2019 (arXiv 1907.04164): what the noisy quadratic model says about batch size, all figures at once.

The problem has curvatures 1/i and noise variances 1/i, i up to 10,000. The figures show the steps to a loss of 0.01
with momentum and preconditioning, with averaged weights, and with the best schedule; the best rates; and losses along
training. `--quick` merges the curvatures into 100 bins, `--full` keeps all of them. Every number of steps is an exact
first passage.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from reproduction import Reproduction, start

from tfopt import _plotting, nqm

TARGET = 0.01
POWERS = (0.0, 0.25, 0.5, 0.75)
CURVE_SIZES = (8.0, 4096.0)  # Batch sizes of the training curves.


@dataclass
class Found:
    """All computed results.

    Attributes:
        sizes: Batch sizes.
        momentum: Best SGD with momentum, by preconditioner power.
        sgd: Best plain SGD, by preconditioner power.
        ema: Best averaged SGD, by preconditioner power.
        schedules: Best piecewise constant rates, for each batch size.
        bound: Steps that no algorithm can beat.
        seconds: Duration of each part.
    """

    sizes: np.ndarray
    momentum: dict[float, nqm.OptimalSettings] = field(default_factory=dict)
    sgd: dict[float, nqm.OptimalSettings] = field(default_factory=dict)
    ema: dict[float, nqm.OptimalSettings] = field(default_factory=dict)
    schedules: list[nqm.Schedule] = field(default_factory=list)
    bound: np.ndarray = field(default_factory=lambda: np.zeros(0))
    seconds: dict[str, float] = field(default_factory=dict)


def compute(problem: nqm.NoisyQuadratic, sizes: np.ndarray, all_powers: tuple[float, ...]) -> Found:
    """Search the settings for all preconditioner powers, among which 0 and 0.5; seconds include compilation."""
    found = Found(sizes)

    def search(family: str, powers: tuple[float, ...]) -> dict[float, nqm.OptimalSettings]:
        def one(power: float) -> nqm.OptimalSettings:
            return nqm.optimize(problem, family, sizes, TARGET, preconditioner_power=power, progress=False)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return dict(zip(powers, pool.map(one, powers), strict=True))

    for name, family, powers in (
        ("momentum", "momentum", all_powers),
        ("sgd", "sgd", all_powers),
        ("ema", "ema", (0.0, 0.5)),
    ):
        begin = time.perf_counter()
        setattr(found, name, search(family, powers))
        found.seconds[name] = time.perf_counter() - begin
    begin = time.perf_counter()
    found.schedules = [nqm.optimal_schedule(problem, size, TARGET, progress=False) for size in sizes]
    found.seconds["schedules"] = time.perf_counter() - begin
    found.bound = nqm.information_bound(problem, sizes, TARGET)
    return found


def compare(run: Reproduction, problem: nqm.NoisyQuadratic, found: Found) -> None:
    """Compare the paper's findings with the results, and add the claims to the run."""
    sgd, momentum, ema = found.sgd[0.0], found.momentum[0.0], found.ema[0.0]
    rates = 0.1 * sgd.algorithm.learning_rate[0] * np.linspace(0.95, 1.05, 41)
    tie = nqm.steps_to_target(problem, nqm.Algorithm(rates, 0.9), sgd.batch_size[0], TARGET).min() / sgd.steps[0]
    gain = sgd.steps / momentum.steps
    run.compare(
        "momentum and plain SGD tie at small batches",
        "same steps at the same a / (1 - momentum)",
        f"momentum 0.9: {tie:.4f} of SGD's steps at B = 1; the best momentum, {momentum.algorithm.momentum[0]:.6f}: "
        f"{1 / gain[0]:.3f}",
        abs(tie - 1) < 0.01,
    )
    run.compare("momentum wins at large batches", "yes", f"{gain[-1]:.0f} times fewer steps", gain[-1] > 10)
    critical = {power: nqm.critical_batch_size(curve).batch_size for power, curve in found.sgd.items()}
    text = ", ".join(f"p = {power:g}: {value:,.0f}" for power, value in critical.items())
    rising = list(critical.values()) == sorted(critical.values())
    run.compare("preconditioning extends perfect scaling", "critical batch size grows with p", text, rising)
    averaged = nqm.critical_batch_size(ema).batch_size
    run.compare(
        "averaging saves steps at small batches, not at large ones",
        "yes; the critical batch size falls",
        f"{sgd.steps[0] / ema.steps[0]:.1f} times fewer at B = 1, {sgd.steps[-1] / ema.steps[-1]:.2f} at the largest; "
        f"critical batch size {averaged:,.0f} instead of {critical[0.0]:,.0f}",
        sgd.steps[0] / ema.steps[0] > 2 and sgd.steps[-1] / ema.steps[-1] < 1.1 and averaged < critical[0.0],
    )
    small = found.sizes <= 0.1 * critical[0.0]
    slope = np.polyfit(np.log(found.sizes[small]), np.log(sgd.algorithm.learning_rate[small]), 1)[0]
    run.compare(
        "the best rate grows with the batch",
        "linearly, up to the critical batch size",
        f"as B^{slope:.2f} up to a tenth of it; at most {sgd.algorithm.learning_rate.max():.2f}, the limit being 2",
        abs(slope - 1) < 0.05,
    )
    compare_schedules(run, problem, found)


def compare_schedules(run: Reproduction, problem: nqm.NoisyQuadratic, found: Found) -> None:
    """Compare the paper's findings on schedules and bounds with the results, and add the claims to the run."""
    limit = float(nqm.largest_stable_learning_rate(problem))
    large = [schedule for schedule in found.schedules if schedule.batch_size >= 16]
    first = all(schedule.learning_rates[0] > 0.999 * limit for schedule in large)
    steps = np.array([schedule.num_steps for schedule in found.schedules])
    constant = found.sgd[0.0].steps
    run.compare(
        "the best schedule begins at the largest stable rate",
        "yes, and decays at the end",
        f"{'from B = 16 on' if first else 'not from B = 16 on'}; at B = 1 it begins at "
        f"{found.schedules[0].learning_rates[0]:.2f} of {limit:g}",
        first and found.schedules[0].learning_rates[0] > 0.999 * limit,
        partly=first,
    )
    run.compare(
        "it closes most of the gap to the bound at small batches",
        "and gains nothing at large ones",
        f"B = 1: {constant[0]:,.0f} steps become {steps[0]:,} (bound {found.bound[0]:,.0f}); "
        f"B = {found.sizes[-1]:,.0f}: {constant[-1]:,.0f} become {steps[-1]:,}",
        bool(steps[0] < 2 * found.bound[0] and steps[-1] > 0.97 * constant[-1]),
    )
    published = problem.dim / (2 * TARGET * found.sizes[0])
    run.compare(
        "no algorithm takes fewer steps than",
        f"{published:,.0f} / B, d / (2 C B)",
        f"{np.ceil(found.bound[0] * found.sizes[0]):,.0f} / B, with what is known of theta(0)",
        bool(found.bound[0] <= published),
    )


def draw(problem: nqm.NoisyQuadratic, found: Found) -> Any:
    """Return a figure with six panels."""
    figure, panels = _plotting.make_panels(6, height=16.0)
    draw_training(problem, found, panels[0])
    bound = found.sizes, found.bound
    curves = {f"momentum, p = {power:g}": curve for power, curve in found.momentum.items()}
    nqm.plot_steps_to_target({"SGD, p = 0": found.sgd[0.0], **curves}, bound=bound, ax=panels[1])
    panels[1].set_title("momentum and preconditioning")
    nqm.plot_learning_rates({"SGD": found.sgd[0.0], "momentum": found.momentum[0.0]}, ax=panels[2])
    panels[2].set(title="best learning rates, p = 0", ylabel="a / (1 - momentum)")
    pairs = {f"{name}, p = {power:g}": curves[power] for power in (0.0, 0.5) for name, curves in
             (("SGD", found.sgd), ("averaged", found.ema))}  # fmt: skip
    nqm.plot_steps_to_target(pairs, bound=bound, ax=panels[3])
    panels[3].set_title("averaged weights")
    scheduled = found.sizes, np.array([schedule.num_steps for schedule in found.schedules])
    lines = {"constant rate": found.sgd[0.0], "best of 50 pieces": scheduled}
    nqm.plot_steps_to_target(lines, bound=bound, ax=panels[4])
    panels[4].plot(found.sizes, problem.dim / (2 * TARGET * found.sizes), ":", color="0.5", label="d / (2 C B)")
    _plotting.add_legend(panels[4])
    panels[4].set_title("schedules")
    some = found.schedules[:: max(1, len(found.schedules) // 5)]
    nqm.plot_schedule({f"B = {schedule.batch_size:,.0f}": schedule for schedule in some}, ax=panels[5])
    panels[5].set_title("best schedules")
    return figure


def draw_training(problem: nqm.NoisyQuadratic, found: Found, ax: Any) -> None:
    """Draw losses along training, of SGD and of momentum at the same a / (1 - momentum), with samples."""
    steps = np.unique(np.geomspace(1, 1_000_000, 200).astype(int))
    curves: dict[str, Any] = {}
    for size in CURVE_SIZES:
        index = int(np.argmin(np.abs(np.log(found.sizes / size))))
        rate = float(found.sgd[0.0].algorithm.learning_rate[index])
        for momentum in (0.0, 0.9):
            losses = nqm.expected_loss(problem, nqm.Algorithm(rate * (1 - momentum), momentum), size, steps)
            curves[f"B = {size:g}, momentum {momentum:g}"] = (steps, losses)
    small = nqm.NoisyQuadratic.power_law(200)
    sampled = nqm.monte_carlo(small, nqm.Algorithm(0.05, 0.9), CURVE_SIZES[0], 300, num_trajectories=100)
    curves["samples, d = 200"] = sampled
    nqm.plot_training_curves(curves, target_loss=TARGET, ax=ax)
    ax.set_title(f"loss; samples at B = {CURVE_SIZES[0]:g}, momentum 0.9")


def main(argv: list[str] | None = None) -> Reproduction:
    """Run the reproduction."""
    run = start("nqm_figures", "Zhang et al. 2019: the noisy quadratic model", argv, __doc__, data="")
    problem = nqm.NoisyQuadratic.power_law(num_bins=run.choose(20, 100, None))
    sizes = run.choose(16.0 ** np.arange(0, 5), 4.0 ** np.arange(0, 10), 4.0 ** np.arange(0, 10))
    begin = time.perf_counter()
    found = compute(problem, sizes, run.choose((0.0, 0.5), POWERS, POWERS))
    compare(run, problem, found)
    figure = draw(problem, found)
    found.seconds["all, with figures"] = time.perf_counter() - begin
    for name in ("sgd", "momentum", "ema"):
        run.results[name] = {str(power): curve.steps.tolist() for power, curve in getattr(found, name).items()}
    run.results["schedules"] = [schedule.num_steps for schedule in found.schedules]
    run.results |= {"batch_sizes": sizes.tolist(), "bound": found.bound.tolist(), "seconds": found.seconds}
    print({name: round(value, 1) for name, value in found.seconds.items()}, "seconds")
    return run.finish(figure)


if __name__ == "__main__":
    main()
