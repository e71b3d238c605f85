"""What the quickstart shows beside accuracies: curvature, a convexity certificate, breakdown, batch sizes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import matplotlib.pyplot as plt
import numpy as np
from report import Report
from rich.table import Table
from tfopt.callbacks import Convexity
from tfopt.models import milne_regression, mlp

from tfopt import datasets, nqm
from tfopt.communicator import SerialCommunicator
from tfopt.planning import BatchSizePlan, plan_batch_size
from tfopt.relative_trust import breakdown_profile, largest_safe_step

CURVATURE_HEADER = ["optimizer", "g'Hg / g'g", "lambda_min", "lambda_max", "convex share", "largest breakdown"]
BATCH_HEADER = ["algorithm", "steps at B = 1", "at B = 512", "at B = 262,144", "critical batch size"]
FAMILIES = {"SGD": "sgd", "momentum": "momentum", "averaged SGD": "ema"}
PLANNED_SIZES = (4, 32, 256)
PLAN: dict[str, Any] = {"budget_seconds": 12.0, "families": ["sgd", "momentum"], "draws": 50}
QUICK_PLAN: dict[str, Any] = {"budget_seconds": None, "families": ["sgd"], "draws": 20, "num_runs": 4, "num_matvecs": 8}
PLAN_HEADER = [
    "algorithm",
    *(f"steps at B = {size}" for size in PLANNED_SIZES),
    "critical batch size",
    "learning rate there",
]
BREAKDOWN_HEADER = ["network", "breakdown at eta = 0.01", "at 0.1", "largest safe step by the model"]


@dataclass
class Certified:
    """Where the loss of Milne's small regression is provably convex along training.

    Attributes:
        paper: Share of the loss change that the paper's theorem certifies.
        sharp: Share by the sharper form of it.
    """

    paper: float
    sharp: float

    @property
    def sentence(self) -> str:
        """The result in words."""
        return (
            f"Milne's regression: on {self.paper:.0%} of the change of its loss the paper's theorem certifies strong "
            f"convexity, on {self.sharp:.0%} the sharper form of it."
        )


def curvature_rows(runs: list[Any]) -> list[list[str]]:
    """Return what was measured at the end of training.

    Args:
        runs: The runs, with their callbacks.

    Returns:
        A row for each, under `CURVATURE_HEADER`.
    """
    rows = []
    for run in runs:
        last = {name: series[-1] for name, series in run.convexity.history.items()}
        numbers = [last["convexity/curvature_along_gradient"], last["hessian/lambda_min"], last["hessian/lambda_max"]]
        share = last["convexity/fraction_along_gradient"]
        largest = max(run.breakdown.history["breakdown/relative_gradient_breakdown"])
        rows.append([run.name, *(f"{number:.3g}" for number in numbers), f"{share:.0%}", f"{largest:.2f}"])
    return rows


def curvature_table(runs: list[Any]) -> Table:
    """Return the table for the terminal.

    Args:
        runs: The runs, with their callbacks.

    Returns:
        The table.
    """
    table = Table(*CURVATURE_HEADER)
    for row in curvature_rows(runs):
        table.add_row(*row)
    return table


def draw_curvature(runs: list[Any], path: Path) -> None:
    """Draw curvature along the gradient and extreme eigenvalues along training, one panel per optimizer.

    Args:
        runs: The runs, with their callbacks.
        path: The PNG file to write.
    """
    figure, panels = plt.subplots(1, len(runs), figsize=(3.4 * len(runs), 3.6), sharey=True, layout="constrained")
    for run, panel in zip(runs, panels, strict=True):
        run.convexity.plot(ax=panel)
        panel.set(title=run.name)
        panel.set_yscale("symlog", linthresh=0.01)
        panel.label_outer()
        if run is not runs[0]:
            panel.get_legend().remove()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def certify_regression(seed: int, num_steps: int) -> Certified:
    """Train Milne's regression, and certify what can be certified.

    Args:
        seed: Seed of the data.
        num_steps: Number of steps of gradient descent.

    Returns:
        The certified shares.
    """
    x = np.random.default_rng(seed).uniform(-1, 1, (100, 1)).astype("float32")
    model = milne_regression(seed=2)
    model.set_weights([np.array([[2.5, -1.5]]), np.array([[1.5], [2.5]])])
    model.compile(keras.optimizers.SGD(0.01), loss="mse", jit_compile=False)
    zeros = np.zeros_like(x)
    convexity = Convexity(
        (x, zeros), every_n_steps=1, eigenvalues=False, certificate=True, communicator=SerialCommunicator()
    )
    model.fit(x, zeros, batch_size=100, epochs=num_steps, verbose=0, callbacks=[convexity])
    shares = (convexity.history[f"convexity/fraction_certified_{kind}"][-1] for kind in ("paper", "sharp"))
    return Certified(*shares)


def draw_breakdown(data: datasets.Dataset, path: Path, seed: int) -> list[list[str]]:
    """Draw the breakdown profiles of an untrained network of 2 layers and one of 16.

    Args:
        data: What to measure on.
        path: The PNG file to write.
        seed: Seed of the weights.

    Returns:
        A row for each network, under `BREAKDOWN_HEADER`.
    """
    figure, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    rows = []
    for depth in (2, 16):
        model = mlp(data.input_shape, (64,) * (depth - 1), data.num_classes, kernel_initializer="orthogonal", seed=seed)
        etas = np.linspace(0, 0.1, 11)
        profile = breakdown_profile(
            model, loss, data.x_train[:256], data.y_train[:256], etas, communicator=SerialCommunicator()
        )
        profile.plot(ax, label=f"{depth} layers,")
        found = profile.largest_breakdown[[1, 10]]
        rows.append([f"{depth} layers", *(f"{value:.3g}" for value in found), f"{largest_safe_step(depth):.3f}"])
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return rows


def draw_batch_sizes(path: Path, num_bins: int, families: dict[str, str]) -> list[list[str]]:
    """Draw steps to a loss of 0.01 against batch size on the standard noisy quadratic problem.

    Args:
        path: The PNG file to write.
        num_bins: In how many bins its 10,000 curvatures are merged.
        families: Which algorithms, by what they are called in the table.

    Returns:
        A row for each algorithm, under `BATCH_HEADER`.
    """
    problem, sizes = nqm.NoisyQuadratic.power_law(num_bins=num_bins), 8.0 ** np.arange(7)
    best = {name: nqm.optimize(problem, family, sizes, 0.01, progress=False) for name, family in families.items()}
    figure, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
    nqm.plot_steps_to_target(best, bound=(sizes, nqm.information_bound(problem, sizes, 0.01)), ax=ax)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    shown = np.isin(sizes, (1, 512, 262_144))
    rows = []
    for name, found in best.items():
        critical = nqm.critical_batch_size(found).batch_size
        rows.append([name, *(f"{steps:,.0f}" for steps in found.steps[shown]), f"{critical:,.0f}"])
    return rows


def draw_plan(data: datasets.Dataset, path: Path, seed: int, **options: Any) -> BatchSizePlan:
    """Plan the batch size of the network on digits after a pilot of three epochs, and draw the plan.

    Args:
        data: What to train on.
        path: The PNG file to write.
        seed: Seed of all randomness.
        **options: Of `plan_batch_size`.

    Returns:
        The plan.
    """
    model = mlp(data.input_shape, (64,), data.num_classes, seed=seed)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    initial_weights = model.get_weights()
    model.compile(keras.optimizers.SGD(0.1), loss, jit_compile=False)
    model.fit(data.x_train, data.y_train, epochs=3, batch_size=16, verbose=0)
    plan = plan_batch_size(
        model,
        (data.x_train, data.y_train),
        loss,
        initial_weights=initial_weights,
        seed=seed,
        progress=False,
        communicator=SerialCommunicator(),
        **options,
    )
    figure, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
    plan.plot(ax)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return plan


def plan_rows(plan: BatchSizePlan) -> list[list[str]]:
    """Return what the plan says at some batch sizes.

    Args:
        plan: The plan.

    Returns:
        A row for each algorithm, under `PLAN_HEADER`.
    """
    rows = []
    for family in plan.families:
        steps = (f"{plan.suggest(size, family).steps:,.0f}" for size in PLANNED_SIZES)
        found = plan.suggest(family=family)
        rows.append([family, *steps, f"{plan.critical_batch_size[family]!r}", f"{found.learning_rate:.2g}"])
    return rows


@dataclass
class Findings:
    """What the quickstart finds beside accuracies.

    Attributes:
        certified: Where the loss of the regression is provably convex.
        slopes: The rows of the table of breakdown by depth.
        batch_sizes: The rows of the table of steps by batch size.
        plan: The plan for the network.
    """

    certified: Certified
    slopes: list[list[str]]
    batch_sizes: list[list[str]]
    plan: BatchSizePlan

    @property
    def printed(self) -> list[Any]:
        """What to print in a terminal."""
        general = Table(*BATCH_HEADER, title="steps to the target of a noisy quadratic problem")
        for row in self.batch_sizes:
            general.add_row(*row)
        own = Table(*PLAN_HEADER, title=f"predicted for this network: steps to a loss of {self.plan.target_loss:.3g}")
        for row in plan_rows(self.plan):
            own.add_row(*row)
        return [self.certified.sentence, general, own]


def find(runs: list[Any], data: datasets.Dataset, folder: Path, seed: int, is_smoke: bool) -> Findings:
    """Find everything, and draw it.

    Args:
        runs: The runs, with their callbacks.
        data: What was trained on.
        folder: Where figures go.
        seed: Seed of all randomness.
        is_smoke: Whether to do little, to see that it runs.

    Returns:
        The findings.
    """
    draw_curvature(runs, folder / "curvature.png")
    return Findings(
        certified=certify_regression(seed, num_steps=10 if is_smoke else 100),
        slopes=draw_breakdown(data, folder / "breakdown.png", seed),
        batch_sizes=draw_batch_sizes(
            folder / "batch_sizes.png",
            num_bins=20 if is_smoke else 100,
            families={"SGD": "sgd"} if is_smoke else FAMILIES,
        ),
        plan=draw_plan(data, folder / "plan.png", seed, **(QUICK_PLAN if is_smoke else PLAN)),
    )


def add_to_report(report: Report, runs: list[Any], findings: Findings, folder: Path) -> None:
    """Add the sections to the report.

    Args:
        report: The report.
        runs: The runs, with their callbacks.
        findings: The findings.
        folder: Where the figures are.
    """
    plan = findings.plan
    report.add_text(
        "Measured on 256 training rows by the callbacks Convexity and GradientBreakdown. g'Hg / g'g is the curvature "
        "of the loss along its gradient, lambda_min and lambda_max are the signed ends of the Hessian's spectrum, all "
        "at the end of training; negative eigenvalues mean that the loss is not convex there, though it may be so "
        "along the gradient: the convex share is that part of the loss's change during which it was. The largest "
        "breakdown is how much a single step has changed the gradient of a layer, relatively; at 1 or more, the "
        "gradient says nothing about the end of the step.",
        heading="Curvature along training",
    )
    report.add_table(CURVATURE_HEADER, curvature_rows(runs))
    report.add_figure(folder / "curvature.png", "Curvature along the gradient and extreme eigenvalues along training")
    report.add_text(
        f"{findings.certified.sentence} It is the smallest network for which the question makes sense: one input, two "
        "hidden ReLUs, no biases, squared loss, weight decay. On the certified part any critical point would be an "
        "isolated local minimum.",
        heading="Where convexity is proven",
    )
    report.add_text(
        "Untrained networks of 2 and of 16 layers, all of whose layers are moved against their gradients by the same "
        "relative step eta. With depth the gradient breaks down sooner, faster than linearly; the step that deep "
        "relative trust allows shrinks with it. This is why Fromage takes relative steps, and why small ones.",
        heading="Breakdown of gradients by depth",
    )
    report.add_table(BREAKDOWN_HEADER, findings.slopes)
    report.add_figure(folder / "breakdown.png", "Relative gradient breakdown along layer-wise normalised steps")
    report.add_text(
        "The noisy quadratic model: 10,000 directions whose curvature falls as 1/i, with noise in proportion; the "
        "fewest steps to a loss of 0.01, each with the best rate, momentum or average. At small batches momentum "
        "saves little and averaging much; at large ones it is the other way round. The critical batch size is where "
        "twice the examples are used that small batches need. No algorithm can be below the bound.",
        heading="Steps against batch size",
    )
    report.add_table(BATCH_HEADER, findings.batch_sizes)
    report.add_figure(folder / "batch_sizes.png", "Fewest steps to the target against batch size")
    report.add_text(
        "The same for the network of this page: after a pilot of three epochs a noisy quadratic was fitted to its "
        f"loss, in {plan.fit.seconds:.0f} seconds, and predicts the steps from the first weights to the pilot's loss "
        f"of {plan.target_loss:.3g}. Shaded are intervals from a bootstrap over probes and rows. There are "
        f"{plan.fit.num_examples:,.0f} rows: a batch of all of them has no noise.",
        heading="Which batch size for this network",
    )
    report.add_table(PLAN_HEADER, plan_rows(plan))
    report.add_figure(folder / "plan.png", "Predicted steps against batch size, with intervals")
