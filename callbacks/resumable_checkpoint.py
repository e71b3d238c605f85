"""Checkpoints from which training goes on as if it had never been interrupted, bit for bit."""

import os
import warnings
import weakref
from pathlib import Path
from typing import Any

from tfopt import _keras
from tfopt._checkpoints.callback_states import check_states, set_states, states_of
from tfopt._checkpoints.earlier_fits import EarlierFits
from tfopt._checkpoints.generations import CheckpointFiles
from tfopt._checks import as_items, check_folder, check_integer
from tfopt.callbacks._callback import Callback
from tfopt.callbacks._optimizers_of import optimizers_of
from tfopt.callbacks._resuming.callback_arguments import arguments_of_callbacks
from tfopt.callbacks._resuming.data_position import DataPosition
from tfopt.callbacks._resuming.job import arguments_of_job, changed_by_training
from tfopt.callbacks._resuming.job_comparison import Job, check_job, check_variables, follow_compiling, warn_about_job
from tfopt.callbacks._resuming.lost_states import LostStates
from tfopt.callbacks._resuming.own_code import own_code
from tfopt.callbacks._resuming.plain_state import PlainState
from tfopt.callbacks._resuming.random_state import random_state, set_random_state
from tfopt.callbacks._resuming.resumability import (
    check_averages,
    check_callbacks,
    check_data,
    check_validation,
    functions_in,
)
from tfopt.callbacks._resuming.row_order import RowOrder
from tfopt.callbacks._resuming.steps import trace_steps
from tfopt.callbacks._resuming.still_running import StillRunning
from tfopt.callbacks._resuming.training_state import check_step, check_that_none_is_new, read, variables_of
from tfopt.callbacks._resuming.values_of_training import changed_values, checksum_of_values
from tfopt.callbacks._running_fit import (
    RunningFit,
    come_last,
    epoch_batches_of,
    find_running_fit,
    is_stopped,
    reset_given_metrics,
)
from tfopt.communicator import Communicator, check_communicator
from tfopt.communicator.agreement import in_agreement

_TRAINED: weakref.WeakSet[Any] = weakref.WeakSet()  # Models that this process has trained.


class ResumableCheckpoint(Callback):
    """Save the whole state of training at the end of epochs, and go on from there when `fit` is called again.

    Start the same script again after it was killed. It ends with the weights that it would have had, bit for bit (on
    the same machine, with the same number of threads). A checkpoint holds:

    - the variables of the model, of all its optimizers, and in attributes of the model or of the objects that it holds;
    - plain values that the model's code changes;
    - the states of Python's, NumPy's and Keras's random number generators;
    - `History`, and the state of other callbacks;
    - the epoch, from which `tfopt.datasets.EpochBatches` computes its order.

    Arrays that `fit` shuffles come in Keras's order if `keras.utils.set_random_seed` was called. Otherwise their order
    follows from the epoch and a seed that is saved. A `tf.data.Dataset` may shuffle again in each epoch if it has a
    seed. If something cannot be resumed, an error names it before the first step.

    The callback keeps two checkpoints. It writes each file under another name and renames it, and files carry
    checksums. If a file is damaged, a warning says so and the older checkpoint is used. Under `horovodrun` every rank
    writes and reads its own file, and all ranks go on from the newest epoch that all of them have. While a job trains,
    its folder is locked against other jobs.

    After the last epoch was saved, or a callback has stopped training, the same script returns at once. Delete the
    folder to begin anew. Use one folder for each training: in one process, after a `fit` has ended, a second one in its
    folder goes on to a larger `epochs`, or is refused.

    The callback runs after all other callbacks, at any position in the list. It knows the states of Keras's own
    callbacks and of tfopt's. Other callbacks can have methods `get_state()` and `set_state(state)`.

    Args:
        folder: Where to write.
        every_n_epochs: Write at the end of each n-th epoch and of the last, an integer >= 1. Default 1.
        stateless: Your callback classes that have no state to keep, and whose arguments can change; and classes of data
            that serve the same batches in each epoch: your `PyDataset`s, and `tf.data.Dataset` for data sets that call
            Python (`from_generator`, `py_function`).
        verbose: 1 (default) prints a line when training is resumed, 0 does not.
        communicator: The job's communicator; None (default) means `tfopt.communicator.current()`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range; in `fit`: another callback, the data or the training step cannot
            be resumed, the folder cannot be written, another training uses it, or it holds the checkpoints of another
            job: other data, layers, loss, optimizers or number of ranks.
        TypeError: In `fit`: the state of a callback, or a value in `logs`, cannot be saved.
        OSError: In `fit`: a checkpoint cannot be written. On a full disk, the message says how much room is needed.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from tfopt.datasets import EpochBatches
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", loss="mse")
        >>> batches = EpochBatches(np.ones((8, 2)), np.ones(8), batch_size=4, seed=0)
        >>> checkpoint = ResumableCheckpoint(tempfile.mkdtemp(), verbose=0)
        >>> for epochs in (2, 3):
        ...     history = model.fit(batches, shuffle=False, epochs=epochs, verbose=0, callbacks=[checkpoint])
        >>> history.epoch
        [0, 1, 2]
    """

    needs_optimizer = True

    def __init__(
        self,
        folder: str | Path,
        every_n_epochs: int = 1,
        stateless: tuple[type, ...] | list[type] = (),
        verbose: int = 1,
        communicator: Communicator | None = None,
    ) -> None:
        super().__init__()
        self.folder = check_folder("folder", folder)
        self.every_n_epochs = check_integer("every_n_epochs", every_n_epochs, minimum=1)
        self.stateless = as_items("stateless", stateless, "hold classes")
        if not all(isinstance(item, type) for item in self.stateless):
            raise TypeError(f"`stateless` must hold classes. Received: stateless={stateless!r}")
        self.verbose = check_integer("verbose", verbose, minimum=0, maximum=1)
        self.communicator = check_communicator(communicator)
        self._still_running = StillRunning(self)
        self._files = CheckpointFiles(self.folder, self.communicator, "ResumableCheckpoint", self._still_running)
        self._earlier = EarlierFits(self.folder, self.communicator.rank)
        self._running = RunningFit([])
        self._order, self._position = RowOrder(None), DataPosition(None, None)
        self._variables: list[tuple[str, Any]] = []
        self._plain = PlainState(None)
        self._job = Job({}, {}, {})
        self._program: Any = None
        self._lost = LostStates([], (), [], self._plain)
        weakref.finalize(self, self._files.close)  # After an exception, nothing else closes them.

    def set_model(self, model: Any) -> None:
        """Take the model, and move behind all other callbacks, because their changes are saved too.

        Args:
            model: The Keras model.

        Raises:
            ValueError: A running `fit` of another model uses this callback.
        """
        if self.model is not None and model is not self.model:
            self._still_running.check(0)
        super().set_model(model)
        come_last(self)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Check that this training can be resumed, and resume it if there is a checkpoint.

        Args:
            logs: Not used.

        Raises:
            ValueError: Something of this training cannot be resumed, the folder cannot be written, another training
                uses it, or its checkpoints are of another training.
        """
        self._still_running.check(1)
        self._files.close()  # An exception may have ended the last `fit`.
        self._running = find_running_fit(self)
        self._still_running.begin()
        in_agreement(self.communicator, self._check_callbacks_and_data)
        self._order = RowOrder(self._running.epoch_iterator)
        self._position = in_agreement(self.communicator, self._position_now)
        steps = trace_steps(self.model, self._running)
        self._position.rewind()
        self._variables = variables_of(self.model, steps, self.communicator)
        in_agreement(self.communicator, lambda: self._check_steps(steps))
        in_agreement(self.communicator, lambda: states_of(self._others))  # Raises if a state cannot be saved.
        self._job = in_agreement(self.communicator, self._job_now)
        self._program = getattr(self.model, "train_function", None)
        self._plain = PlainState(self.model, functions_in(self._others))
        saved = [variable for _, variable in self._variables]
        self._lost = LostStates(self._others, self.stateless, saved, self._plain)
        self._files.open()
        try:
            state = self._files.read_newest()
            first = checksum_of_values(self.model, self._variables, self._order)
            if state is not None:
                in_agreement(self.communicator, lambda: self._check(state, first))
                self._restore(state)
            self._earlier.begin(first, self.parameters.get("epochs") or 0, state is not None)
            _TRAINED.add(self.model)
        except BaseException:
            self._files.close()
            raise

    def _check_callbacks_and_data(self) -> None:
        if not self.model.compiled and not optimizers_of(self.model):
            raise ValueError(
                "ResumableCheckpoint saves the optimizers that it finds in the model. Received: a model that was not "
                "compiled, and has none. Compile it with the optimizer of your loop, or keep the optimizer in an "
                "attribute of the model"
            )
        check_callbacks(self._running.callbacks)
        check_data(self._running.epoch_iterator, self.stateless)
        check_validation(self._running, self.stateless)

    def _position_now(self) -> DataPosition:
        return DataPosition(self._running.epoch_iterator, self._running.validation)

    def _job_now(self) -> Job:
        callbacks = arguments_of_callbacks(self._others, self.stateless)
        return Job(arguments_of_job(self.model, self._running, self._order.source), own_code(self.model), callbacks)

    def _check_steps(self, steps: dict[str, Any]) -> None:
        for step, graph in steps.items():
            check_step(step, graph, self._variables, self.communicator)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Tell `EpochBatches` the epoch, for training and validation data."""
        _keras.initial_epoch.set(self.model, None)  # `fit` has read it. An exception must not leave it behind.
        self._order.epoch = epoch
        for batches in (epoch_batches_of(self._running), self._running.validation):
            if hasattr(batches, "start_at"):
                batches.start_at(epoch)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write a checkpoint if it is due."""
        is_last = epoch + 1 == self.parameters.get("epochs") or is_stopped(self.model)
        if (epoch + 1) % self.every_n_epochs == 0 or is_last:
            self._files.write(epoch + 1, self._state(epoch))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Leave the model as a later `fit` without this callback needs it."""
        _keras.initial_epoch.set(self.model, None)
        self._earlier.end()
        self._running = RunningFit([])
        self._variables, self._plain = [], PlainState(None)
        self._position, self._lost = DataPosition(None, None), LostStates([], (), [], self._plain)
        self._files.close()

    def _state(self, epoch: int) -> dict[str, Any]:
        check_that_none_is_new(self.model, self._variables)
        program = getattr(self.model, "train_function", None)
        if program is not self._program:  # Freezing a layer has no effect without compiling.
            self._program = program
            follow_compiling(self._job, self.model)
        self._lost.warn(self._position)
        return {
            "epochs": epoch + 1,
            "planned": self.parameters.get("epochs"),
            "stopped": is_stopped(self.model),
            "job": vars(self._job),
            "changed": {
                "arguments": changed_by_training(self.model, self._job.arguments),
                "code": own_code(self.model),
                "callbacks": arguments_of_callbacks(self._others, self.stateless),
            },
            "process": os.getpid(),
            "variables": [[name, read(variable)] for name, variable in self._variables],
            "attributes": self._plain.get_state(),
            "random": random_state(),
            "order": self._order.seed,
            "position in the data": self._position.state(),
            "callbacks": states_of(self._others),
        }

    @property
    def _others(self) -> list[Any]:
        return [callback for callback in self._running.callbacks if callback is not self]

    def _check(self, state: dict[str, Any], first_values: int) -> None:
        check_variables(self.folder, state, [name for name, _ in self._variables], self._job, self.model in _TRAINED)
        check_job(self.folder, state, self._job, self.model in _TRAINED)
        first = self._running.given.get("initial_epoch", 0)
        if state["epochs"] < first and not state["stopped"]:
            raise ValueError(
                f"The checkpoint in {self.folder} has {state['epochs']} epochs, and this training would begin after "
                f"{first}. Received: initial_epoch={first}. Leave it out, because the checkpoint knows its epoch"
            )
        self._earlier.check(
            first_values,
            lambda: changed_values(self.model, self._variables, state["variables"]),
            (state["epochs"], state["stopped"]),
            (first, self.parameters.get("epochs") or 0),
        )
        check_states(self._others, state["callbacks"], self.folder)
        check_averages(self._others, state, self.parameters.get("epochs"))
        warn_about_job(self.folder, state, self._job, self.model in _TRAINED)
        if state["epochs"] > (self.parameters.get("epochs") or state["epochs"]):
            warnings.warn(
                f"The checkpoint in {self.folder} has {state['epochs']} epochs, more than `fit` asks for. Received: "
                f"epochs={self.parameters['epochs']}. The model is the one after {state['epochs']} epochs",
                stacklevel=3,
            )

    def _restore(self, state: dict[str, Any]) -> None:
        for (_, variable), (_, value) in zip(self._variables, state["variables"], strict=True):
            variable.assign(value)
        reset_given_metrics(self.model)  # The next epoch begins with empty metrics.
        if missing := self._plain.set_state(state["attributes"]):
            warnings.warn(
                f"The checkpoint in {self.folder} holds what training had changed in {', '.join(missing)}, which do "
                "not exist now. If they matter, training does not go on as if it had not been interrupted",
                stacklevel=3,
            )
        set_states(self._others, state["callbacks"])
        self._order.seed = state["order"]
        self._job = Job(**state["job"])  # The job as the training began.
        epochs = self.parameters.get("epochs") or 0
        is_over = state["stopped"] or state["epochs"] >= epochs
        read_again = self._position.restore(state["position in the data"], is_over)
        set_random_state(state["random"])
        _keras.initial_epoch.set(self.model, epochs if state["stopped"] else min(state["epochs"], epochs))
        if state["stopped"]:
            self.model.stop_training = True
        if self.verbose and self.communicator.rank == 0:
            why = ", where training was stopped" * state["stopped"]
            again = f"; {read_again} batches were read again, to go on behind them" * bool(read_again)
            print(f"Resuming after epoch {state['epochs']}{why} from {self.folder}{again}")
