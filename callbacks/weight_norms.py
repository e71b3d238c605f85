"""The norm of each trainable variable along training."""

from typing import TYPE_CHECKING, Any

from tfopt import _keras, _plotting, numerics
from tfopt._checks import check_integer, check_label
from tfopt._variables import trained_variables, unique_paths
from tfopt.callbacks._callback import Callback
from tfopt.callbacks._columns import by_path
from tfopt.callbacks._history import MeasurementHistory
from tfopt.callbacks._log_name import check_log_name, refuse_shared_log_names
from tfopt.callbacks._running_fit import come_before_loggers, find_running_fit, has_call, is_stopped
from tfopt.callbacks._step_count import StepCount
from tfopt.callbacks._values import to_numpy

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas


class WeightNorms(Callback):
    """Record the Frobenius norm of every trainable variable.

    The scales and histories of float8 layers are left out, because the optimizer replaces them instead of moving them.

    The callback measures before the first epoch (if the model is built by then), at the end of every n-th epoch, and at
    the end of training. The largest norm, and the smallest norm that is not zero, go into `logs` as `weight_norms/max`
    and `weight_norms/min` from the first epoch on, for History, CSVLogger and TensorBoard. The norms of each variable
    stay in `history`.

    Args:
        every_n_epochs: Measure at the end of each n-th epoch, an integer >= 1. Default 1.
        log_name: The first part of the names in logs, a string without "/". Default "weight_norms".

    Attributes:
        history: A dictionary with the lists `epoch` (number of epochs completed), `step` (steps that the optimizer
            took, without those that loss scaling skipped; training batches, if no optimizer takes steps),
            and `norms`, whose elements map each variable's path to its norm. If variables have the same path, the
            second is called `path (2)`, and so on. The variables are those that are trainable at the time.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range.

    Example:
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="d", kernel_initializer="ones")])
        >>> model.compile(loss="mse")
        >>> norms = WeightNorms()
        >>> _ = model.fit(np.zeros((4, 2)), np.zeros((4, 1)), epochs=2, verbose=0, callbacks=[norms])
        >>> norms.history["epoch"]
        [0, 1, 2]
        >>> [round(max(entry.values()), 3) for entry in norms.history["norms"]]
        [1.414, 1.414, 1.414]
    """

    group = "weight_norms"

    def __init__(self, every_n_epochs: int = 1, log_name: str | None = None) -> None:
        super().__init__()
        self.every_n_epochs = check_integer("every_n_epochs", every_n_epochs, minimum=1)
        self.log_name = check_log_name(log_name, self.group)
        self._start()

    def _start(self) -> None:
        self.history = MeasurementHistory(epoch=[], step=[], norms=[])
        self._epochs_completed: int | None = None
        self._count = StepCount()

    def get_state(self) -> dict[str, Any]:
        """Return the measurements, and how far training has come."""
        count = self._count.get_state()
        return {"history": self.history, "epochs_completed": self._epochs_completed, "count": count}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state from `get_state`."""
        self.history = MeasurementHistory(state["history"])
        self._epochs_completed = state["epochs_completed"]
        self._count.set_state(state["count"])

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Start a new history.

        Args:
            logs: Not used.

        Raises:
            ValueError: Another callback of this `fit` has the same `log_name`.
        """
        refuse_shared_log_names(find_running_fit(self).callbacks)
        come_before_loggers(self)
        self._start()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Measure before the first epoch if the model has been built."""
        self._count.begin_epoch(self.model, epoch, self.parameters.get("steps"))
        if self._epochs_completed is None and self._is_built():
            self._measure(epoch)
        self._epochs_completed = epoch

    def _is_built(self) -> bool:
        # Keras never builds a model without a call(), but it builds the parts of the model.
        layers = [] if has_call(self.model) else _keras.flatten_layers(self.model)(include_self=False)
        return self.model.built or (bool(layers) and all(layer.built for layer in layers))

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Count the batch."""
        self._count.begin_batch(batch)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Measure if it is due, and write the largest and the smallest norm into `logs`."""
        self._count.end_epoch()
        self._epochs_completed = epoch + 1
        is_last = epoch + 1 == self.parameters.get("epochs") or is_stopped(self.model)
        if (epoch + 1) % self.every_n_epochs == 0 or is_last or not self.history["norms"]:
            self._measure(epoch + 1)
        if logs is not None:
            norms = self.history["norms"][-1].values()
            logs[f"{self.log_name}/max"] = max(norms, default=0.0)
            logs[f"{self.log_name}/min"] = min((norm for norm in norms if norm > 0), default=0.0)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Measure once more if training stopped after an epoch that was not measured."""
        if self._epochs_completed is not None and self._epochs_completed not in self.history["epoch"]:
            self._measure(self._epochs_completed)

    def _measure(self, epoch: int) -> None:
        variables = trained_variables(self.model.trainable_variables)
        norms = {
            path: float(to_numpy(numerics.norm(variable.value)))
            for path, variable in zip(unique_paths(variables), variables, strict=True)
        }
        self.history["epoch"].append(epoch)
        self.history["step"].append(self._count.look())
        self.history["norms"].append(norms)

    def to_dataframe(self) -> "pandas.DataFrame":
        """Return the norms as a table.

        Returns:
            One row per measurement, with the columns `epoch`, `step` and `norms/PATH` for the path of each variable;
            NaN where it was not trainable.
        """
        return self.history.to_dataframe()

    def plot(self, ax: "matplotlib.axes.Axes | None" = None, label: str | None = None) -> "matplotlib.axes.Axes":
        """Draw the norms against epochs, on a logarithmic scale.

        Args:
            ax: Axes to draw into; None (default) makes new ones.
            label: Text before the names of the lines; None (default) for none.

        Returns:
            The axes.
        """
        prefix, ax = check_label(label), _plotting.get_axes(ax)
        for path, norms in by_path(self.history["norms"]).items():
            values = [norm if norm > 0 else float("nan") for norm in norms]
            ax.plot(self.history["epoch"], values, label=f"{prefix} {path}".strip())
        ax.set(xlabel="epoch", ylabel="Frobenius norm", yscale="log")
        if ax.lines:
            _plotting.add_legend(ax)
        return ax
