"""Results of the quickstart beside accuracies: curvature, a convexity certificate, breakdown, batch sizes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import matplotlib.pyplot as plt
import numpy as np
from report import Report
from rich.table import Table

from tfopt import _plotting, datasets, nqm
from tfopt.callbacks import Convexity
from tfopt.communicator import SerialCommunicator
from tfopt.curvature import Objective
from tfopt.models import milne_regression, mlp
from tfopt.planning import BatchSizePlan, plan_batch_size
from tfopt.relative_trust import breakdown_profile, largest_safe_step

CURVATURE_HEADER = ["optimizer", "g'Hg / g'g", "lambda_min", "lambda_max", "convex share", "largest breakdown"]
BATCH_HEADER = ["algorithm", "steps at B = 1", "at B = 512", "at B = 262,144", "critical batch size"]
FAMILIES = {"SGD": "sgd", "momentum": "momentum", "averaged SGD": "ema"}
PLANNED_SIZES = (4, 32, 256)
PLAN: dict[str, Any] = {"budget_seconds": 60.0, "families": ["sgd", "momentum"], "num_draws": 50}
QUICK_PLAN: dict[str, Any] = {
    "budget_seconds": None,
    "families": ["sgd"],
    "num_draws": 20,
    "num_runs": 4,
    "num_matvecs": 8,
}
PLAN_HEADER = [
    "algorithm",
    *(f"steps at B = {size}" for size in PLANNED_SIZES),
    "critical batch size",
    "learning rate there",
]
BREAKDOWN_HEADER = ["network", "breakdown at eta = 0.01", "at 0.1", "largest safe step by the model"]


@dataclass
class Certified:
    """Fractions of the loss change of Milne's small regression that theorems certify as strongly convex."""

    paper: float  # By the paper's theorem.
    sharp: float  # By its sharper form.

    @property
    def sentence(self) -> str:
        """The result in words."""
        return (
            f"Milne's regression: the paper's theorem certifies strong convexity on {self.paper:.0%} of the loss "
            f"change, and its sharper form on {self.sharp:.0%}."
        )


def curvature_rows(runs: list[Any]) -> list[list[str]]:
    """Return a row for each run, under `CURVATURE_HEADER`, with the measured values at the end of training."""
    rows = []
    for run in runs:
        last = {name: series[-1] for name, series in run.convexity.history.items()}
        numbers = [last["convexity/curvature_along_gradient"], last["hessian/lambda_min"], last["hessian/lambda_max"]]
        fraction = last["convexity/fraction_along_gradient"]
        largest = max(run.breakdown.history["breakdown/relative_gradient_breakdown"])
        rows.append([run.name, *(f"{number:.3g}" for number in numbers), f"{fraction:.0%}", f"{largest:.2f}"])
    return rows


def curvature_table(runs: list[Any]) -> Table:
    """Return `curvature_rows` as a table for the terminal."""
    table = Table(*CURVATURE_HEADER)
    for row in curvature_rows(runs):
        table.add_row(*row)
    return table


def draw_curvature(runs: list[Any], path: Path) -> None:
    """Draw curvature along the gradient and extreme eigenvalues along training, one panel per optimizer."""
    figure, panels = _plotting.make_panels(-(-len(runs) // 2), 2, height=5.5, sharex=True, sharey=True)
    for run, panel in zip(runs, panels, strict=True):
        run.convexity.plot(ax=panel)
        panel.set(title=run.name)
        panel.set_yscale("symlog", linthresh=0.01)
        panel.label_outer()
    _plotting.move_legends_above(figure)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def certify_regression(seed: int, num_steps: int) -> Certified:
    """Train Milne's regression for some steps of gradient descent, and return the certified fractions."""
    x = np.random.default_rng(seed).uniform(-1, 1, (100, 1)).astype("float32")
    model = milne_regression(seed=2)
    model.set_weights([np.array([[2.5, -1.5]]), np.array([[1.5], [2.5]])])
    model.compile(keras.optimizers.SGD(0.01), loss="mse", jit_compile=False)
    zeros = np.zeros_like(x)
    convexity = Convexity(
        (x, zeros), every_n_steps=1, eigenvalues=False, certificate=True, communicator=SerialCommunicator()
    )
    model.fit(x, zeros, batch_size=100, epochs=num_steps, verbose=0, callbacks=[convexity])
    fractions = (convexity.history[f"convexity/fraction_certified_{kind}"][-1] for kind in ("paper", "sharp"))
    return Certified(*fractions)


def draw_breakdown(data: datasets.Dataset, path: Path, seed: int) -> list[list[str]]:
    """Draw the breakdown of untrained networks of 2 and 16 layers; return their rows under `BREAKDOWN_HEADER`."""
    figure, [ax] = _plotting.make_panels()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    rows = []
    for depth in (2, 16):
        model = mlp(data.input_shape, (64,) * (depth - 1), data.num_classes, kernel_initializer="orthogonal", seed=seed)
        probe = (data.x_train[:256], data.y_train[:256])
        objective = Objective(model, loss, probe, communicator=SerialCommunicator())
        profile = breakdown_profile(objective, np.linspace(0, 0.1, 11))
        profile.plot(ax, label=f"{depth} layers,")
        found = profile.largest_breakdown[[1, 10]]
        rows.append([f"{depth} layers", *(f"{value:.3g}" for value in found), f"{largest_safe_step(depth):.3f}"])
    _plotting.move_legends_above(figure)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return rows


def draw_batch_sizes(path: Path, num_bins: int, families: dict[str, str]) -> list[list[str]]:
    """Draw steps to a loss of 0.01 on the standard noisy quadratic; return the rows under `BATCH_HEADER`."""
    problem, sizes = nqm.NoisyQuadratic.power_law(num_bins=num_bins), 8.0 ** np.arange(7)
    best = {name: nqm.optimize(problem, family, sizes, 0.01, progress=False) for name, family in families.items()}
    figure, [ax] = _plotting.make_panels()
    nqm.plot_steps_to_target(best, bound=(sizes, nqm.information_bound(problem, sizes, 0.01)), ax=ax)
    _plotting.move_legends_above(figure)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    shown = np.isin(sizes, (1, 512, 262_144))
    rows = []
    for name, found in best.items():
        critical = nqm.critical_batch_size(found).batch_size
        rows.append([name, *(f"{steps:,.0f}" for steps in found.steps[shown]), f"{critical:,.0f}"])
    return rows


def draw_plan(data: datasets.Dataset, path: Path, seed: int, **options: Any) -> BatchSizePlan:
    """Plan the batch size of the network after a pilot of three epochs, draw the plan and return it."""
    model = mlp(data.input_shape, (64,), data.num_classes, seed=seed)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    initial_weights = model.get_weights()
    model.compile(keras.optimizers.SGD(0.1), loss, jit_compile=False)
    model.fit(data.x_train, data.y_train, epochs=3, batch_size=16, verbose=0)
    objective = Objective(model, loss, (data.x_train, data.y_train), communicator=SerialCommunicator())
    plan = plan_batch_size(objective, initial_weights=initial_weights, seed=seed, progress=False, **options)
    figure, [ax] = _plotting.make_panels()
    plan.plot(ax)
    _plotting.move_legends_above(figure)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return plan


def plan_rows(plan: BatchSizePlan) -> list[list[str]]:
    """Return a row for each algorithm of the plan, under `PLAN_HEADER`."""
    rows = []
    for family in plan.families:
        steps = (f"{plan.suggest(size, family).steps:,.0f}" for size in PLANNED_SIZES)
        found = plan.suggest(family=family)
        rows.append([family, *steps, f"{plan.critical_batch_size[family]!r}", f"{found.learning_rate:.2g}"])
    return rows


@dataclass
class Findings:
    """The results beside accuracies: the certified regression, two tables, and the plan for the network."""

    certified: Certified
    slopes: list[list[str]]  # Rows of the table of breakdown by depth.
    batch_sizes: list[list[str]]  # Rows of the table of steps by batch size.
    plan: BatchSizePlan

    @property
    def printed(self) -> list[Any]:
        """The parts to print in a terminal."""
        general = Table(*BATCH_HEADER, title="steps to the target of a noisy quadratic problem")
        for row in self.batch_sizes:
            general.add_row(*row)
        own = Table(*PLAN_HEADER, title=f"predicted for this network: steps to a loss of {self.plan.target_loss:.3g}")
        for row in plan_rows(self.plan):
            own.add_row(*row)
        return [self.certified.sentence, general, own]


def find(runs: list[Any], data: datasets.Dataset, folder: Path, seed: int, is_smoke: bool) -> Findings:
    """Compute and draw all results; a smoke run does little."""
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
    """Add the sections on these results, whose figures are in `folder`, to the report."""
    plan = findings.plan
    report.add_text(
        "The callbacks Convexity and GradientBreakdown measured these values on 256 training rows. g'Hg / g'g is the "
        "curvature of the loss along its gradient. lambda_min and lambda_max are the signed ends of the Hessian's "
        "spectrum. All three are from the end of training. A negative eigenvalue means that the loss is not convex "
        "there, but it may still be convex along the gradient. The convex share is the fraction of the total loss "
        "change during which it was. The largest breakdown is the largest relative change of a layer's gradient in a "
        "single step. At 1 or more, the gradient says nothing about the end of the step.",
        heading="Curvature along training",
    )
    report.add_table(CURVATURE_HEADER, curvature_rows(runs))
    report.add_figure(folder / "curvature.png", "Curvature along the gradient and extreme eigenvalues along training")
    report.add_text(
        f"{findings.certified.sentence} The network has one input, two hidden ReLUs, no biases, squared loss and "
        "weight decay. It is the smallest network for which the question makes sense. In the certified region every "
        "critical point is an isolated local minimum.",
        heading="Where convexity is proven",
    )
    report.add_text(
        "Two untrained networks, of 2 and of 16 layers. Every layer moves against its gradient by the same relative "
        "step eta. The gradient of the deeper network breaks down at smaller steps, and faster than linearly. The step "
        "that deep relative trust allows shrinks with depth. This is why Fromage takes small relative steps.",
        heading="Breakdown of gradients by depth",
    )
    report.add_table(BREAKDOWN_HEADER, findings.slopes)
    report.add_figure(folder / "breakdown.png", "Relative gradient breakdown along layer-wise normalised steps")
    report.add_text(
        "The noisy quadratic model has 10,000 directions whose curvature falls as 1/i, with proportional noise. The "
        "figure shows the fewest steps to a loss of 0.01, with the best rate, momentum or average. At small batches "
        "averaging saves many steps and momentum few; at large batches momentum saves many and averaging few. The "
        "critical batch size uses twice the examples that small batches need. No algorithm can go below the bound.",
        heading="Steps against batch size",
    )
    report.add_table(BATCH_HEADER, findings.batch_sizes)
    report.add_figure(folder / "batch_sizes.png", "Fewest steps to the target against batch size")
    report.add_text(
        "The same prediction for the network of this page. After a pilot of three epochs a noisy quadratic was fitted "
        f"to its loss, in {plan.fit.seconds:.0f} seconds. It predicts the steps from the first weights to the pilot's "
        f"loss of {plan.target_loss:.3g}. Shaded areas are bootstrap intervals over probes and rows. There are "
        f"{plan.fit.num_examples:,.0f} rows, and a batch of all of them has no noise.",
        heading="Which batch size for this network",
    )
    report.add_table(PLAN_HEADER, plan_rows(plan))
    report.add_figure(folder / "plan.png", "Predicted steps against batch size, with intervals")
