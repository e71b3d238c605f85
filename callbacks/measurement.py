"""The base class of callbacks that measure a model on a probe: when, on which data, and where the results go."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from threadpoolctl import ThreadpoolController

from tfopt._checks import check_choice
from tfopt.callbacks import _time_share
from tfopt.callbacks._cadence import Cadence
from tfopt.callbacks._columns import pad_loggers
from tfopt.callbacks._history import MeasurementHistory
from tfopt.callbacks._log_name import check_log_name, logged_as, refuse_shared_log_names
from tfopt.callbacks._model_state import check_ranks, is_same, runs_eagerly, state_of
from tfopt.callbacks._old_program import warn_of_old_program
from tfopt.callbacks._rank_callback import RankCallback
from tfopt.callbacks._row_weights import weigh_as_fit_does
from tfopt.callbacks._running_fit import (
    build_model,
    build_on,
    check_has_call,
    come_before_loggers,
    find_running_fit,
    is_stopped,
)
from tfopt.callbacks._shared_objective import SharedObjective, share_objective, share_probe
from tfopt.callbacks._step_count import StepCount
from tfopt.callbacks._summaries import Summaries
from tfopt.callbacks._time_share import TimeShare, check_share
from tfopt.communicator import Communicator
from tfopt.communicator.agreement import in_agreement
from tfopt.curvature import Objective, Probe
from tfopt.curvature.batch_loss import BATCH_NORM_MODES, check_loss_name
from tfopt.curvature.probe import as_probe

if TYPE_CHECKING:
    import pandas


class Measurement(RankCallback):
    """The base class of the callbacks that measure a model on a probe, with the options that all of them take.

    It knows when to measure, on which data, and where the results go. A subclass says what it measures: it sets
    `group`, makes its instruments in `_make_instruments`, and uses them in `_measure`. A measurement is taken before
    the first step, when it is due, and at the end; the hooks `_after_start`, `_after_batches`, `_after_epoch` and
    `_after_training` change that.

    The model is traced when `fit` begins, and again when it is compiled, frozen or unfrozen. A model that runs eagerly
    is traced for each measurement, which takes seconds, because its Python values may have changed.

    Args:
        data: The data to measure on: (x, y), (x, y, sample_weight), a data set, or a `tfopt.curvature.Probe`. On
            several ranks, each rank passes its own rows.
        loss: As `compile` takes it. None (default) means the one that the model was compiled with.
        every_n_steps: Measure after each n-th training batch, an integer >= 1. None (default) means by epochs.
        every_n_epochs: Measure at the end of each n-th epoch, an integer >= 1. None (default) means every epoch, unless
            `every_n_steps` is given, but less often if measuring would take more than `max_share` of the time. A
            given interval is kept exactly.
        max_share: Largest share of the seconds of `fit` that measuring may take at the default interval, in (0, 1].
            Default 0.03. A measurement that would exceed it is put off, on all ranks alike. The share is at least one
            second. The first and the last measurement are taken in any case, and tracing and compiling count for at
            most half of the share. None or 1 measures at every default time, whatever it takes.
        batch_size: Rows in a batch of the probe, for arrays.
        batch_norm: "batch" (default) normalises by the statistics of each batch (of each group of rows, where gradients
            of groups are compared), "moving" by the moving averages.
        log_dir: Folder for TensorBoard's event files, with each value at its step. None (default) writes none.
        log_name: The first part of all names in logs and history, a string without "/". None (default) means the name
            of the group, such as "convexity". Any other takes the group's place, and stands before names of other
            groups: "validation/loss", "validation/hessian/lambda_max". Callbacks of one `fit` need different ones.
        communicator: The job's communicator; None (default) means `tfopt.communicator.current()`.

    Attributes:
        history: Lists with one entry for each measurement: `epoch` (epochs completed), `step` (steps that the optimizer
            took; training batches, if no optimizer takes steps), `seconds`, and all values in the logs, by the same
            names. NaN where a value was not measured. With a `max_share` that limits, also `interval` (epochs since the
            measurement before), `put_off` (measurements put off so far) and `setup_seconds` (tracing and compiling so
            far).
        precision: How layers were computed in the last measurement: "model", "float32" or "bfloat16", as
            `HessianOperator.precision` says.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range; in `fit`: the model or data cannot be measured.
    """

    group = ""
    needs_probe = True
    traces_early = False  # Whether it measures a loss that was traced before the measurement.

    def __init__(
        self,
        data: Any,
        loss: Any = None,
        *,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        max_share: float | None = 0.03,
        batch_size: int | None = None,
        batch_norm: str = "batch",
        log_dir: str | Path | None = None,
        log_name: str | None = None,
        communicator: Communicator | None = None,
    ) -> None:
        super().__init__(communicator)
        check_loss_name(loss)
        self.loss = loss
        is_left_out = data is None and not self.needs_probe
        self._given_probe = self._probe = None if is_left_out else as_probe(data, batch_size)
        self.cadence = Cadence.from_arguments(every_n_steps, every_n_epochs, self._default_epochs)
        self.max_share = check_share(max_share)
        self._is_exact = every_n_steps is not None or every_n_epochs is not None
        self.batch_norm = check_choice("batch_norm", batch_norm, BATCH_NORM_MODES)
        self.log_name = check_log_name(log_name, self.group)
        self._summaries = Summaries(log_dir if self.communicator.rank == 0 else None)
        self._instruments: Any = None
        self._made_for: tuple[Any, ...] = ()
        self._shared: SharedObjective | None = None
        self._start()

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles hold the measurements. Their next `fit` makes new instruments.
        dropped = {"_model": None, "_instruments": None, "_made_for": (), "_shared": None, "_is_ready": False}
        return self.__dict__ | dropped | {"_probe": self._given_probe}

    def _start(self) -> None:
        self.history = MeasurementHistory(epoch=[], step=[], seconds=[])
        self.precision = "model"
        self._latest: dict[str, float] = {}
        self._logged: set[str] = set()  # Names in the logs of the previous epoch.
        self._first_epoch: int | None = None
        self._epochs_completed = 0
        self._count = StepCount(hears_ends=self._is_counting)
        self._time = TimeShare(None if self._is_exact else self.max_share, self.communicator)
        self._is_first = True  # Whether the next measurement compiles.
        self._is_ready = False

    # --- for ResumableCheckpoint

    _STATE = ("history", "precision", "_latest", "_first_epoch", "_epochs_completed")

    def get_state(self) -> dict[str, Any]:
        """Return the measurements, and how far training has come."""
        parts = {"count": self._count.get_state(), "share": self._time.get_state()}
        return {name: getattr(self, name) for name in self._STATE} | parts

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state from `get_state`."""
        for name in self._STATE:
            setattr(self, name, state[name])
        self.history = MeasurementHistory(self.history)
        self._count.set_state(state["count"])
        self._time.set_state(state["share"])

    # --- hooks that Keras calls

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Start a new history."""
        super().on_train_begin(logs)
        in_agreement(self.communicator, lambda: refuse_shared_log_names(find_running_fit(self).callbacks))
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
        self._count.begin_batch(batch)

    @property
    def async_safe(self) -> bool:
        """Whether Keras need not wait for the metrics of each batch, because `on_train_batch_end` does nothing."""
        return not self._is_counting and type(self).on_train_batch_end is Measurement.on_train_batch_end

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Measure if it is due, and add the results to `logs`."""
        # `batch` is not used: if one execution makes several steps, it may be the first of them or beyond the last.
        if not self._is_counting:
            return
        num_measured, before = len(self.history["step"]), self._count.batches
        self._count.end_batch()
        self._after_batches(before, self._count.batches)
        if logs is not None and len(self.history["step"]) > num_measured:
            logs.update(self._latest)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Measure if it is due, and add the results of the last measurement to `logs`."""
        self.compare(f"the end of epoch {epoch + 1}", logs)
        before = self._count.batches
        self._count.end_epoch()
        if self._is_counting and self._count.batches > before:
            self._after_batches(before, self._count.batches)
        self._epochs_completed = epoch + 1
        is_last = epoch + 1 == self.parameters.get("epochs") or is_stopped(self.model)
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

    @property
    def _default_epochs(self) -> int | None:
        """Number of epochs between measurements if the user says nothing; None for tenths of training."""
        return 1

    def _make_instruments(self) -> Any:
        """Return what measures the model in its present state; `_instruments` holds it, and copies drop it."""
        raise NotImplementedError

    def _measure(self, **options: Any) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """Return scalars by their names in the logs, and values by variable, which stay out of the logs."""
        raise NotImplementedError

    def _after_start(self) -> None:
        """Act before the first step."""
        self._take()

    def _after_batches(self, before: int, after: int) -> None:
        """Act when the number of trained batches has increased from `before` to `after`."""
        if self.cadence.is_due_between(before, after):
            self._take()

    def _after_epoch(self, epochs: int, is_last: bool) -> None:
        """Act after an epoch."""
        is_new = not self._is_measured(self._steps)
        if is_new and (is_last or not self.history["step"] or self._is_due_and_allowed(epochs)):
            self._take()

    def _after_training(self) -> None:
        """Act after training."""
        if not self._is_measured(self._steps):
            self._take()

    # --- helpers of subclasses

    def _is_due_after_epoch(self, cadence: Cadence, epochs: int) -> bool:
        return cadence.is_due_after_epoch(epochs, self._first_epoch or 0, self.parameters.get("epochs") or epochs)

    def _is_due_and_allowed(self, epochs: int) -> bool:
        """Return whether a measurement is due after an epoch, and within the share of time, the same on all ranks."""
        if not self._is_due_after_epoch(self.cadence, epochs):
            return False
        if self._time.is_limited and not self._time.allows(self._cost_at_end, self._part_of_share):
            self._put_off()
            return False
        return True

    @property
    def _part_of_share(self) -> float:
        """The part of its share that the callback may use for measurements without extras."""
        return 1.0

    @property
    def _cost_at_end(self) -> float:
        """The expected seconds of the last measurement, which is taken in any case."""
        return self._time.cost

    def _put_off(self) -> None:
        self._time.put_off(type(self).__name__, bool(self.parameters.get("verbose")))
        self._latest[f"{self.log_name}/put_off"] = float(self._time.num_put_off)

    @property
    def _is_counting(self) -> bool:
        return self.cadence.every_n_steps is not None

    @property
    def _steps(self) -> int:
        return self._count.look()

    def _is_measured(self, step: int) -> bool:
        return step in self.history["step"][-1:]

    def _take(self, step: int | None = None, **options: Any) -> None:
        """Measure, and record the results for `step`, or for the current step."""
        begin, before = _time_share.clock(), self._time.total
        self._follow(is_measuring=not self.traces_early)
        self._time.begin(self._is_first)
        start = _time_share.clock()
        # Use one thread in NumPy's BLAS: its threads keep spinning after a call, and block TensorFlow's.
        with _native_threads().limit(limits=1, user_api="blas"):
            values, details = self._measure(**options)
        end = _time_share.clock()
        self._time.add(end - begin - (self._time.total - before), self._is_first)
        self._is_first = False
        self._record(self._steps if step is None else step, values, details, end - start)

    def _record(
        self, step: int, values: dict[str, float], details: dict[str, dict[str, float]], seconds: float
    ) -> None:
        history = self.history
        values = {self._logged_as(name): value for name, value in values.items()}
        if not self._is_measured(step):
            for name, series in history.items():
                series.append(0.0 if name == "seconds" else float("nan"))
        pace = self._time.pace(self._epochs_completed, history["epoch"])
        row = {"epoch": self._epochs_completed, "step": step, "seconds": history["seconds"][-1] + seconds}
        for name, value in {**row, **pace, **values, **details}.items():
            history.setdefault(name, [float("nan")] * len(history["step"]))[-1] = value
        of_group = {"seconds": sum(history["seconds"]), **pace}
        self._latest |= {**values, **{f"{self.log_name}/{name}": float(value) for name, value in of_group.items()}}
        parts = {self._logged_as(f"{name}/{path}"): v for name, found in details.items() for path, v in found.items()}
        self._summarise(step, {**values, **parts})

    def _summarise(self, step: int, numbers: dict[str, float]) -> None:
        """Write numbers, by their names in the logs, for TensorBoard."""
        self._summaries.write(step, numbers)

    def _logged_as(self, name: str) -> str:
        """Return the name in logs and history of a value that `_measure` returns by `name`."""
        return logged_as(name, self.group, self.log_name)

    def _get_ready(self) -> None:
        if self._given_probe is not None:
            probe = in_agreement(self.communicator, self._make_weighted_probe)
            known = [other._probe for other in self._others(are_before=True)]
            self._probe = share_probe(probe, [*known, self._probe], self.communicator)
        if self._probe is not None:
            build_on(self.model, self._probe.batches[0].x)
        elif not self.model.built:
            build_model(self.model, find_running_fit(self))
        running = find_running_fit(self)
        warn_of_old_program(type(self).__name__, self.model, running.epoch_iterator)
        self._follow(is_start=True)

    def _make_weighted_probe(self) -> Probe:
        check_has_call(type(self).__name__, self.model)
        running = find_running_fit(self)
        return weigh_as_fit_does(type(self).__name__, self._given_probe, running, self.model)

    def _others(self, are_before: bool = False) -> list["Measurement"]:
        """Return the other callbacks of this `fit` that measure on a probe, or those that come before this one."""
        callbacks = find_running_fit(self).callbacks
        callbacks = callbacks[: callbacks.index(self)] if are_before else callbacks
        return [c for c in callbacks if isinstance(c, Measurement) and c is not self and c._probe is not None]

    def _make_objective(self) -> Objective:
        """Return the objective of the model in its present state, one for all callbacks that measure the same."""
        # Nobody knows which Python values a model that runs eagerly had when it was traced for another callback.
        known = [] if runs_eagerly(self.model) else [other._shared for other in self._others()]
        self._shared = share_objective(self.model, self.loss, self._probe, self.batch_norm, self.communicator, known)
        return self._shared.objective

    def _follow(self, is_start: bool = False, is_measuring: bool = False) -> None:
        """Make new instruments if the model or the probe has changed, or its Python code may have."""
        is_new = not is_same(self._made_for, (self._probe, *state_of(self.model)))
        check_ranks(self.communicator, type(self).__name__, self.model, is_new, is_start)
        # If the model runs eagerly, `fit` runs the Python code of model and loss in each step, with values that change.
        if is_new or (is_measuring and self._probe is not None and runs_eagerly(self.model)):
            begin = _time_share.clock()
            self._instruments = self._make_instruments()
            self._made_for = (self._probe, *state_of(self.model))
            if is_new:  # Otherwise it costs this much in every measurement.
                self._time.add_setup(_time_share.clock() - begin)
                self._is_first = True
        if is_new and not is_start:
            self._after_change()

    def _after_change(self) -> None:
        """Set the latest values to NaN, because they belong to the model before its change."""
        self._latest = dict.fromkeys(self._latest, float("nan"))

    def to_dataframe(self) -> "pandas.DataFrame":
        """Return the measurements as a table.

        Returns:
            One row per measurement, with the columns `epoch`, `step`, `seconds` and what was measured; values by
            variable in a column for each, called by the name and the variable's path.
        """
        return self.history.to_dataframe()


@functools.cache
def _native_threads() -> ThreadpoolController:
    return ThreadpoolController()  # It searches all loaded libraries, which takes milliseconds.
