"""The result of a fit: a noisy quadratic, measured in several runs."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tfopt import _plotting
from tfopt._checks import check_indices, check_integer, check_label, check_number
from tfopt._record import Record
from tfopt.curvature.gradient_noise import quotient
from tfopt.nqm import NoisyQuadratic
from tfopt.nqm._checks import check_values
from tfopt.planning.interval import Interval, bootstrap, describe
from tfopt.planning.spectral_measure import without_negatives

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

# Attributes with one row for each run.
BY_RUN = (
    *("counts", "noise", "start", "flat_share", "loss", "squared_gradient_norm", "gain", "gain_elsewhere"),
    *("noise_gain", "sampling", "initial_loss", "covariance_trace"),
)
# A bin that no random vector has hit counts as this many directions.
SMALLEST_COUNT = 1e-3


@dataclass(frozen=True, eq=False, repr=False)
class NoisyQuadraticFit(Record):
    """A noisy quadratic fitted to a model, as measured in several independent runs.

    Each run measures everything on its own rows with its own random vectors. Estimates are means over runs, and runs
    drawn with replacement give intervals. Arrays hold one row for each run and one column for each bin of the spectrum.

    Attributes:
        curvature: The curvature of each bin (h), of shape (k,), rising.
        counts: Number of directions in each bin, of shape (num_runs, k).
        noise: Sum over these of the variance of a single row's gradient (c), of shape (num_runs, k).
        start: Sum over these of the squared gradient of the quadratic where training starts, on the rows of each run,
            of shape (num_runs, k).
        flat_share: Fractions of the noise, and of the squared gradient where training starts, that lie in directions of
            negative curvature or too flat to be resolved, of shape (num_runs, 2).
        loss: Loss at the model's weights, on the rows of each run, of shape (num_runs,).
        squared_gradient_norm: Squared norm of the gradient there, of shape (num_runs,).
        gain: 1/2 g'H^-1 g, the height of each run's quadratic above its minimum, of shape (num_runs,).
        gain_elsewhere: Decrease of each run's quadratic by the step to the previous run's minimum, of shape
            (num_runs,); NaN where no run came before.
        noise_gain: 1/2 tr(H^-1 C), of shape (num_runs,).
        sampling: 1/n - 1/N, with n rows in the run: the fraction of a single row's noise that remains in means over
            them, of shape (num_runs,).
        initial_loss: Loss where training starts, of shape (num_runs,).
        covariance_trace: Trace of the covariance of a single row's gradient, of shape (num_runs,).
        num_examples: Number of rows that training draws its batches from; infinity for an endless stream.
        num_rows: Number of rows measured in all runs.
        num_parameters: Number of entries of the model's trainable variables.
        is_displaced: Whether training starts at other weights than the model's.
        batch_norm: How batch normalisation was computed, "batch" or "moving".
        seconds: Duration of the fit, in seconds.
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
    def num_rows_per_run(self) -> int:
        """Number of rows in a run, on average; equal to `num_examples` where every run had all rows."""
        inverse = self.sampling + 1.0 / self.num_examples
        if not inverse.all():  # a fit to all rows, turned into one to an endless stream of them
            return round(self.num_rows / self.num_runs)
        return round(float(np.mean(1.0 / inverse)))

    @property
    def sample(self) -> str:
        """How many rows each run had, of how many, as text."""
        if not self.sampling.any():
            return f"all {self.num_rows_per_run:,} rows in each run"
        examples = "an endless stream" if math.isinf(self.num_examples) else f"{self.num_examples:,.0f}"
        return f"{self.num_rows_per_run:,} rows of {examples} in each run"

    @property
    def problem(self) -> NoisyQuadratic:
        """The noisy quadratic; its losses count from `floor`."""
        counts = np.maximum(self.counts.mean(axis=0), SMALLEST_COUNT)
        excess = self.chance * self.noise * self.sampling[:, None]
        # This is twice the possible gain, without the part that other rows do not gain.
        gains = without_negatives((self.start - excess).mean(axis=0) / self.curvature)
        distance = gains / self.curvature
        return NoisyQuadratic(self.curvature, self.noise.mean(axis=0) / counts, counts, distance / counts)

    @property
    def chance(self) -> float:
        """The noise at the quadratic's minimum as a fraction of the noise at the model's weights, from 0 to 1.

        With the noise at the minimum, the minimum of n rows lies 1/2 tr(H^-1 C) / n lower than that of all rows, and
        the loss of other rows there lies higher by the same amount. The difference of `gain` and `gain_elsewhere` is
        twice that amount.
        """
        known = np.isfinite(self.gain_elsewhere)
        here = float(np.mean(self.noise_gain * self.sampling))
        if not known.any() or here <= 0.0:
            return 1.0
        difference = 0.5 * (self.gain.mean() - self.gain_elsewhere[known].mean())
        return float(np.clip(difference / here, 0.0, 1.0))

    @property
    def floor(self) -> float:
        """The quadratic's smallest loss: the loss - 1/2 g' H^-1 g, without the part that other rows do not gain."""
        return float(np.mean(self.loss - self.gain + self.chance * self.noise_gain * self.sampling))

    @property
    def quadratic_initial_loss(self) -> float:
        """The quadratic's loss where training starts; compare `initial_loss`."""
        return self.floor + self.problem.initial_loss

    @property
    def noise_scale(self) -> float:
        """The simple noise scale tr C / |G|^2 at the model's weights, in rows (McCandlish et al., arXiv:1812.06162).

        It is infinite if the noise is too large to measure the gradient.
        """
        signal = float(np.mean(self.squared_gradient_norm - self.covariance_trace * self.sampling))
        return quotient(float(self.covariance_trace.mean()), signal)

    @property
    def hessian_covariance_trace(self) -> float:
        """Tr(H C). A step of SGD at rate a adds a^2 / (2 B) times this to the loss, through its noise."""
        return float(self.noise.mean(axis=0) @ self.curvature)

    def take(self, runs: Any) -> "NoisyQuadraticFit":
        """Return the fit from some of the runs.

        Args:
            runs: Indices of runs, >= 0; they may repeat.

        Returns:
            A fit with these runs.

        Raises:
            TypeError: `runs` does not hold integers.
            ValueError: A run does not exist.
        """
        chosen = np.atleast_1d(check_indices("runs", runs, self.num_runs))
        return replace(self, **{name: getattr(self, name)[chosen] for name in BY_RUN})

    def interval(
        self,
        function: Callable[["NoisyQuadraticFit"], Any],
        confidence: float = 0.9,
        num_draws: int = 200,
        seed: int = 0,
    ) -> Interval:
        """Estimate any quantity from the fit, with a bootstrap interval over its runs.

        Args:
            function: Takes a fit, and returns a number or an array.
            confidence: Confidence level of the interval, in (0, 1). Default 0.9.
            num_draws: Number of draws of runs with replacement, >= 20. Default 200.
            seed: Seed of the draws, an integer >= 0. Default 0.

        Returns:
            The estimate and its interval. The interval covers the randomness of rows and random vectors. It does not
            cover that a network's loss is no quadratic.

        Raises:
            TypeError: `function` cannot be called.
            ValueError: An argument is out of its range.

        Example:
            >>> fit.interval(lambda fit: fit.noise_scale)  # doctest: +SKIP
            43.1 (38.2 to 49.7)
        """
        if not callable(function) or isinstance(function, type):
            raise TypeError(f"`function` must be a function of a fit. Received: {function!r}")
        check_number("confidence", confidence, minimum=0.0, maximum=1.0, exclusive_minimum=True, exclusive_maximum=True)
        check_integer("num_draws", num_draws, minimum=20)
        check_integer("seed", seed, minimum=0)
        return bootstrap(lambda runs: function(self.take(runs)), self.num_runs, confidence, num_draws, seed)

    def effective_batch_size(self, batch_size: Any) -> np.ndarray:
        """Return the batch size whose gradient would be equally noisy on endless data.

        The noise of batches drawn without replacement from N rows is C / B (1 - B / N).

        Args:
            batch_size: B, > 0 and <= N.

        Returns:
            B / (1 - B / N), of B's shape; 1e15 where B is N.

        Raises:
            TypeError: `batch_size` does not hold numbers.
            ValueError: A batch size is out of its range.
        """
        size = check_values("batch_size", batch_size, positive=True, maximum=self.num_examples)
        rest = 1.0 - size / self.num_examples
        return np.where(rest > 0.0, size / np.maximum(rest, 1e-15), 1e15)

    def to_dataframe(self, confidence: float = 0.9) -> "pandas.DataFrame":
        """Return a table with one row for each bin of the spectrum.

        Args:
            confidence: Confidence level of the intervals, in (0, 1). Default 0.9.

        Returns:
            Curvature, number of directions, noise variance summed over them, and squared distance to the minimum from
            where training starts. All but the curvature come with their intervals.
        """
        columns = {"curvature": self.curvature}
        for name, function in {
            "directions": lambda fit: fit.counts.mean(axis=0),
            "noise_variance": lambda fit: fit.noise.mean(axis=0),
            "squared_distance": lambda fit: fit.problem.initial_second_moment * fit.problem.multiplicity,
        }.items():
            found = self.interval(function, confidence)
            columns |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        return _plotting.make_dataframe(columns)

    def plot(self, ax: "matplotlib.axes.Axes | None" = None, label: str | None = None) -> "matplotlib.axes.Axes":
        """Draw the fractions of directions, noise and possible gain at or above each curvature.

        Args:
            ax: Axes to draw into; None (default) makes new ones.
            label: Text before the names of the lines; None (default) for none.

        Returns:
            The axes.
        """
        prefix, ax = check_label(label), _plotting.get_axes(ax)
        problem = self.problem
        parts = {
            "directions": problem.multiplicity,
            "gradient noise": problem.multiplicity * problem.noise_variance,
            "loss to be gained": problem.multiplicity * problem.curvature * problem.initial_second_moment,
        }
        for name, part in parts.items():
            share = np.cumsum(part[::-1])[::-1] / part.sum()
            ax.plot(self.curvature, share, drawstyle="steps-pre", label=f"{prefix} {name}".strip())
        ax.set(xlabel="curvature", ylabel="share at this curvature or above", xscale="log", ylim=(0.0, 1.05))
        _plotting.add_legend(ax)
        return ax

    def __repr__(self) -> str:
        scale = describe(self.interval(lambda fit: fit.noise_scale), "too large to tell")
        floor = self.interval(lambda fit: fit.floor)
        lines = [
            f"NoisyQuadraticFit({self.num_parameters:,} parameters, {self.num_runs} runs, {self.sample}, "
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
