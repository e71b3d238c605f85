"""Equal variables on all ranks at the start of training."""

import warnings
from typing import Any

from tfopt._checks import check_integer
from tfopt.callbacks._losses_on_ranks import LossesOnRanks, examine_losses
from tfopt.callbacks._optimizers_of import compiled_optimizer_of, optimizers_of
from tfopt.callbacks._plain_optimizers import PlainOptimizers
from tfopt.callbacks._rank_callback import RankCallback, learning_rates_of
from tfopt.callbacks._running_fit import build_model, find_running_fit
from tfopt.communicator import Communicator
from tfopt.communicator.agreement import check_agreement, in_agreement
from tfopt.distributed.supported_optimizers import describe_config


class BroadcastVariables(RankCallback):
    """Start all ranks from the variables of one rank: those of the model and of its optimizers.

    The optimizer of `compile` is built if necessary. Other optimizers, which a custom `train_step` uses, must be
    `DistributedOptimizer` too. If they are, the optimizer of `compile` may be a plain one or None (GANs), as long as it
    takes no step. A model that waits for its first batch is built. Each rank keeps its own states of random number
    generators (dropout).

    Before training and after each epoch, the ranks compare callbacks, variables, optimizer, number of batches, epochs,
    learning rate and metrics. If they differ, every rank raises the same error.

    If all losses of `compile` have `reduction="sum"` or none, the optimizer sums the gradients of the ranks instead of
    averaging them. A warning names losses with which ranks do not train as one process does.

    Args:
        root_rank: The rank whose variables all ranks receive, from 0 to the number of ranks - 1. Default 0.
        communicator: The job's communicator; None (default) means `tfopt.communicator.current()`.

    Raises:
        TypeError: `root_rank` is not an integer.
        ValueError: `root_rank` is no rank of the job.

    Example:
        >>> import numpy as np
        >>> from tfopt.callbacks import AverageMetrics
        >>> from tfopt.distributed import DistributedOptimizer
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile(DistributedOptimizer(keras.optimizers.SGD(0.1)), loss="mse")
        >>> _ = model.fit(np.ones((4, 2)), np.ones(4), verbose=0, callbacks=[BroadcastVariables(), AverageMetrics()])
    """

    needs_optimizer = True

    def __init__(self, root_rank: int = 0, communicator: Communicator | None = None) -> None:
        super().__init__(communicator)
        self.root_rank = check_integer("root_rank", root_rank, minimum=0, maximum=self.communicator.size - 1)
        self._plain: PlainOptimizers | None = None  # None on a single rank.

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Compare the ranks and broadcast the variables.

        Args:
            logs: Not used.

        Raises:
            ValueError: The model of a rank cannot be trained on several ranks, or the models of the ranks differ.
        """
        super().on_train_begin(logs)
        if self.communicator.size == 1:
            return
        for rank, problem in enumerate(self.communicator.allgather_object(_problem_of(self.model), "the model")):
            if problem:
                raise ValueError(f"Rank {rank}: {problem}")
        running = find_running_fit(self)
        build_model(self.model, running)
        optimizer = compiled_optimizer_of(self.model)
        losses = in_agreement(self.communicator, lambda: examine_losses(self.model, running))
        check_agreement(
            self.communicator,
            "BroadcastVariables before training",
            {
                "variables": _describe(self.model.variables),
                "optimizer": type(optimizer).__name__,
                "optimizer's arguments": [] if optimizer is None else describe_config(optimizer),
                "optimizer's variables": _describe(self._optimizer_variables()),
                "number of epochs": self.parameters.get("epochs"),
                "number of batches": self.parameters.get("steps"),
                "steps_per_execution": self.model.steps_per_execution,
                "learning rate": learning_rates_of(self.model),
                "losses are sums over rows": losses is not None and losses.are_sums,
            },
            "Every rank must build, compile and fit the same model, with the same number of batches "
            "(tfopt.distributed.shard makes them equal).",
        )
        self._hand_out()
        self._follow(losses)
        self._plain = PlainOptimizers(self.model)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Note how many steps plain optimizers have taken; ValueError if the model was compiled again with one."""
        if self._plain is None:
            return
        is_new = self._plain.is_of_another_compile
        if is_new:
            self._refuse(_problem_of(self.model))
            self._follow(examine_losses(self.model, find_running_fit(self)))
        if is_new or batch == 0:  # Callbacks may set counters between epochs.
            self._plain = PlainOptimizers(self.model)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Count the batch; ValueError if a plain optimizer has taken a step."""
        super().on_train_batch_end(batch, logs)
        self._check_plain()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Compare the ranks."""
        self._check_plain()  # Keras does not report an execution of several steps that the end of the data cuts off.
        self.compare(f"the end of epoch {epoch + 1}", logs)

    def _check_plain(self) -> None:
        if self._plain is not None:
            self._refuse(self._plain.problem_after_batch())

    def _refuse(self, problem: str) -> None:
        # All ranks run the same program, so each of them raises this at the same batch.
        if problem:
            raise ValueError(f"Rank {self.communicator.rank}: {problem}")

    def _follow(self, losses: LossesOnRanks | None) -> None:
        if losses is None:
            return
        if self.model.optimizer.sums_gradients != losses.are_sums:
            self.model.optimizer.sum_gradients(losses.are_sums)
            self.model.make_train_function(force=True)  # An earlier `fit` may have compiled it.
        if losses.problems and self.communicator.rank == 0:
            warnings.warn(
                f"{self.communicator.size} ranks do not train as one process does on the rows of all ranks: "
                f"{'; '.join(losses.problems)}",
                stacklevel=2,
            )

    def _optimizer_variables(self) -> list[Any]:
        return [variable for _, optimizer in optimizers_of(self.model) for variable in optimizer.variables]

    def _hand_out(self) -> None:
        variables = [v for v in self.model.variables if v.name != "seed_generator_state"]
        variables += self._optimizer_variables()
        values = self.communicator.broadcast([v.value for v in variables], self.root_rank, name="variables")
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


def _describe(variables: list[Any]) -> list[str]:
    return [
        f"{number}: {v.name} {tuple(v.shape)} {v.dtype}{'' if v.trainable else ', not trainable'}"
        for number, v in enumerate(variables)
    ]


def _problem_of(model: Any) -> str:
    # Say what prevents the model from being trained on several ranks; an empty text means nothing.
    if problem := PlainOptimizers(model).problem_before():
        return problem
    if model.jit_compile:
        return (
            'The model was compiled with jit_compile=True ("auto" may mean True on a GPU), but Horovod cannot average '
            "gradients inside XLA. Use model.compile(..., jit_compile=False)"
        )
    return ""
