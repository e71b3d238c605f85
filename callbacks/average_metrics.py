"""Equal metrics on all ranks at the end of each epoch."""

from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.callbacks._losses_on_ranks import names_of_sums
from tfopt.callbacks._rank_callback import RankCallback
from tfopt.callbacks._running_fit import come_before_loggers


class AverageMetrics(RankCallback):
    """Replace the metrics of each epoch, with those of validation, by their means over all ranks.

    Losses with `reduction="sum"` are summed, if all losses have it and `BroadcastVariables` comes before.

    The mean over ranks is the number of all rows together if the metric is a mean over rows and each rank has equally
    many of them, also for validation. It is not for other metrics (AUC, F1, precision, recall, R2, a root of a mean),
    nor for means by a sum that differs between ranks: `weighted_metrics` with `sample_weight` or `class_weight`, and
    metrics of outputs with a mask.

    Put it before every callback that decides by `logs` (EarlyStopping, ReduceLROnPlateau, ModelCheckpoint), because all
    ranks must decide alike. It moves itself before CSVLogger and TensorBoard.

    Args:
        communicator: The job's communicator; None (default) means `tfopt.communicator.current()`.
    """

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Check that all ranks train with the same callbacks of this kind, and move before Keras's loggers."""
        super().on_train_begin(logs)
        come_before_loggers(self)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Compare the ranks, then replace the numbers in `logs` by their means."""
        self.compare(f"the end of epoch {epoch + 1}", logs)
        if not logs or self.communicator.size == 1:
            return
        names = [name for name in sorted(logs) if np.ndim(logs[name]) == 0 and np.isreal(logs[name])]
        local = tf.constant([float(logs[name]) for name in names], tf.float64)
        (means,) = self.communicator.allreduce_mean([local], name="metrics")
        logs.update(zip(names, means.numpy().tolist(), strict=True))
        if getattr(self.model.optimizer, "sums_gradients", False):
            for name in names_of_sums(self.model).intersection(names):
                logs[name] *= self.communicator.size
