"""The base class of callbacks that need all ranks."""

from typing import Any

from tfopt.callbacks._callback import Callback
from tfopt.callbacks._optimizers_of import compiled_optimizer_of
from tfopt.callbacks._running_fit import find_running_fit, is_stopped
from tfopt.callbacks._values import to_numpy
from tfopt.communicator import Communicator, check_communicator
from tfopt.communicator.agreement import check_agreement


class RankCallback(Callback):
    """A callback that compares the ranks at the end of each epoch, before they communicate.

    A rank that arrives first joins the reductions of the others with zeros until they arrive. Ranks with different
    numbers of batches therefore raise an error, instead of blocking without end.
    """

    def __init__(self, communicator: Communicator | None = None) -> None:
        super().__init__()
        self.communicator = check_communicator(communicator)
        self._num_batches = 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Check that all ranks train with the same callbacks of this kind."""
        if self.communicator.size > 1:
            names = [type(c).__name__ for c in find_running_fit(self).callbacks if isinstance(c, RankCallback)]
            check_agreement(
                self.communicator, "the start of training", {"callbacks": names}, "Pass them to `fit` on every rank."
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Start to count batches."""
        self._num_batches = 0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Count the batch."""
        self._num_batches = batch + 1

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Check that all ranks end their training here."""
        self.compare("the end of training", None)

    def compare(self, point: str, logs: dict[str, Any] | None) -> None:
        """Check that all ranks are at the same point of training, and have metrics of the same names."""
        if self.communicator.size == 1:
            return
        self.communicator.join()
        check_agreement(
            self.communicator,
            f"{type(self).__name__} in training",
            {
                "point of training": f"{point}, after {self._num_batches} batches in the last epoch",
                "learning rate": learning_rates_of(self.model),
                "metrics": sorted(logs or {}),
                "wish to stop": is_stopped(self.model),
            },
            "Each rank needs the same number of batches (tfopt.distributed.shard makes them equal), and callbacks that "
            "stop training or change the learning rate must come after AverageMetrics.",
        )


def learning_rates_of(model: Any) -> list[float]:
    """Return the current learning rates: one, several with Keras's `MultiOptimizer`, or none without an optimizer."""
    optimizer = compiled_optimizer_of(model)
    if optimizer is None:
        return []
    optimizers = getattr(optimizer, "optimizers", None) or [optimizer]
    return [float(to_numpy(optimizer.learning_rate)) for optimizer in optimizers]
