"""The gradient noise scale along training: the batch size up to which more rows help."""

from typing import TYPE_CHECKING, Any

import numpy as np

from tfopt import _plotting
from tfopt._checks import check_integer, check_label
from tfopt.callbacks._optimizers_of import compiled_optimizer_of
from tfopt.callbacks._running_fit import batch_size_of, find_running_fit
from tfopt.callbacks.measurement import Measurement
from tfopt.curvature.gradient_noise import noise_of
from tfopt.curvature.groups import Groups
from tfopt.distributed.gradient_scatter import GradientScatter
from tfopt.distributed.optimizer import DistributedOptimizer

if TYPE_CHECKING:
    import matplotlib.axes


class GradientNoiseScale(Measurement):
    """Record the simple noise scale tr C / |G|^2, with its standard error, in rows.

    C is the covariance of the gradient of a single row, G the mean gradient. Batches much smaller than the noise scale
    are mostly noise, and doubling them about halves the number of steps. Batches much larger than it waste rows
    (McCandlish, Kaplan, Amodei and the OpenAI Dota team, arXiv 1812.06162).

    With `data`, the callback compares gradients of groups of rows with the gradient of all rows: before the first
    step, after every tenth part of training (or every n-th epoch or step), and at the end. On several ranks it works
    without `data`: within the training step, it compares each rank's gradient with the mean of all ranks, at the
    cost of a norm. It averages over the steps since the last measurement, by default in each epoch. In the logs, from
    the first epoch on:

    - `gradient_noise/noise_scale` and `gradient_noise/noise_scale_standard_error`: infinity and NaN if the data are too
      few to distinguish |G|^2 from 0, as may happen near a minimum.
    - `gradient_noise/covariance_trace`: tr C. `gradient_noise/squared_gradient_norm`: the estimate of |G|^2, which may
      be negative.
    - `gradient_noise/seconds`: the time that measuring has taken so far.

    Args:
        data: The data to measure on, in random order, see `Measurement`. None (default) means the training steps
            of several ranks under `tfopt.distributed.DistributedOptimizer`.
        loss: The loss to measure with `data`, see `Measurement`.
        group_size: With `data`, rows in a group, an integer >= 1. Fewer rows and more groups cost more time and
            make the standard error smaller. Default 8.
        local_batch_size: Without `data`, rows in a batch of one rank. None (default) takes it from `fit`. A
            smaller batch at the end of an epoch counts like the others.
        **options: When to measure, and the other options of every `Measurement`. Without `every_n_epochs` and
            `every_n_steps`, the callback measures after every tenth part of training with `data`, and after every
            epoch without it.

    Attributes:
        history: As in every `Measurement`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range; there is neither a probe nor more than one rank; in `fit`: the
            model or data cannot be measured.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", loss="mse")
        >>> x, y = np.random.default_rng(0).normal(size=(64, 2)), np.ones(64)
        >>> noise = GradientNoiseScale((x, y))
        >>> _ = model.fit(x, y, verbose=0, callbacks=[noise])
        >>> noise.history["step"], noise.history["gradient_noise/noise_scale"][0] > 0
        ([0, 2], True)
    """

    group = "gradient_noise"
    needs_probe = False

    def __init__(
        self,
        data: Any = None,
        loss: Any = None,
        *,
        group_size: int = 8,
        local_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(data, loss, **options)
        self.group_size = check_integer("group_size", group_size, minimum=1)
        if local_batch_size is not None:
            check_integer("local_batch_size", local_batch_size, minimum=1)
        self.local_batch_size = local_batch_size
        if data is None and self.communicator.size == 1:
            raise ValueError(
                "`data` must be given on a single rank, which has no other rank's gradients to compare with"
            )
        self._sums: np.ndarray | None = None
        self._rows = 0

    @property
    def _default_epochs(self) -> int | None:
        return 1 if self._given_probe is None else None

    @property
    def _scatter(self) -> GradientScatter | None:
        """The scatter of the gradients of ranks within the training step; None if a probe is measured."""
        return self._instruments if self._given_probe is None else None

    def _after_start(self) -> None:
        if self._scatter is None:
            super()._after_start()
        else:
            self._scatter.take()  # Drop the sums of an earlier training.

    # --- measurements

    def _make_instruments(self) -> Groups | GradientScatter:
        if self._probe is not None:
            return Groups(self._make_objective(), self.group_size)
        others = [c for c in find_running_fit(self).callbacks if isinstance(c, GradientNoiseScale) and c is not self]
        if any(other._given_probe is None for other in others):
            raise ValueError(
                "Only one GradientNoiseScale of a `fit` can compare the gradients of ranks, because each would reset "
                "the sums of the other. Received: several without `data`"
            )
        optimizer = compiled_optimizer_of(self.model)
        if type(optimizer) is not DistributedOptimizer:
            found = "no optimizer" if optimizer is None else f"a plain {type(optimizer).__name__}"
            raise ValueError(
                "Without `data`, GradientNoiseScale compares the gradients of ranks, which needs "
                f"model.compile(tfopt.distributed.DistributedOptimizer(optimizer), ...). Received: {found}"
            )
        scatter = optimizer.watch_scatter()
        self.model.make_train_function(force=True)  # The old one does not watch the gradients.
        return scatter

    def _get_ready(self) -> None:
        super()._get_ready()
        if self._scatter is not None:
            self._rows = self.local_batch_size or self._find_batch_size()
            if self._sums is not None:  # They belong to a resumed training.
                self._scatter.sums, self._sums = self._sums, None

    def get_state(self) -> dict[str, Any]:
        """Return the measurements, and the sums since the last one."""
        return super().get_state() | {"sums": None if self._scatter is None else self._scatter.sums}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state from `get_state`."""
        self._sums = state["sums"]
        super().set_state({name: value for name, value in state.items() if name != "sums"})

    def _find_batch_size(self) -> int:
        size = batch_size_of(find_running_fit(self), self.communicator.size)
        if size is None:
            raise ValueError(
                "GradientNoiseScale does not know how many rows a batch of one rank has: pass `local_batch_size` to it"
            )
        return size

    def _measure(self) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        if self._scatter is not None:
            found = self._scatter.take()
            scale, error = self._rows * found.noise_scale, self._rows * found.noise_scale_standard_error
            covariance, signal = self._rows * found.covariance_trace, found.squared_gradient_norm
        else:
            noise = noise_of(self._instruments)
            self.precision = noise.precision
            scale, error = noise.noise_scale.value, noise.noise_scale.standard_error
            covariance = noise.covariance_trace.value
            signal = noise.squared_gradient_norm - covariance / noise.num_rows
        values = {
            "noise_scale": scale,
            "noise_scale_standard_error": error,
            "covariance_trace": covariance,
            "squared_gradient_norm": signal,
        }
        return {f"gradient_noise/{name}": value for name, value in values.items()}, {}

    def plot(self, ax: "matplotlib.axes.Axes | None" = None, label: str | None = None) -> "matplotlib.axes.Axes":
        """Draw the noise scale against steps, with a band of two standard errors on each side.

        Args:
            ax: Axes to draw into; None (default) makes new ones.
            label: Name of the line; None (default) for "noise scale".

        Returns:
            The axes.
        """
        name, ax = check_label(label, "noise scale"), _plotting.get_axes(ax)
        name_of_scale = self._logged_as("gradient_noise/noise_scale")
        scale = np.array(self.history.get(name_of_scale, []))
        scale[~np.isfinite(scale)] = np.nan
        if len(scale):
            error = 2 * np.nan_to_num(np.array(self.history[f"{name_of_scale}_standard_error"]))
            (line,) = ax.plot(self.history["step"], scale, marker=".", label=name)
            lowest = np.nanmin(scale) / 10 if np.isfinite(scale).any() else 1.0
            low = np.maximum(scale - error, lowest)
            ax.fill_between(self.history["step"], low, scale + error, alpha=0.2, color=line.get_color())
            if label is not None:
                _plotting.add_legend(ax)
        ax.set(xlabel="step", ylabel="gradient noise scale (rows)", yscale="log")
        return ax
