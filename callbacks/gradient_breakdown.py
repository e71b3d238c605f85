"""How far the gradient can be trusted along the steps that the optimizer takes."""

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tfopt import _plotting
from tfopt._checks import check_integer, check_label
from tfopt.callbacks._columns import by_path
from tfopt.callbacks._step_count import execution_size_of
from tfopt.callbacks.measurement import Measurement
from tfopt.relative_trust import StepMeter

if TYPE_CHECKING:
    import matplotlib.axes

_DETAILS = ("relative_gradient_breakdown", "relative_perturbation", "cosine")


@dataclass(frozen=True)
class _Moment:
    """The weights after a number of steps, and the meter for steps of the model in its state at that time."""

    meter: StepMeter
    weights: list[Any]
    steps: int

    @classmethod
    def from_meter(cls, meter: StepMeter, steps: int) -> "_Moment":
        return cls(meter, meter.weights(), steps)

    def has_not_moved(self) -> bool:
        return all(np.array_equal(a, b) for a, b in zip(self.weights, self.meter.weights(), strict=True))


class GradientBreakdown(Measurement):
    """Record what the optimizer's own steps do to the gradient, and whether the descent lemma lets the loss fall.

    For a step dW from W to W + dW, on a fixed probe, for the loss with its regularisation. The callback measures the
    first step, the last step of every n-th epoch (or every n-th step), and the last step of training. In the logs, from
    the first epoch on, with l counting the trainable variables (see `tfopt.relative_trust`):

    - `breakdown/relative_gradient_breakdown`: the largest |g_l(W + dW) - g_l(W)| / |g_l(W)|.
    - `breakdown/relative_perturbation`: the largest |dW_l| / |W_l|.
    - `breakdown/deep_relative_trust`: prod_l (1 + |dW_l| / |W_l|) - 1, the largest breakdown that the model of deep
      relative trust expects.
    - `breakdown/cosine`: of the angle between -g and dW.
    - `breakdown/descent_bound`: right-hand side of the descent lemma, beside `breakdown/loss_change`, which cannot be
      larger (up to the grid on the step). A negative bound certifies that the step lowers the loss on the probe.
    - `breakdown/steps_spanned`: the number of steps that dW adds up: 1, except with `steps_per_execution` and
      accumulated gradients.
    - `breakdown/seconds`: the time that measuring has taken so far.

    A variable whose gradient cannot be told from rounding has no breakdown and no cosine. If it does not change the
    loss at all (a bias before batch normalisation, the bias of attention's keys), it has no relative perturbation
    either. Its values in `history` are NaN, and the maxima and the product leave it out.

    If `fit` does not know the number of batches of an epoch, the callback keeps a copy of the weights before each step
    of the first epoch until the next step.

    Args:
        data: The data to measure on, see `Measurement`.
        loss: The loss to measure, see `Measurement`.
        num_points: Number of points on the step at which the descent lemma looks for the largest breakdown, an integer
            >= 1. Each costs a gradient. Default 4.
        **options: When to measure, and the other options of every `Measurement`.

    Attributes:
        history: As in every `Measurement`, with `step` after the measured step, and with
            `relative_gradient_breakdown`, `relative_perturbation` and `cosine`, whose elements map each variable's path
            to its value. With `log_dir`, TensorBoard shows them too.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range; in `fit`: the model or data cannot be measured.

    Example:
        >>> import keras
        >>> from tfopt.optimizers import Fromage
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile(Fromage(0.01), loss="mse")
        >>> x = np.eye(2)
        >>> breakdown = GradientBreakdown((x, np.ones(2)))
        >>> _ = model.fit(x, np.ones(2), epochs=3, verbose=0, callbacks=[breakdown])
        >>> breakdown.history["step"], len(breakdown.history["cosine"][0])
        ([1, 2, 3], 2)
    """

    group = "breakdown"
    traces_early = True

    def __init__(
        self,
        data: Any,
        loss: Any = None,
        *,
        num_points: int = 4,
        **options: Any,
    ) -> None:
        super().__init__(data, loss, **options)
        self.num_points = check_integer("num_points", num_points, minimum=1)

    def _start(self) -> None:
        super()._start()
        self._waiting: _Moment | None = None  # Before the next step that may be measured.
        self._kept: tuple[_Moment, _Moment] | None = None  # Before and after the last step.
        self._steps_per_epoch: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_waiting": None, "_kept": None}

    # --- times of measurements

    def _get_ready(self) -> None:
        super()._get_ready()
        self._steps_per_epoch = self.parameters.get("steps")
        spanned = execution_size_of(self.model)
        if spanned > 1:
            warnings.warn(
                f"With steps_per_execution={spanned} GradientBreakdown sees the weights only after every {spanned} "
                "steps, and measures them as one. `breakdown/steps_spanned` says so in the logs",
                stacklevel=3,
            )

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Keep the weights if one of the next steps is to be measured; measure the first step."""
        super().on_train_batch_begin(batch, logs)
        self._keep_step()
        if not self.history["step"]:
            self._measure_kept()
        total = self._steps_per_epoch
        is_last = total is None or batch + execution_size_of(self.model) >= total
        is_due = is_last or not self.history["step"] or self._is_due_next()
        if is_due and self._waiting is None:
            self._follow(is_measuring=True)
            self._waiting = _Moment.from_meter(self._instruments, self._steps)

    def _is_due_next(self) -> bool:
        batches = self._count.batches
        return self.cadence.is_due_between(batches, batches + self._count.next_batches)

    def _after_start(self) -> None:
        """Take nothing, because there is no step yet."""

    def _after_batches(self, before: int, after: int) -> None:
        self._keep_step()
        if not self.history["step"] or self.cadence.is_due_between(before, after):
            self._measure_kept()

    def _after_epoch(self, epochs: int, is_last: bool) -> None:
        if self.parameters.get("steps") is None:
            self._count_steps()
        self._keep_step()
        if is_last or not self.history["step"] or self._is_due_and_allowed(epochs):
            self._measure_kept()

    def _count_steps(self) -> None:
        # Keras does not know the number of batches, and begins one more, which finds no data.
        if self._waiting is None:  # This epoch was shorter than the one before.
            self._steps_per_epoch = None
            return
        found_no_data = self._waiting.has_not_moved()
        if found_no_data:
            self._waiting = None
        self._steps_per_epoch = self._num_batches - found_no_data

    def _keep_step(self) -> None:
        # Nothing is waiting if nothing was kept. Gradients are being accumulated if no step was counted, or if each
        # batch counts and the weights have not moved.
        if self._waiting is None or self._steps == self._waiting.steps:
            return
        if not (self._count.counts_batches and self._waiting.has_not_moved()):
            self._kept, self._waiting = (self._waiting, _Moment.from_meter(self._waiting.meter, self._steps)), None

    def _after_change(self) -> None:
        super()._after_change()
        self._waiting = None  # Drop steps of the old variables.

    def _after_training(self) -> None:
        self._keep_step()
        self._measure_kept()
        self._waiting = self._kept = None

    def _measure_kept(self) -> None:
        # Do not measure the last step twice.
        if self._kept is not None and not self._is_measured(self._kept[1].steps):
            self._take(step=self._kept[1].steps)

    # --- measurements

    def _make_instruments(self) -> StepMeter:
        meter = StepMeter(self._make_objective(), num_points=self.num_points)
        # Trace now, because a step is measured for the model as it was then, even if the model changes before
        # measuring.
        meter.loss_and_gradient(meter.weights())
        return meter

    def _measure(self) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        assert self._kept is not None
        before, after = self._kept
        step = before.meter.measure(before.weights, after.weights)
        self.precision = step.precision
        values = {
            "relative_gradient_breakdown": step.largest_breakdown,
            "relative_perturbation": step.largest_perturbation,
            "deep_relative_trust": step.deep_relative_trust,
            "cosine": step.total_cosine,
            "descent_bound": step.descent_bound,
            "loss_change": step.loss_change,
            "steps_spanned": after.steps - before.steps,
        }
        details = {name: dict(zip(step.paths, map(float, getattr(step, name)), strict=True)) for name in _DETAILS}
        return {f"breakdown/{name}": value for name, value in values.items()}, details

    def plot(self, ax: "matplotlib.axes.Axes | None" = None, label: str | None = None) -> "matplotlib.axes.Axes":
        """Draw the breakdown of each variable, and the expectation of deep relative trust, against steps.

        Args:
            ax: Axes to draw into; None (default) makes new ones.
            label: Text before the names of the lines; None (default) for none.

        Returns:
            The axes.
        """
        prefix, ax = check_label(label), _plotting.get_axes(ax)
        entries = self.history.get("relative_gradient_breakdown", [])
        for path, series in by_path(entries).items():
            values = np.array(series)
            ax.plot(self.history["step"], np.where(values > 0, values, np.nan), label=f"{prefix} {path}".strip())
        if entries:
            expected, name = (
                self.history[self._logged_as("breakdown/deep_relative_trust")],
                f"{prefix} deep relative trust".strip(),
            )
            ax.plot(self.history["step"], expected, "k--", label=name)
            _plotting.add_legend(ax)
        ax.set(xlabel="step", ylabel="relative gradient breakdown", yscale="log")
        return ax
