"""The batch size and learning rate to train a model with, and the predicted steps."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from tfopt import _plotting, nqm
from tfopt._checks import check_choice, check_integer, check_label
from tfopt._record import Record
from tfopt.planning.interval import Interval, describe
from tfopt.planning.noisy_quadratic_fit import NoisyQuadraticFit
from tfopt.planning.prediction import find_best

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas


@dataclass(frozen=True)
class Suggestion(Record):
    """Settings for one batch size.

    Attributes:
        family: The kind of algorithm, see `plan_batch_size`.
        batch_size: B.
        learning_rate: For Keras's SGD.
        momentum: For Keras's SGD; 0 for none.
        nesterov: Whether momentum is Nesterov's.
        ema_decay: Decay of the average of weights; 0 for none.
        steps: Predicted steps to the target; infinity if it is out of reach.
        examples: Predicted examples, steps times B.
    """

    family: str
    batch_size: int
    learning_rate: float
    momentum: float
    nesterov: bool
    ema_decay: float
    steps: float
    examples: float


@dataclass(frozen=True, eq=False, repr=False)
class BatchSizePlan(Record):
    """Predicted steps to a target loss for every batch size, with intervals, and the settings to train with.

    Intervals cover the randomness of rows and random vectors in the fit. They do not cover that a network's loss is no
    quadratic.

    Attributes:
        fit: The fit on which all predictions rest.
        target_loss: The model's loss at which training is to end.
        batch_sizes: B, of shape (k,).
        curves: For each family its best settings, of shape (k,), as `tfopt.nqm.optimize` returns them, with this plan's
            B.
        steps: For each family the steps, of shape (k,).
        critical_batch_size: For each family the batch size that uses twice the fewest examples; infinity if that is
            above the largest batch size.
        noise_scale: The simple noise scale, for comparison.
        largest_momentum: Largest momentum that was tried.
    """

    fit: NoisyQuadraticFit
    target_loss: float
    batch_sizes: np.ndarray
    curves: dict[str, nqm.OptimalSettings]
    steps: dict[str, Interval]
    critical_batch_size: dict[str, Interval]
    noise_scale: Interval
    largest_momentum: float

    @property
    def families(self) -> tuple[str, ...]:
        """The kinds of algorithms in the plan."""
        return tuple(self.curves)

    def suggest(self, batch_size: int | None = None, family: str | None = None) -> Suggestion:
        """Return settings to train with.

        Args:
            batch_size: B. None (default) means the largest of the plan's batch sizes up to the critical one; larger
                ones use at least twice the fewest examples.
            family: One of the plan's families. None (default) means "momentum" if the plan has it, else its first
                family.

        Returns:
            The settings.

        Raises:
            TypeError: `batch_size` is no integer.
            ValueError: An argument is out of its range, or the target is out of reach at this batch size.
        """
        family = self._check_family(family)
        curve = self.curves[family]
        if batch_size is None:
            reaches = np.isfinite(curve.steps)
            allowed = np.flatnonzero(reaches & (self.batch_sizes <= self.critical_batch_size[family].value))
            # If the critical batch size is unknown (NaN), the smallest that reaches the target is suggested.
            index = int(allowed[-1]) if len(allowed) else int(np.argmax(reaches))
        else:
            batch_size = self._check_size(batch_size)
            index = int(np.argmax(self.batch_sizes == batch_size))
            if self.batch_sizes[index] != batch_size:
                curve, index = find_best(self.fit, family, [batch_size], self.target_loss, self.largest_momentum), 0
        size = int(self.batch_sizes[index]) if batch_size is None else batch_size
        if not np.isfinite(curve.steps[index]):
            raise ValueError(
                f"No setting reaches a loss of {self.target_loss:g} at batch_size={size}. Take a larger one"
            )
        chosen = curve.algorithm.take([index])
        rate, momentum, decay, _ = (float(part[0]) for part in chosen.settings)
        steps = float(curve.steps[index])
        return Suggestion(family, size, rate, momentum, chosen.nesterov, decay, steps, steps * size)

    def make_optimizer(self, batch_size: int | None = None, family: str | None = None) -> keras.optimizers.SGD:
        """Build the suggested optimizer.

        Args:
            batch_size: As for `suggest`.
            family: As for `suggest`.

        Returns:
            A Keras optimizer for `model.compile`. With averaged weights it keeps the average itself, from the first
            step on, and Keras copies it to the model when `fit` ends.

        Raises:
            TypeError: As for `suggest`.
            ValueError: As for `suggest`.
        """
        found = self.suggest(batch_size, family)
        averaging = {"use_ema": True, "ema_momentum": found.ema_decay} if found.ema_decay else {}
        return keras.optimizers.SGD(found.learning_rate, found.momentum, nesterov=found.nesterov, **averaging)

    def make_schedule(self, batch_size: int | None = None, num_pieces: int = 10) -> nqm.Schedule:
        """Find the best piecewise constant learning rate for plain SGD at one batch size.

        Args:
            batch_size: As for `suggest`, for "sgd" if the plan has it.
            num_pieces: Largest number of pieces, an integer >= 1. Default 10.

        Returns:
            The schedule; its `to_keras()` is a learning rate for Keras's SGD. Its `batch_size` is the effective one
            (`NoisyQuadraticFit.effective_batch_size`).

        Raises:
            TypeError: As for `suggest`.
            ValueError: As for `suggest`.
        """
        if batch_size is None:
            batch_size = self.suggest(family="sgd" if "sgd" in self.curves else None).batch_size
        self._check_size(batch_size)
        return nqm.optimal_schedule(
            self.fit.problem,
            float(self.fit.effective_batch_size(batch_size)),
            self.target_loss - self.fit.floor,
            num_pieces=num_pieces,
            progress=False,
        )

    def to_dataframe(self) -> "pandas.DataFrame":
        """Return a table with one row for each family and batch size.

        Returns:
            Steps with their intervals, examples and settings.
        """
        rows = []
        for family, curve in self.curves.items():
            for index, size in enumerate(self.batch_sizes.tolist()):
                rate, momentum, decay, _ = (part[0] for part in curve.algorithm.take([index]).settings)
                steps, low, high = (float(getattr(self.steps[family], end)[index]) for end in ("value", "low", "high"))
                rows.append({
                    "family": family,
                    "batch_size": size,
                    "steps": steps,
                    "steps_low": low,
                    "steps_high": high,
                    "examples": steps * size,
                    "learning_rate": float(rate),
                    "momentum": float(momentum),
                    "ema_decay": float(decay),
                })
        return _plotting.make_dataframe({name: [row[name] for row in rows] for name in rows[0]})

    def plot(self, ax: "matplotlib.axes.Axes | None" = None, label: str | None = None) -> "matplotlib.axes.Axes":
        """Draw steps against batch size with their intervals, critical batch sizes, and the simple noise scale.

        Args:
            ax: Axes to draw into; None (default) makes new ones.
            label: Text before the names of the lines; None (default) for none.

        Returns:
            The axes.
        """
        prefix = check_label(label)
        ax = nqm.plot_steps_to_target({f"{prefix} {name}".strip(): curve for name, curve in self.curves.items()}, ax=ax)
        lines = dict(zip(self.curves, ax.lines[-len(self.curves) :], strict=True))
        for family, line in lines.items():
            steps, critical = self.steps[family], self.critical_batch_size[family].value
            ax.fill_between(self.batch_sizes, steps.low, steps.high, color=line.get_color(), alpha=0.2, linewidth=0)
            if math.isfinite(critical):
                height = np.exp(np.interp(np.log(critical), np.log(self.batch_sizes), np.log(steps.value)))
                ax.plot([critical], [height], "*", color=line.get_color(), markersize=12)
        if math.isfinite(self.noise_scale.value):
            ax.axvline(self.noise_scale.value, color="0.5", linestyle=":", label="simple noise scale")
        ax.plot([], [], "*", color="0.3", linestyle="none", markersize=10, label="critical batch size")
        ax.set(ylabel=f"steps to a loss of {self.target_loss:.3g}")
        _plotting.add_legend(ax)
        return ax

    def __repr__(self) -> str:
        fit = self.fit
        lines = [
            f"BatchSizePlan: from a loss of {fit.initial_loss.mean():.4g} to {self.target_loss:.4g}",
            f"  the quadratic: from {fit.quadratic_initial_loss:.4g}, and down to {fit.floor:.4g} at its minimum",
            f"  measured in {fit.num_runs} runs, {fit.sample}",
        ]
        for family in self.families:
            found = describe(self.critical_batch_size[family], "beyond the largest")
            lines.append(f"  critical batch size, {family + ':':14}{found}")
        lines.append(f"  simple noise scale: {'':15}{describe(self.noise_scale, 'too large to tell')}")
        family = self._check_family(None)
        curve, steps = self.curves[family], self.steps[family]
        lines.append(f"  {family}, with intervals of confidence {steps.confidence:g}:")
        header = ("batch size", "steps", "from", "to", "examples", "learning rate", "momentum")
        lines.append("".join(f"{cell:>14}" for cell in header))
        for index, size in enumerate(self.batch_sizes.tolist()):
            rate, momentum, _, _ = (part[0] for part in curve.algorithm.take([index]).settings)
            ends = (f"{part[index]:,.0f}" for part in (steps.value, steps.low, steps.high))
            cells = (f"{size:,}", *ends, f"{steps.value[index] * size:,.0f}", f"{rate:.4g}", f"{momentum:.4g}")
            lines.append("".join(f"{cell:>14}" for cell in cells))
        return "\n".join(lines)

    def _check_family(self, family: str | None) -> str:
        if family is None:
            return "momentum" if "momentum" in self.curves else self.families[0]
        return check_choice("family", family, self.families)

    def _check_size(self, batch_size: Any) -> int:
        most = None if math.isinf(self.fit.num_examples) else int(self.fit.num_examples)
        return check_integer("batch_size", batch_size, minimum=1, maximum=most)
