"""The parts that all algorithms share: the problem, the rows, and weights that can be saved."""

import abc
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tfopt.bregman.evaluation import Evaluation
from tfopt.bregman.losses import Loss
from tfopt.bregman.network import DenseChain, weights_to_arrays
from tfopt.bregman.rows import Rows
from tfopt.bregman.settings import Settings
from tfopt.communicator import Communicator

__all__ = ["Engine", "Problem", "Weights", "weights_from_arrays"]

Weights = list[tuple[Any, Any]]


@dataclass(frozen=True)
class Problem:
    """The training problem without its data: network, loss, options, evaluation, and the job's communicator."""

    chain: DenseChain
    loss: Loss
    settings: Settings
    evaluation: Evaluation
    communicator: Communicator


class Engine(abc.ABC):
    """An algorithm and its state.

    Attributes:
        weights: The current weights, for standardised rows. At first the weights of the model.
        num_overflows: Number of latest sweeps in a row whose objective was not finite, so that they were undone.
    """

    def __init__(self, problem: Problem, rows: Rows) -> None:
        self._chain, self._loss, self._settings = problem.chain, problem.loss, problem.settings
        self._rows, self._evaluation, self._communicator = rows, problem.evaluation, problem.communicator
        self._num_layers = len(self._chain.layers)
        self._linear, self._hidden = self._settings.penalties(self._num_layers)
        self._penalty_scale = 1.0
        self._state_dtype = tf.as_dtype(self._settings.state_dtype or self._chain.dtype)
        self.weights: Weights = self._chain.read_weights()
        self.num_overflows = 0

    @abc.abstractmethod
    def start(self) -> dict[str, float]:
        """Prepare the sweeps, and return the logs of the untrained network."""

    @abc.abstractmethod
    def sweep(self, with_metrics: bool) -> dict[str, float]:
        """Update all variables once, and return the logs, with the network's metrics if `with_metrics`."""

    def get_state(self) -> dict[str, Any]:
        """Return arrays and numbers from which a later run continues with the same bits."""
        weights = weights_to_arrays(self.weights)
        return {"weights": weights, "penalty_scale": self._penalty_scale, "num_overflows": self.num_overflows}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from a state that `get_state` returned."""
        self.weights, self._penalty_scale = weights_from_arrays(state["weights"]), state["penalty_scale"]
        self.num_overflows = state["num_overflows"]

    def _num_inputs(self, layer: int) -> int:
        # Layers are counted from 0; a bias counts as one input.
        return self._chain.widths[layer] + self._chain.uses_bias[layer]

    def _decay_of_weights(self) -> float:
        squares = (tf.reduce_sum(tf.cast(kernel, tf.float64) ** 2) for kernel, _ in self.weights)
        return self._settings.weight_decay * float(sum(squares))


def weights_from_arrays(arrays: list[list[Any]]) -> Weights:
    """Convert saved arrays, as from `weights_to_arrays`, to tensors."""
    return [(tf.constant(kernel), tf.constant(bias)) for kernel, bias in arrays]
