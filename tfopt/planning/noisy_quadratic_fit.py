"""What a fit has found: a noisy quadratic, measured in several runs."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tfopt import _plotting
from tfopt._checks import check_indices, check_integer, check_number
from tfopt.nqm import NoisyQuadratic
from tfopt.nqm._checks import check_values
from tfopt.planning.interval import Interval, bootstrap, describe
from tfopt.planning.spectral_measure import without_negatives

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

BY_RUN = (  # attributes with a row for each run
    "counts",
    "noise",
    "start",
    "flat_share",
    "loss",
    "squared_gradient_norm",
    "gain",
    "gain_elsewhere",
    "noise_gain",
    "sampling",
    "initial_loss",
    "covariance_trace",
)
SMALLEST_COUNT = 1e-3  # of directions in a bin that no random vector has hit


@dataclass(frozen=True, eq=False, repr=False)
class NoisyQuadraticFit:
    """A noisy quadratic fitted to a model, as measured in several independent runs.

    Each run has measured everything on rows of its own with random vectors of its own; what is estimated are means over
    runs, and runs drawn with replacement give intervals. Arrays hold one row for each run and one column for each bin
    of the spectrum.

    Attributes:
        curvature: The bins' curvatures (h), of shape (k,), rising.
        counts: Number of directions in each bin.
        noise: Sum over these of the variance of a single row's gradient (c).
        start: Sum over these of the squared gradient of the quadratic where training starts, on the rows of each run.
        flat_share: Which share of the noise, and of the start's gradient lies in directions too flat to be resolved, or
            of negative curvature, of shape (num_runs, 2).
        loss: At the model's weights, on the rows of each run, of shape (num_runs,).
        squared_gradient_norm: Of the gradient there.
        gain: 1/2 g'H^-1 g, how far the quadratic of a run's rows lies above its minimum.
        gain_elsewhere: How much the step there lowers the quadratic of the next run's rows; NaN where there is none.
        noise_gain: 1/2 tr(H^-1 C).
        sampling: 1/n - 1/N, with n rows in the run: the share of a single row's noise that is in means over them.
        initial_loss: Where training starts.
        covariance_trace: Trace of the covariance of a single row's gradient.
        num_examples: Rows that training draws its batches from; infinity for an endless stream.
        num_rows: Rows that were measured on, in all runs.
        num_parameters: Entries of the model's trainable variables.
        is_displaced: Whether training starts elsewhere than where the model stands.
        batch_norm: How batch normalisation was computed, "batch" or "moving".
        seconds: What it took.
        precision: How layers were computed: "model", "float32" or "bfloat16", as `HessianOperator.precision` says.
    """

    curvature: np.ndarray
    counts: np.ndarray
    noise: np.ndarray
    start: np.ndarray
    flat_share: np.ndarray
    loss: np.ndarray
    squared_gradient_norm: np.ndarray
    gain: np.ndarray
    gain_elsewhere: np.ndarray
    noise_gain: np.ndarray
    sampling: np.ndarray
    initial_loss: np.ndarray
    covariance_trace: np.ndarray
    num_examples: float
    num_rows: int
    num_parameters: int
    is_displaced: bool
    batch_norm: str
    seconds: float
    precision: str = "model"

    @property
    def num_runs(self) -> int:
        """Number of runs."""
        return len(self.loss)

    @property
    def problem(self) -> NoisyQuadratic:
        """The noisy quadratic; its losses count from `floor`."""
        counts = np.maximum(self.counts.mean(axis=0), SMALLEST_COUNT)
        excess = self.chance * self.noise * self.sampling[:, None]
        # Twice the loss to be gained; without what is gained only on these rows.
        gains = without_negatives((self.start - excess).mean(axis=0) / self.curvature)
        distance = gains / self.curvature
        return NoisyQuadratic(self.curvature, self.noise.mean(axis=0) / counts, counts, distance / counts)

    @property
    def chance(self) -> float:
        """The noise at the quadratic's minimum as a share of that at the model's weights, from 0 to 1.

        A sample's minimum lies lower than that of all rows, by 1/2 tr(H^-1 C) / n with the noise at the minimum, and
        the loss of other rows there higher by as much. Twice that is what `gain` and `gain_elsewhere` differ by.
        """
        known = np.isfinite(self.gain_elsewhere)
        here = float(np.mean(self.noise_gain * self.sampling))
        if not known.any() or here <= 0.0:
            return 1.0
        difference = 0.5 * (self.gain.mean() - self.gain_elsewhere[known].mean())
        return float(np.clip(difference / here, 0.0, 1.0))

    @property
    def floor(self) -> float:
        """The quadratic's smallest loss: the model's loss - 1/2 g' H^-1 g, without what is gained only on a sample."""
        return float(np.mean(self.loss - self.gain + self.chance * self.noise_gain * self.sampling))

    @property
    def quadratic_initial_loss(self) -> float:
        """The quadratic's loss where training starts; compare `initial_loss`."""
        return self.floor + self.problem.initial_loss

    @property
    def noise_scale(self) -> float:
        """The simple noise scale tr C / |G|^2 at the model's weights, in rows (McCandlish et al., arXiv:1812.06162).

        Infinity, if noise drowns the gradient.
        """
        signal = float(np.mean(self.squared_gradient_norm - self.covariance_trace * self.sampling))
        return float(self.covariance_trace.mean()) / signal if signal > 0.0 else math.inf

    @property
    def hessian_covariance_trace(self) -> float:
        """Tr(H C): times a^2 / (2 B), what the noise of one step of SGD at the rate a adds to the loss."""
        return float(self.noise.mean(axis=0) @ self.curvature)

    def take(self, runs: Any) -> "NoisyQuadraticFit":
        """Return the fit from some of the runs.

        Args:
            runs: Their numbers, from 0, which may repeat.

        Returns:
            A fit with these runs.

        Raises:
            TypeError: `runs` are no integers.
            ValueError: There is no such run.
        """
        chosen = np.atleast_1d(check_indices("runs", runs, self.num_runs))
        return replace(self, **{name: getattr(self, name)[chosen] for name in BY_RUN})

    def interval(
        self, function: Callable[["NoisyQuadraticFit"], Any], level: float = 0.9, draws: int = 200, seed: int = 0
    ) -> Interval:
        """Estimate anything from the fit, with a bootstrap interval over its runs.

        Args:
            function: Takes a fit, and returns a number or an array.
            level: With which probability the interval shall hold the truth, in (0, 1). Default 0.9.
            draws: How many times to draw runs with replacement, >= 20. Default 200.
            seed: Seed of the draws, an integer >= 0. Default 0.

        Returns:
            The estimate and its interval. It covers the chance of rows and random vectors, not that a network is no
            quadratic.

        Raises:
            TypeError: `function` cannot be called.
            ValueError: An argument is out of its range.

        Example:
            >>> fit.interval(lambda fit: fit.noise_scale)  # doctest: +SKIP
            43.1 (38.2 to 49.7)
        """
        if not callable(function) or isinstance(function, type):
            raise TypeError(f"`function` must be a function of a fit. Received: {function!r}")
        check_number("level", level, minimum=0.0, maximum=1.0, exclusive_minimum=True, exclusive_maximum=True)
        check_integer("draws", draws, minimum=20)
        check_integer("seed", seed, minimum=0)
        return bootstrap(lambda runs: function(self.take(runs)), self.num_runs, level, draws, seed)

    def effective_batch_size(self, batch_size: Any) -> np.ndarray:
        """Return the batch size from endless data whose gradient is as noisy.

        Batches drawn without replacement from N rows have the noise C / B (1 - B / N).

        Args:
            batch_size: B, > 0 and <= N.

        Returns:
            B / (1 - B / N), of B's shape; 1e15 where B is N.

        Raises:
            ValueError: A batch size is out of its range.
        """
        size = check_values("batch_size", batch_size, positive=True, maximum=self.num_examples)
        rest = 1.0 - size / self.num_examples
        return np.where(rest > 0.0, size / np.maximum(rest, 1e-15), 1e15)

    def to_dataframe(self, level: float = 0.9) -> "pandas.DataFrame":
        """Return a table with one row for each bin of the spectrum.

        Args:
            level: Of the intervals.

        Returns:
            Curvature; number of directions, noise variance summed over them, and squared distance that training has to
            go, each with its interval.
        """
        columns = {"curvature": self.curvature}
        for name, function in {
            "directions": lambda fit: fit.counts.mean(axis=0),
            "noise_variance": lambda fit: fit.noise.mean(axis=0),
            "squared_distance": lambda fit: fit.problem.initial_second_moment * fit.problem.multiplicity,
        }.items():
            found = self.interval(function, level)
            columns |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        return _plotting.make_dataframe(columns)

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw what lies above each curvature: directions, noise, and loss still to be gained, as shares of all.

        Args:
            ax: Axes to draw into; None makes new ones.

        Returns:
            The axes.
        """
        ax = _plotting.get_axes(ax)
        problem = self.problem
        parts = {
            "directions": problem.multiplicity,
            "gradient noise": problem.multiplicity * problem.noise_variance,
            "loss to be gained": problem.multiplicity * problem.curvature * problem.initial_second_moment,
        }
        for label, part in parts.items():
            ax.plot(self.curvature, np.cumsum(part[::-1])[::-1] / part.sum(), drawstyle="steps-pre", label=label)
        ax.set(xlabel="curvature", ylabel="share at this curvature or above", xscale="log", ylim=(0.0, 1.05))
        ax.legend(fontsize="small")
        return ax

    def __repr__(self) -> str:
        scale = describe(self.interval(lambda fit: fit.noise_scale), "too large to tell")
        floor = self.interval(lambda fit: fit.floor)
        lines = [
            f"NoisyQuadraticFit({self.num_parameters:,} parameters, {self.num_runs} runs on {self.num_rows:,} rows, "
            f"{self.seconds:.1f} s)",
            f"  loss now {self.loss.mean():.4g}; the quadratic's floor {floor}",
        ]
        if self.is_displaced:
            start = self.initial_loss.mean()
            lines.append(f"  loss at the start {start:.4g}; by the quadratic {self.quadratic_initial_loss:.4g}")
        if self.flat_share.mean(axis=0).max() > 0.01:
            flat = self.flat_share.mean(axis=0)
            lines.append(f"  too flat to be resolved: {flat[0]:.0%} of the noise, {flat[1]:.0%} of the gradient")
        lines.append(
            f"  largest curvature {self.curvature[-1]:.4g}, {self.counts.mean(axis=0).sum():,.0f} directions above "
            f"{self.curvature[0]:.2g}"
        )
        lines.append(f"  simple noise scale {scale}, tr(H C) {self.hessian_covariance_trace:.4g}")
        return "\n".join(lines)
