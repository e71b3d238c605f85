"""One call of `fit`: sweeps and callbacks, detection of divergence, best weights, checkpoints."""

import math
import time
import warnings
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfopt._checkpoints.callback_states import check_states, refuse_overwriting_loggers, set_states, states_of
from tfopt._checkpoints.earlier_fits import EarlierFits
from tfopt._checkpoints.generations import CheckpointFiles
from tfopt.bregman.engine import Engine, Problem, weights_from_arrays
from tfopt.bregman.first_weights import choose_first_weights
from tfopt.bregman.network import weights_to_arrays
from tfopt.bregman.restarted import Restarted
from tfopt.bregman.rows import Rows
from tfopt.bregman.splitting import Splitting
from tfopt.bregman.standardisation import Standardisation
from tfopt.bregman.start import Start
from tfopt.communicator.agreement import in_agreement

__all__ = ["FitLoop", "make_callbacks"]

_EXPLOSION = 30.0  # A loss above this multiple of max(first loss, unit of the loss) counts as divergence.
_MOST_OVERFLOWS = 10
_REFUSED = (
    keras.callbacks.BackupAndRestore,
    keras.callbacks.LearningRateScheduler,
    keras.callbacks.ReduceLROnPlateau,
    keras.callbacks.SwapEMAWeights,
)


def make_callbacks(
    model: Any, callbacks: Any, verbose: int | str, epochs: int, rank: int, is_resumable: bool
) -> keras.callbacks.CallbackList:
    """Return Keras's list of callbacks with a History and a progress bar; raise for callbacks without effect."""
    if verbose == "auto":
        verbose = int(rank == 0)
    for callback in callbacks if isinstance(callbacks, list | tuple) else [callbacks]:
        if not isinstance(callback, keras.callbacks.Callback | keras.callbacks.CallbackList | None):
            raise TypeError(f"`callbacks` must hold Keras callbacks. Received: {callback!r}")
    listed = keras.callbacks.CallbackList(
        callbacks, add_history=True, add_progbar=verbose != 0, model=model, verbose=verbose, epochs=epochs, steps=1
    )
    for callback in listed.callbacks:
        if isinstance(callback, _REFUSED) or getattr(callback, "needs_optimizer", False):
            raise ValueError(
                f"`callbacks` has a {type(callback).__name__}, which does nothing here: there is no optimizer and no "
                "learning rate, ranks always share their weights, and `checkpoint=` saves the whole state of training"
            )
    if is_resumable:
        refuse_overwriting_loggers(listed.callbacks)
    return listed


class FitLoop:
    """Training from the model's current weights.

    Args:
        problem: The training problem.
        rows: The rows to train on.
        validation: The rows to validate on; None for none.
        callbacks: The list from `make_callbacks`.
        epochs: Number of the last sweep.
        measure_every_n_epochs: Number of sweeps between computations of the metrics and of the validation.
    """

    def __init__(
        self,
        problem: Problem,
        rows: Rows,
        validation: Rows | None,
        callbacks: keras.callbacks.CallbackList,
        epochs: int,
        measure_every_n_epochs: int,
    ) -> None:
        self._problem, self._rows, self._validation = problem, rows, validation
        self._callbacks, self._epochs, self._measure_every = callbacks, epochs, measure_every_n_epochs
        self._chain, self._communicator = problem.chain, problem.communicator
        self._model = problem.chain.model
        self._history = next(c for c in callbacks.callbacks if isinstance(c, keras.callbacks.History))
        self._largest = math.inf
        self._files: CheckpointFiles | None = None
        # Both with checkpoints only.
        self._start: Start | None = None
        self._earlier: EarlierFits | None = None

    def train(
        self, initial_epoch: int, files: CheckpointFiles | None = None, every_n_epochs: int = 1
    ) -> keras.callbacks.History:
        """Train from sweep `initial_epoch`, and return the history; `files` are for checkpoints, None for none."""
        self._files, self._every = files, every_n_epochs
        if files is not None:
            files.open()
        # Callbacks look for the model's optimizer. A compiled optimizer takes no steps here: hide it, and restore it at
        # the end.
        was_compiled, optimizer = hasattr(self._model, "optimizer"), getattr(self._model, "optimizer", None)
        self._model.optimizer = None
        try:
            return self._train(initial_epoch)
        finally:
            if files is not None:
                files.close()
            if self._start is not None:
                self._start.note_end()
            if was_compiled:
                self._model.optimizer = optimizer
            else:
                del self._model.optimizer

    def _train(self, initial_epoch: int) -> keras.callbacks.History:
        self._model.stop_training = False
        state = None
        if self._files is not None:
            state = self._files.read_newest()
            start = Start(self._chain, self._problem.settings, self._folder)
            start.share(self._communicator)
            earlier, first = EarlierFits(self._folder, self._communicator.rank), start.facts["checksum"]
            if state is not None:
                asked = initial_epoch, self._epochs
                in_agreement(self._communicator, lambda: self._check_checkpoint(state, start, earlier, asked))
                start.facts = state["start"]
            earlier.begin(first, self._epochs, state is not None)
            self._start, self._earlier = start, earlier
        self._standardise(state)
        self._set_up_engine(state)
        first = self._engine.start()
        self._largest = _EXPLOSION * max(self._standardisation.loss_unit, first["loss"])
        if initial_epoch < self._epochs:
            self._write_weights(self._engine.weights)
        self._callbacks.on_train_begin()
        self._history.diverged, self._history.best_epoch = False, None
        if state is not None:
            initial_epoch = self._restore(state)
        logs: dict[str, Any] = {}
        for epoch in range(initial_epoch, self._epochs):
            self._callbacks.on_epoch_begin(epoch)
            self._callbacks.on_train_batch_begin(0)  # A sweep is an epoch of one batch.
            logs, reason = self._sweep(epoch)
            self._callbacks.on_train_batch_end(0, {k: v for k, v in logs.items() if not k.startswith("val_")})
            self._callbacks.on_epoch_end(epoch, logs)
            if reason:
                self._give_up(epoch, reason)
                break
            stops = self._any_rank_stops()
            self._write_checkpoint(epoch, stops)
            if stops:
                break
        self._callbacks.on_train_end(logs)
        if self._earlier is not None and not self._history.diverged:
            self._earlier.end()
        return self._history

    def _standardise(self, state: Any) -> None:
        # Standardise by the rows of all ranks, or as a checkpoint says.
        if state is None:
            self._standardisation = self._rows.find_standardisation()
        else:
            self._standardisation = Standardisation(**state["standardisation"])
        for rows in (self._rows, self._validation):
            if rows is not None:
                rows.use(self._standardisation)

    def _set_up_engine(self, state: Any) -> None:
        algorithm = {"restarted": Restarted, "splitting": Splitting}[self._problem.settings.algorithm]
        self._engine: Engine = algorithm(self._problem, self._rows)
        if state is None:
            self._engine.weights = choose_first_weights(self._problem, self._rows)
        else:
            self._engine.set_state(state["engine"])
        self._best: tuple[float, int, Any] = (math.inf, -1, self._engine.weights)

    def _write_weights(self, weights: Any) -> None:
        self._chain.write_weights(self._standardisation.to_model(weights))

    def _sweep(self, epoch: int) -> tuple[dict[str, Any], str]:
        begin = time.perf_counter()
        reduced = self._communicator.bytes_reduced
        is_due = (epoch + 1) % self._measure_every == 0 or epoch + 1 == self._epochs
        logs = self._engine.sweep(is_due)
        reason = self._find_divergence(logs)
        self._write_weights(self._engine.weights)
        if is_due and not reason:
            if self._validation is not None:
                measured = self._problem.evaluation(self._validation, self._engine.weights)[1]
                logs |= {f"val_{name}": value for name, value in measured.items()}
            monitored = logs["val_loss" if self._validation is not None else "loss"]
            if monitored < self._best[0]:
                self._best = (monitored, epoch, self._engine.weights)
                self._history.best_epoch = epoch
        logs["seconds"] = time.perf_counter() - begin
        logs["bytes_reduced"] = self._communicator.bytes_reduced - reduced
        return logs, reason

    def _find_divergence(self, logs: dict[str, Any]) -> str:
        if not all(bool(tf.reduce_all(tf.math.is_finite(part))) for part in tf.nest.flatten(self._engine.weights)):
            return "weights are not finite"
        for name in ("objective", "loss"):
            value = logs.get(name, 0.0)
            if not math.isfinite(value):
                return f"the {name} is {value}"
        if self._engine.num_overflows >= _MOST_OVERFLOWS:
            return f"{_MOST_OVERFLOWS} sweeps in a row overflowed"
        if logs.get("loss", 0.0) > self._largest:
            return f"the loss has grown to {logs['loss']:.3g}"
        return ""

    def _give_up(self, epoch: int, reason: str) -> None:
        _, best_epoch, weights = self._best
        self._write_weights(weights)
        self._history.diverged = True
        self._history.best_epoch = None if best_epoch < 0 else best_epoch
        which = "the first weights" if best_epoch < 0 else f"the weights of epoch {best_epoch + 1}, the best,"
        warnings.warn(
            f"Training diverged in epoch {epoch + 1}: {reason}. It was stopped, and {which} were restored",
            stacklevel=5,
        )

    def _any_rank_stops(self) -> bool:
        stops = tf.constant(float(bool(self._model.stop_training)), tf.float64)
        (stops,) = self._communicator.allreduce_sum([stops], name="whether to stop")
        return bool(stops > 0)

    # ---- Checkpoints

    def _fingerprint(self) -> dict[str, Any]:
        problem = self._problem
        return {
            "algorithm": problem.settings.algorithm,
            **{name: repr(value) for name, value in vars(problem.settings).items()},
            "network": [list(self._chain.widths), [h.name for h in self._chain.activations], str(self._chain.dtype)],
            "biases": list(self._chain.uses_bias),
            "loss": problem.loss.name,
            "metrics": problem.evaluation.metric_facts,
            "rows": [self._rows.num_rows, self._rows.total_rows],
            "checksum of the rows": self._rows.checksum,
            "checksum of the validation rows": self._validation.checksum if self._validation else None,
        }

    def _check_fingerprint(self, state: dict[str, Any]) -> None:
        there, here = state["fingerprint"], self._fingerprint()
        different = [name for name in here if there.get(name) != here[name]]
        # The checksums depend on the blocks, and therefore on the network and the options. Report them only if nothing
        # else differs.
        different = [name for name in different if "checksum" not in name] or different
        changes = [f"{name} was {there.get(name)}, is {here[name]}" for name in different]
        if changes:
            raise ValueError(
                f"The checkpoint in {self._folder} is of another training: {'; '.join(changes)}. "
                "Change them back, or delete the folder to begin anew"
            )

    def _check_checkpoint(self, state: Any, start: Start, earlier: EarlierFits, asked: tuple[int, int]) -> None:
        # `asked` are `initial_epoch` and `epochs`.
        self._check_fingerprint(state)
        standardisation = Standardisation(**state["standardisation"])
        written = [
            standardisation.to_model(weights_from_arrays(part))
            for part in (state["engine"]["weights"], state["best"][2])
        ]
        start.check(state["start"], written, state["stopped"] or state["epochs"] >= self._epochs)
        # Other weights are refused above.
        earlier.check(start.facts["checksum"], lambda: [], (state["epochs"], state["stopped"]), asked)

    def _write_checkpoint(self, epoch: int, stops: bool) -> None:
        is_last = stops or epoch + 1 == self._epochs
        if self._files is None or self._start is None or not ((epoch + 1) % self._every == 0 or is_last):
            return
        best, best_epoch, weights = self._best
        self._files.write(
            epoch + 1,
            {
                "fingerprint": self._fingerprint(),
                "start": self._start.facts,
                "standardisation": vars(self._standardisation),
                "engine": self._engine.get_state(),
                "epochs": epoch + 1,
                "stopped": stops,
                "best": [best, best_epoch, weights_to_arrays(weights)],
                "largest": self._largest,
                "callbacks": states_of(self._callbacks.callbacks),
            },
        )

    @property
    def _folder(self) -> Path:
        assert self._files is not None
        return self._files.folder

    def _restore(self, state: dict[str, Any]) -> int:
        if self._history.params.get("verbose"):
            print(f"Resuming after epoch {state['epochs']} of {self._folder}")
        # Some callbacks have no state before training begins, so their states are checked only now.
        in_agreement(
            self._communicator, lambda: check_states(self._callbacks.callbacks, state["callbacks"], self._folder)
        )
        set_states(self._callbacks.callbacks, state["callbacks"])
        best, best_epoch, weights = state["best"]
        self._best = (best, best_epoch, weights_from_arrays(weights))
        self._largest = state["largest"]
        self._history.best_epoch = None if best_epoch < 0 else best_epoch
        return self._epochs if state["stopped"] else state["epochs"]
