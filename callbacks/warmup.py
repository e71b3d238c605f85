"""A learning rate that rises over the first epochs, for large batches."""

from typing import Any

import keras

from tfopt import _keras
from tfopt._checks import check_integer, check_number
from tfopt.callbacks._callback import Callback
from tfopt.callbacks._optimizers_of import compiled_optimizer_of
from tfopt.callbacks._rank_callback import learning_rates_of
from tfopt.callbacks._running_fit import come_before_loggers
from tfopt.callbacks._step_count import Watched, is_trained_by_keras, look_at
from tfopt.communicator import Communicator, check_communicator


class WarmupLearningRate(Callback):
    """Raise the learning rate linearly from a fraction of it to the full value, over the first epochs.

    With N ranks and a batch N times as large, a learning rate N times as large is usual (linear scaling), but too
    large for the first steps: Goyal et al., "Accurate, Large Minibatch SGD", 2017, section 2.2. After the last warm-up
    epoch, this callback does not change the learning rate.

    Args:
        epochs: Number of epochs of the warm-up, a number > 0. Default 5.
        initial_fraction: The first learning rate, from 0 to 1, as a fraction of the optimizer's learning rate. None
            (default) means 1 / number of ranks.
        steps_per_epoch: Number of batches in an epoch. None (default) takes it from `fit`, which knows it unless the
            data are a generator or a data set of unknown cardinality.
        communicator: The job's communicator; None (default) means `tfopt.communicator.current()`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range; in `fit`: the learning rate is a schedule, the number of batches
            is not known, or a custom `train_step` or loop has taken no step with this optimizer in the first epoch.
    """

    needs_optimizer = True

    def __init__(
        self,
        epochs: float = 5,
        initial_fraction: float | None = None,
        steps_per_epoch: int | None = None,
        communicator: Communicator | None = None,
    ) -> None:
        super().__init__()
        size = check_communicator(communicator).size
        self.epochs = check_number("epochs", epochs, minimum=0.0, exclusive_minimum=True)
        fraction = 1.0 / size if initial_fraction is None else initial_fraction
        self.initial_fraction = check_number("initial_fraction", fraction, minimum=0.0, maximum=1.0)
        if steps_per_epoch is not None:
            check_integer("steps_per_epoch", steps_per_epoch, minimum=1)
        self.steps_per_epoch = steps_per_epoch
        self.target: float | None = None
        self._last_set: float | None = None
        self._epoch = 0
        self._at_start: Watched | None = None  # Only if a custom `train_step`, or a loop, may not use it.

    def get_state(self) -> dict[str, Any]:
        """Return the final learning rate of the warm-up, and the last one that it has set."""
        return {"target": self.target, "last_set": self._last_set}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state from `get_state`."""
        self.target, self._last_set = state["target"], state["last_set"]

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Take the optimizer's learning rate as the target; keep the old target if the warm-up itself has set the rate.

        Args:
            logs: Not used.

        Raises:
            ValueError: The learning rate is a schedule, or the number of batches is not known.
        """
        optimizer = compiled_optimizer_of(self.model)
        rate = _keras.learning_rate(getattr(optimizer, "inner_optimizer", optimizer), None)
        if not isinstance(rate, keras.Variable) or hasattr(optimizer, "optimizers"):
            raise ValueError(
                "WarmupLearningRate needs an optimizer with a number as its learning rate. Received: "
                f"learning_rate={rate!r}. A schedule has its own warm-up, for example "
                "tfopt.optimizers.schedules.PolynomialDecayWithWarmup"
            )
        if self._num_steps is None:
            raise ValueError(
                "WarmupLearningRate does not know how many batches an epoch has: pass `steps_per_epoch` to it"
            )
        come_before_loggers(self)
        self._at_start = None if is_trained_by_keras(self.model) else look_at(self.model.optimizer)
        (rate,) = learning_rates_of(self.model)
        if self.target is None or rate != self._last_set:
            self.target = rate

    @property
    def _num_steps(self) -> int | None:
        return self.steps_per_epoch or self.parameters.get("steps")

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the epoch."""
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the learning rate of this step."""
        assert self.target is not None
        assert self._num_steps is not None
        step, last = self._epoch * self._num_steps + batch, self.epochs * self._num_steps
        if step <= last:
            fraction = self.initial_fraction + (1.0 - self.initial_fraction) * step / last
            self.model.optimizer.learning_rate = self.target * fraction
            (self._last_set,) = learning_rates_of(self.model)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write `learning_rate` into `logs`; ValueError if the optimizer has taken no step in the first epoch."""
        before, self._at_start = self._at_start, None
        if before is not None and look_at(before.optimizer) == before:
            raise ValueError(
                "WarmupLearningRate sets the learning rate of the optimizer that the model was compiled with, and the "
                f"training of {type(self.model).__name__} has taken no step with it in this epoch. Compile the model "
                "with the optimizer that trains it, or leave WarmupLearningRate out"
            )
        if logs is not None:
            (logs["learning_rate"],) = learning_rates_of(self.model)
