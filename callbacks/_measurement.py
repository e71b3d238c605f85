"""The base class of callbacks that measure a model on a probe: when, on which data, and where the results go."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf
from tfopt.callbacks._cadence import Cadence
from tfopt.callbacks._columns import pad_loggers
from tfopt.callbacks._history import MeasurementHistory
from tfopt.callbacks._model_state import check_ranks, is_same, state_of
from tfopt.callbacks._rank_callback import RankCallback
from tfopt.callbacks._row_weights import weigh_as_fit_does
from tfopt.callbacks._running_fit import build_model, come_before_loggers, find_running_fit, has_call
from tfopt.callbacks._step_count import StepCount
from tfopt.callbacks._summaries import Summaries
from threadpoolctl import ThreadpoolController

from tfopt._checks import check_choice
from tfopt.communicator import Communicator
from tfopt.communicator.agreement import in_agreement
from tfopt.curvature.objective import BATCH_NORM_MODES, check_loss_name
from tfopt.curvature.probe import Probe, as_probe, map_arrays

if TYPE_CHECKING:
    import pandas


class Measurement(RankCallback):
    """A callback that measures a model on a probe; `probe_data` is None where nothing is measured on a probe.

    `history` has lists with one entry per measurement: `epoch` (epochs completed), `step` (as `StepCount` counts),
    `seconds`, and the measured values. `precision` is `HessianOperator.precision` of the last measurement: "model",
    "float32" or "bfloat16".
    """

    group = ""
    needs_probe = True

    def __init__(
        self,
        probe_data: Any,
        loss: Any,
        *,
        cadence: Cadence,
        batch_size: int | None,
        batch_norm: str,
        log_dir: str | Path | None,
        communicator: Communicator | None,
    ) -> None:
        super().__init__(communicator)
        self.loss = loss
        self.cadence = cadence
        self.batch_norm = check_choice("batch_norm", batch_norm, BATCH_NORM_MODES)
        is_left_out = probe_data is None and not self.needs_probe
        self._given_probe = self._probe = None if is_left_out else _make_probe(probe_data, batch_size)
        self._summaries = Summaries(log_dir if self.communicator.rank == 0 else None)
        self._made_for: tuple[Any, ...] = ()
        self._check_loss_and_hooks()
        self._start()

    def _check_loss_and_hooks(self) -> None:
        check_loss_name(self.loss)
        if self.cadence.every_n_steps is None and type(self).on_train_batch_end is Measurement.on_train_batch_end:
            # Keras computes batch metrics synchronously only if a callback overrides this hook.
            self.__dict__["on_train_batch_end"] = keras.callbacks.Callback.on_train_batch_end.__get__(self)

    # Copies and pickles hold the measurements. Their next `fit` makes new instruments.

    _INSTRUMENTS = (
        *("on_train_batch_end", "_model", "_threads", "_hessian", "_network", "_meter", "_groups", "_scatter"),
        *("_waiting", "_kept"),
    )

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in self.__dict__.items() if name not in self._INSTRUMENTS}
        return kept | {"_made_for": (), "_is_ready": False, "_probe": self._given_probe}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _model=None, _scatter=None)
        self._check_loss_and_hooks()

    def _start(self) -> None:
        self.history = MeasurementHistory(epoch=[], step=[], seconds=[])
        self.precision = "model"
        self._latest: dict[str, float] = {}
        self._logged: set[str] = set()  # Names in the logs of the previous epoch.
        self._first_epoch: int | None = None
        self._epochs_completed = 0
        self._count = StepCount()
        self._is_ready = False

    # --- for ResumableCheckpoint

    _STATE = ("history", "precision", "_latest", "_first_epoch", "_epochs_completed")

    def get_state(self) -> dict[str, Any]:
        """Return the measurements, and how far training has come."""
        return {name: getattr(self, name) for name in self._STATE} | {"count": self._count.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state from `get_state`."""
        for name in self._STATE:
            setattr(self, name, state[name])
        self.history = MeasurementHistory(self.history)
        self._count.set_state(state["count"])

    # --- hooks that Keras calls

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Start a new history."""
        super().on_train_begin(logs)
        come_before_loggers(self)
        self._start()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Follow changes of the model; before the first epoch, make the instruments and measure."""
        super().on_epoch_begin(epoch, logs)
        self._epochs_completed = epoch
        if self._is_ready:
            self._count.begin_epoch(self.model, epoch, self.parameters.get("steps"))
            self._follow()
        else:
            self._get_ready()
            self._count.begin_epoch(self.model, epoch, self.parameters.get("steps"))
            self._is_ready = True
            if self._first_epoch is None:
                self._first_epoch = epoch
                self._after_start()

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Note where the next steps begin; `batch` (0-based) may be beyond the end of the data."""
        self._num_batches = batch + 1  # The ranks compare this number.
        self._count.begin_batch(self.model, batch, self._is_counting)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Measure if it is due, and add the results to `logs`; Keras calls this only if the cadence counts steps."""
        # `batch` is not used: if one execution makes several steps, it may be the first of them or beyond the last.
        num_measured, before = len(self.history["step"]), self._count.batches
        self._count.end_batch()
        self._after_batches(before, self._count.batches)
        if logs is not None and len(self.history["step"]) > num_measured:
            logs.update(self._latest)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Measure if it is due, and add the results of the last measurement to `logs`."""
        self.compare(f"the end of epoch {epoch + 1}", logs)
        before = self._count.batches
        self._count.end_epoch(self._is_counting)
        if self._is_counting and self._count.batches > before:
            self._after_batches(before, self._count.batches)
        self._epochs_completed = epoch + 1
        is_last = epoch + 1 == self.parameters.get("epochs") or bool(self.model.stop_training)
        self._after_epoch(epoch + 1, is_last)
        if logs is not None:
            if self._latest.keys() != self._logged:
                pad_loggers(find_running_fit(self).callbacks, sorted(self._latest))
                self._logged = set(self._latest)
            logs.update(self._latest)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Measure once more if training ended unexpectedly."""
        super().on_train_end(logs)
        if self._is_ready:
            self._after_training()

    # --- hooks of subclasses

    def _make_instruments(self) -> None:
        """Make the instruments, once for each state of the model."""

    def _measure(self, **options: Any) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """Return scalars by their names in the logs, and values by variable, which stay out of the logs."""
        raise NotImplementedError

    def _after_start(self) -> None:
        """Act before the first step."""

    def _after_batches(self, before: int, after: int) -> None:
        """Act when the number of trained batches has increased from `before` to `after`."""

    def _after_epoch(self, epochs: int, is_last: bool) -> None:
        """Act after an epoch."""

    def _after_training(self) -> None:
        """Act after training."""

    # --- helpers of subclasses

    def _is_due_after_epoch(self, cadence: Cadence, epochs: int) -> bool:
        return cadence.is_due_after_epoch(epochs, self._first_epoch or 0, self.parameters.get("epochs") or epochs)

    @property
    def _is_counting(self) -> bool:
        return self.cadence.every_n_steps is not None

    @property
    def _steps(self) -> int:
        return self._count.look(self.model)

    def _is_measured(self, step: int) -> bool:
        return step in self.history["step"][-1:]

    def _take(self, step: int | None = None, **options: Any) -> None:
        """Measure, and record the results for `step`, or for the current step."""
        self._follow()
        start = time.perf_counter()
        # Use one thread in NumPy's BLAS: its threads keep spinning after a call, and block TensorFlow's.
        with self._threads.limit(limits=1, user_api="blas"):
            values, details = self._measure(**options)
        self._record(self._steps if step is None else step, values, details, time.perf_counter() - start)

    def _record(
        self, step: int, values: dict[str, float], details: dict[str, dict[str, float]], seconds: float
    ) -> None:
        history = self.history
        if not self._is_measured(step):
            for name, series in history.items():
                series.append(0.0 if name == "seconds" else float("nan"))
        row = {"epoch": self._epochs_completed, "step": step, "seconds": history["seconds"][-1] + seconds}
        for name, value in {**row, **values, **details}.items():
            history.setdefault(name, [float("nan")] * len(history["step"]))[-1] = value
        self._latest |= {**values, f"{self.group}/seconds": float(sum(history["seconds"]))}
        parts = {f"{name}/{path}": v for name, found in details.items() for path, v in found.items()}
        self._summaries.write(step, {**values, **parts})

    def _get_ready(self) -> None:
        self._threads = ThreadpoolController()
        if self._given_probe is not None:
            self._probe = in_agreement(self.communicator, self._make_weighted_probe)
        self._build_model()
        self._follow(is_start=True)

    def _make_weighted_probe(self) -> Probe:
        name = type(self).__name__
        if not has_call(self.model):
            raise ValueError(
                f"{name} cannot measure {type(self.model).__name__}, which has a train_step and no call(): nothing "
                "says what its loss compares with the targets. Add a method call(inputs) that returns the outputs for "
                "`loss`; or measure one part of the model in a callback of your own, with "
                "tfopt.curvature.HessianOperator(model.part, loss, x, y)"
            )
        return weigh_as_fit_does(name, self._given_probe, self._probe, find_running_fit(self), self.model)

    def _follow(self, is_start: bool = False) -> None:
        """Make new instruments if the model or the probe has changed."""
        is_new = not is_same(self._made_for, (self._probe, *state_of(self.model)))
        check_ranks(self.communicator, type(self).__name__, self.model, is_new, is_start)
        if is_new:
            self._make_instruments()
            self._made_for = (self._probe, *state_of(self.model))
            if not is_start:
                self._after_change()

    def _after_change(self) -> None:
        """Set the latest values to NaN, because they belong to the model before its change."""
        self._latest = dict.fromkeys(self._latest, float("nan"))

    def _build_model(self) -> None:
        if self.model.built:
            return
        if self._probe is None:
            build_model(self.model, find_running_fit(self))
            return
        # Build from the probe, because reading the training data would use up one of their shuffles.
        floats = keras.config.floatx()
        self.model(map_arrays(lambda x: tf.cast(x, floats) if x.dtype.is_floating else x, self._probe.batches[0].x))

    def to_dataframe(self) -> "pandas.DataFrame":
        """Return the measurements as a table.

        Returns:
            One row per measurement, with the columns `epoch`, `step`, `seconds` and what was measured; values by
            variable in a column for each, called by the name and the variable's path.
        """
        return self.history.to_dataframe()


def _make_probe(data: Any, batch_size: int | None) -> Probe:
    parts = data if isinstance(data, tuple) else (data,)
    if not 1 <= len(parts) <= 3:
        raise ValueError(
            "`probe_data` must be (x, y), (x, y, sample_weight), a data set or a tfopt.curvature.Probe. "
            f"Received: a tuple of {len(parts)}"
        )
    if isinstance(data, list):
        raise TypeError("`probe_data` must be a tuple (x, y), not a list: a list means several inputs without targets")
    try:
        return as_probe(*parts, batch_size=batch_size)
    except (TypeError, ValueError) as error:
        raise type(error)(f"`probe_data` must be what a Probe can hold: {error}") from error
