"""What the algorithms share: the problem they solve, the rows they work on, and weights that can be saved."""

import abc
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tfopt.bregman.evaluation import Evaluation
from tfopt.bregman.losses import Loss
from tfopt.bregman.network import DenseChain
from tfopt.bregman.rows import Rows
from tfopt.bregman.settings import Settings
from tfopt.communicator import Communicator

__all__ = ["Engine", "Problem", "Weights", "weights_from_arrays", "weights_to_arrays"]

Weights = list[tuple[Any, Any]]


@dataclass(frozen=True)
class Problem:
    """What is trained and how, the data aside.

    Attributes:
        chain: The network.
        loss: The loss.
        settings: The options.
        evaluation: Measures the network.
        communicator: The job's processes.
    """

    chain: DenseChain
    loss: Loss
    settings: Settings
    evaluation: Evaluation
    communicator: Communicator


class Engine(abc.ABC):
    """An algorithm and its state.

    Args:
        problem: What is trained and how.
        rows: The rows of this process.

    Attributes:
        weights: The current weights, for standardised rows; at first the model's.
        num_overflows: How many sweeps in a row ended with an objective that is not finite, and were undone.
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
        """Set up what the sweeps need, and measure the network as it is.

        Returns:
            The logs of the untrained network.
        """

    @abc.abstractmethod
    def sweep(self, with_metrics: bool) -> dict[str, float]:
        """Go through all variables once.

        Args:
            with_metrics: Whether to measure the network with its metrics.

        Returns:
            The logs.
        """

    def get_state(self) -> dict[str, Any]:
        """Return what a later run needs to go on with the same bits.

        Returns:
            Arrays and numbers.
        """
        weights = weights_to_arrays(self.weights)
        return {"weights": weights, "penalty_scale": self._penalty_scale, "num_overflows": self.num_overflows}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Args:
            state: What `get_state` has returned.
        """
        self.weights, self._penalty_scale = weights_from_arrays(state["weights"]), state["penalty_scale"]
        self.num_overflows = state["num_overflows"]

    def _num_inputs(self, layer: int) -> int:
        # Of a layer counted from 0, its bias included.
        return self._chain.widths[layer] + self._chain.uses_bias[layer]

    def _decay_of_weights(self) -> float:
        squares = (tf.reduce_sum(tf.cast(kernel, tf.float64) ** 2) for kernel, _ in self.weights)
        return self._settings.weight_decay * float(sum(squares))


def weights_to_arrays(weights: Weights) -> list[list[Any]]:
    """Turn weights into what can be saved.

    Args:
        weights: As from `DenseChain.read_weights`.

    Returns:
        NumPy arrays.
    """
    return [[part.numpy() for part in pair] for pair in weights]


def weights_from_arrays(arrays: list[list[Any]]) -> Weights:
    """Turn saved weights into tensors.

    Args:
        arrays: As from `weights_to_arrays`.

    Returns:
        The weights.
    """
    return [(tf.constant(kernel), tf.constant(bias)) for kernel, bias in arrays]
