"""Callbacks for training on several ranks: equal starts, equal steps, equal metrics."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tfopt.callbacks._callback import Callback
from tfopt.callbacks._rank_callback import RankCallback, learning_rates_of
from tfopt.callbacks._running_fit import build_model, come_before_loggers, find_running_fit

from tfopt._agreement import check_agreement
from tfopt._checks import check_integer, check_number
from tfopt.communicator import Communicator, check_communicator
from tfopt.distributed.optimizer import DistributedOptimizer, describe_config


class BroadcastVariables(RankCallback):
    """Start all ranks from the variables of one: the model's and the optimizer's, which is built if it is not.

    States of random number generators (dropout) stay each rank's own. A model that waits for its first batch is built.

    Before training begins, and after each epoch, the ranks are compared: callbacks, variables, optimizer, number of
    batches, epochs, learning rate, metrics. Where they differ, every rank raises the same error.

    Args:
        root_rank: Whose variables to hand out, from 0 to the number of ranks - 1. Default 0.
        communicator: The job's communicator; None (default) means `tfopt.communicator.current()`.

    Raises:
        TypeError: `root_rank` is not an integer.
        ValueError: `root_rank` is no rank of the job.

    Example:
        >>> import numpy as np
        >>> from tfopt.distributed import DistributedOptimizer
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile(DistributedOptimizer(keras.optimizers.SGD(0.1)), loss="mse")
        >>> _ = model.fit(np.ones((4, 2)), np.ones(4), verbose=0, callbacks=[BroadcastVariables(), AverageMetrics()])
    """

    needs_optimizer = True

    def __init__(self, root_rank: int = 0, communicator: Communicator | None = None) -> None:
        super().__init__(communicator)
        self.root_rank = check_integer("root_rank", root_rank, minimum=0, maximum=self.communicator.size - 1)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Compare the ranks and hand out the variables.

        Args:
            logs: Not used.

        Raises:
            ValueError: A rank's model cannot be trained on several ranks, or the ranks' models are not alike.
        """
        super().on_train_begin(logs)
        if self.communicator.size == 1:
            return
        for rank, problem in enumerate(self.communicator.allgather_object(_problem_of(self.model), "the model")):
            if problem:
                raise ValueError(f"Rank {rank}: {problem}")
        build_model(self.model, find_running_fit(self))
        check_agreement(
            self.communicator,
            "BroadcastVariables before training",
            {
                "variables": _describe(self.model.variables),
                "optimizer": type(self.model.optimizer).__name__,
                "optimizer's arguments": describe_config(self.model.optimizer),
                "optimizer's variables": _describe(self.model.optimizer.variables),
                "number of epochs": self.parameters.get("epochs"),
                "number of batches": self.parameters.get("steps"),
                "steps_per_execution": self.model.steps_per_execution,
                "learning rate": learning_rates_of(self.model),
            },
            "Every rank must build, compile and fit the same model, with the same number of batches "
            "(tfopt.distributed.shard makes them equal).",
        )
        self._hand_out()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Compare the ranks.

        Args:
            epoch: Its number, from 0.
            logs: Metrics, whose names are compared.
        """
        self.compare(f"the end of epoch {epoch + 1}", logs)

    def _hand_out(self) -> None:
        variables = [v for v in self.model.variables if v.name != "seed_generator_state"]
        variables += self.model.optimizer.variables
        values = self.communicator.broadcast([v.value for v in variables], self.root_rank, name="variables")
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


class AverageMetrics(RankCallback):
    """Replace the metrics of each epoch, validation's included, by their means over all ranks.

    Put it before every callback that decides by `logs` (EarlyStopping, ReduceLROnPlateau, ModelCheckpoint): the ranks
    must come to the same decisions. It comes before CSVLogger and TensorBoard by itself.

    Args:
        communicator: The job's communicator; None (default) means `tfopt.communicator.current()`.
    """

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Check that all ranks train with the same of these callbacks, and come before those that log.

        Args:
            logs: Not used.
        """
        super().on_train_begin(logs)
        come_before_loggers(self)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Compare the ranks, then average.

        Args:
            epoch: Its number, from 0.
            logs: Metrics; numbers are replaced by their means.
        """
        self.compare(f"the end of epoch {epoch + 1}", logs)
        if not logs or self.communicator.size == 1:
            return
        names = [name for name in sorted(logs) if np.ndim(logs[name]) == 0 and np.isreal(logs[name])]
        local = tf.constant([float(logs[name]) for name in names], tf.float64)
        (means,) = self.communicator.allreduce_mean([local], name="metrics")
        logs.update(zip(names, means.numpy().tolist(), strict=True))


class WarmupLearningRate(Callback):
    """Raise the learning rate in equal steps from a fraction of it to the whole, over the first epochs.

    With N ranks and a batch N times as large, a learning rate N times as large is usual (linear scaling), but too
    large for the first steps: Goyal et al., "Accurate, Large Minibatch SGD", 2017, section 2.2. After the last warm-up
    epoch the learning rate is left alone.

    Args:
        epochs: How many epochs the warm-up takes, a number > 0. Default 5.
        initial_fraction: Where it starts, from 0 to 1, as a fraction of the optimizer's learning rate. None (default)
            means 1 / number of ranks.
        steps_per_epoch: Number of batches in an epoch; None (default) asks `fit`, which knows it unless the data set
            is a generator or of unknown cardinality.
        communicator: The job's communicator; None (default) means `tfopt.communicator.current()`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range; in `fit`: the learning rate is a schedule, or the number of batches
            is not known.
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

    def get_state(self) -> dict[str, Any]:
        """Return what a checkpoint must keep.

        Returns:
            The learning rate that the warm-up leads to, and the one that it has set last.
        """
        return {"target": self.target, "last_set": self._last_set}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint was written.

        Args:
            state: What `get_state` has returned.
        """
        self.target, self._last_set = state["target"], state["last_set"]

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Note the learning rate that the optimizer has, as the target; go on if it is the one that was set last.

        Args:
            logs: Not used.

        Raises:
            ValueError: It is a schedule, or the number of batches is not known.
        """
        rate = getattr(self.model.optimizer, "_learning_rate", None)
        inner = getattr(self.model.optimizer, "inner_optimizer", None)
        rate = rate if inner is None else inner._learning_rate
        if not isinstance(rate, keras.Variable) or hasattr(self.model.optimizer, "optimizers"):
            raise ValueError(
                "WarmupLearningRate needs an optimizer with a number as its learning rate. Received: "
                f"learning_rate={rate!r}. A schedule brings its own warm-up, for example "
                "tfopt.optimizers.schedules.PolynomialDecayWithWarmup"
            )
        if self._num_steps is None:
            raise ValueError(
                "WarmupLearningRate does not know how many batches an epoch has: pass `steps_per_epoch` to it"
            )
        come_before_loggers(self)
        (rate,) = learning_rates_of(self.model)
        if self.target is None or rate != self._last_set:
            self.target = rate

    @property
    def _num_steps(self) -> int | None:
        return self.steps_per_epoch or self.parameters.get("steps")

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the epoch.

        Args:
            epoch: Its number, from 0.
            logs: Not used.
        """
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the learning rate of this step.

        Args:
            batch: Its number in the epoch, from 0.
            logs: Not used.
        """
        assert self.target is not None
        assert self._num_steps is not None
        step, last = self._epoch * self._num_steps + batch, self.epochs * self._num_steps
        if step <= last:
            fraction = self.initial_fraction + (1.0 - self.initial_fraction) * step / last
            self.model.optimizer.learning_rate = self.target * fraction
            (self._last_set,) = learning_rates_of(self.model)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Log the learning rate.

        Args:
            epoch: Not used.
            logs: Receives `learning_rate`.
        """
        if logs is not None:
            (logs["learning_rate"],) = learning_rates_of(self.model)


def _describe(variables: list[Any]) -> list[str]:
    return [
        f"{number}: {v.name} {tuple(v.shape)} {v.dtype}{'' if v.trainable else ', not trainable'}"
        for number, v in enumerate(variables)
    ]


def _problem_of(model: Any) -> str:
    # What keeps the model from being trained on several ranks, or nothing.
    if type(model.optimizer) is not DistributedOptimizer:
        return (
            f"The model was compiled with a plain {type(model.optimizer).__name__}: each rank would train on its own. "
            "Use model.compile(tfopt.distributed.DistributedOptimizer(optimizer), ...)"
        )
    if model.jit_compile:
        return (
            'The model was compiled with jit_compile=True ("auto" may mean True on a GPU), but Horovod cannot average '
            "gradients inside XLA. Use model.compile(..., jit_compile=False)"
        )
    return ""
