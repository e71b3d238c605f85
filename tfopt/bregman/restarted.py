"""The default algorithm: block updates that start from a forward pass, go backward through the layers, and step far.

A sweep processes the blocks of rows. Each block starts from the network's own pre-activations, where all penalties are
zero:

    Z_L  = argmin loss(Z, y) + beta_L |Z - A_(L-1) W_L - b_L|^2                    the outputs' targets
    W_L += step * ( argmin |Z_L - A_(L-1) W|^2 + ... - W_L )                       least squares
    A_l, Z_l = their exact updates, given the layer above                          targets of the layer below
    W_l += step * relaxation * ( argmin |Z_l - A_(l-1) W|^2 + ... - W_l )          for l = L-1 to 1

A full step is the exact block minimisation, which cannot raise the penalised objective. For hidden layers this step is
short, because a linear map of the layer's inputs cannot reach most of a target. Therefore their steps grow while the
training objective falls. A sweep that raises the objective is undone, and shortens the steps. If the steps are already
exact, it doubles the penalties instead. With large penalties a sweep is a short step along the negative gradient, which
lowers the objective.

With several blocks, Gram matrices are averaged over about the last sweep. A small block then moves the weights in a
metric from all rows.
"""

import functools
import math
from typing import Any

import tensorflow as tf

from tfopt._compiled import compiled
from tfopt.bregman import gram
from tfopt.bregman.engine import Engine, Problem, Weights
from tfopt.bregman.losses import Loss
from tfopt.bregman.network import Architecture
from tfopt.bregman.rows import Chunk, Rows
from tfopt.bregman.settings import RestartedSettings
from tfopt.bregman.updates import (
    activation_gain,
    activation_update,
    as_tensor,
    join_bias,
    mean_squares,
    solve_compiled,
    split_bias,
    weight_update,
)

__all__ = ["Restarted"]

_STEP_OF_SEVERAL_BLOCKS = 0.3
_SHORTENING = 0.5
_SMALLEST_PENALTY_SCALE = 1e-3
_SAFE_RIDGE = 1e-4  # Far above the rounding of Gram matrices of float32 rows.
_PENALTY_UP, _PENALTY_DOWN = 2.0, 0.95


class Restarted(Engine):
    """The restarted algorithm and its state."""

    _settings: RestartedSettings

    def __init__(self, problem: Problem, rows: Rows) -> None:
        super().__init__(problem, rows)
        self._relaxation = 1.0
        self._grams: list[Any] = [
            tf.zeros((self._num_inputs(layer), self._num_inputs(layer)), tf.float64)
            for layer in range(self._num_layers)
        ]
        self._inverse: Any = None
        self._num_averaged = 0
        self._objective = float("inf")
        self._metrics: dict[str, float] = {}
        architecture, dtype = self._chain.architecture, self._state_dtype
        self._output_pass = _make_output_pass(architecture, self._loss, dtype)
        self._hidden_passes = [_make_hidden_pass(architecture, dtype, layer) for layer in range(self._num_layers - 1)]

    def start(self) -> dict[str, float]:
        """Sum the Gram matrix of the inputs, which never changes, and return the logs of the untrained network."""
        matrix = gram.of_inputs(self._rows, self._num_inputs(0), self._chain.uses_bias[0], self._communicator)
        self._grams[0] = matrix / self._rows.total_rows
        return self._measure(with_metrics=True)

    def _measure(self, with_metrics: bool) -> dict[str, float]:
        mean, self._metrics = self._evaluation(self._rows, self.weights, with_metrics)
        self._objective = mean + self._decay_of_weights()
        return self._logs()

    def _logs(self) -> dict[str, float]:
        return {
            **self._metrics,
            "objective": self._objective,
            "relaxation": self._relaxation,
            "penalty_scale": self._penalty_scale,
        }

    def sweep(self, with_metrics: bool) -> dict[str, float]:
        """Update all blocks once, keep the result if it lowers the objective, and return the logs."""
        before = (self.weights, list(self._grams), self._num_averaged, self._objective, self._metrics)
        distances: list[list[Any]] = [[] for _ in self._chain.layers]
        for block in range(self._rows.num_blocks):
            self._update_block(block, distances)
        self._measure(with_metrics)
        self.num_overflows = 0 if math.isfinite(self._objective) else self.num_overflows + 1
        settings = self._settings
        if self._objective <= before[3]:
            self._relaxation = min(self._relaxation * settings.relaxation_growth, settings.max_relaxation)
            self._penalty_scale = max(self._penalty_scale * _PENALTY_DOWN, _SMALLEST_PENALTY_SCALE)
        else:
            self.weights, self._grams, self._num_averaged, self._objective, self._metrics = before
            self._metrics = {"loss": self._metrics["loss"]}
            if self._relaxation <= 1.0:
                self._penalty_scale *= _PENALTY_UP
            self._relaxation = max(1.0, self._relaxation * _SHORTENING)
            if with_metrics:
                self._measure(with_metrics)  # The last sweep may not have measured the metrics of the kept weights.
        residuals = {
            f"primal_residual/{layer + 1}": (float(tf.add_n(parts)[0]) / self._rows.total_rows) ** 0.5
            for layer, parts in enumerate(distances)
        }
        return self._logs() | residuals

    def _update_block(self, block: int, distances: list[list[Any]]) -> None:
        # `kept` holds for each chunk the pre-activations of the hidden layers, and the targets of the latest updated
        # layer.
        last = self._num_layers - 1
        dtype = self._chain.dtype
        linear, hidden = (
            [tf.constant(penalty * self._penalty_scale, dtype) for penalty in penalties]
            for penalties in (self._linear, self._hidden)
        )
        kept: list[Any] = []
        sums = self._make_sums(last)
        for chunk in self._rows.block(block):
            z, targets, part = self._output_pass(chunk, self.weights, linear[last])
            kept.append((z, targets))
            sums.add(*part)
        gain = self._update_weights(last, block, sums)
        distances[last].append(sums.scalars)
        for layer in range(last - 1, -1, -1):
            sums = self._make_sums(layer)
            for k, chunk in enumerate(self._rows.block(block)):
                z, targets = kept[k]
                inputs = chunk.inputs if layer == 0 else ()
                above = self.weights[layer + 1]
                targets, part = self._hidden_passes[layer](
                    inputs, chunk.mask, z, targets, above, gain, linear[layer], hidden[layer]
                )
                kept[k] = (z[:layer], targets)
                sums.add(*part)
            gain = self._update_weights(layer, block, sums)
            distances[layer].append(sums.scalars)
        self._num_averaged += 1

    def _make_sums(self, layer: int) -> gram.Sums:
        return gram.Sums(self._num_inputs(layer), self._chain.widths[layer + 1], with_gram=layer > 0, num_scalars=1)

    def _update_weights(self, layer: int, block: int, sums: gram.Sums) -> Any:
        # During the first sweep this is a plain average of Gram matrices, later an exponential average with the rate of
        # one sweep.
        gram.reduce_sums(self._communicator, [sums], f"Gram matrices of layer {layer + 1}")
        beta = self._linear[layer] * self._penalty_scale
        numbers = (
            1.0 / self._rows.block_sizes[block],
            1.0 / min(self._num_averaged + 1, self._rows.num_blocks),
            self._settings.ridge,
            self._settings.weight_decay / beta,
            self._step(layer),
            beta,
            self._hidden[layer - 1] * self._penalty_scale if layer > 0 else 0.0,
        )
        # The ridge is relative to the inputs. If all inputs are zero, only the decay makes the matrix positive
        # definite.
        is_safe = self._settings.ridge > _SAFE_RIDGE and self._settings.weight_decay > 0.0
        call = _call if is_safe else solve_compiled
        with_bias = self._chain.uses_bias[layer]
        numbers, pair = as_tensor(numbers), self.weights[layer]
        if layer > 0:
            move = _make_move(with_bias, True)
            found = call(move, self._grams[layer], sums.gram, sums.cross_gram, *pair, numbers)
            self._grams[layer], weights, gain = found
        else:
            if block == 0:
                (self._inverse,) = call(_make_inverse(with_bias), self._grams[0], *pair, numbers)
            _, weights, gain = _make_move(with_bias, False)(self._inverse, (), sums.cross_gram, *pair, numbers)
        self.weights = [*self.weights[:layer], weights, *self.weights[layer + 1 :]]
        return gain

    def _step(self, layer: int) -> float:
        if layer < self._num_layers - 1:
            return self._relaxation
        step = self._settings.step
        if step == "auto":
            return 1.0 if self._rows.num_blocks == 1 else _STEP_OF_SEVERAL_BLOCKS
        return float(step)

    def get_state(self) -> dict[str, Any]:
        """Return arrays and numbers from which a later run continues with the same bits."""
        return super().get_state() | {
            "grams": [matrix.numpy() for matrix in self._grams[1:]],
            "num_averaged": self._num_averaged,
            "relaxation": self._relaxation,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from a state that `get_state` returned."""
        super().set_state(state)
        self._grams = [self._grams[0], *(tf.constant(matrix) for matrix in state["grams"])]
        self._num_averaged = state["num_averaged"]
        self._relaxation = state["relaxation"]


@functools.lru_cache(maxsize=64)
def _make_output_pass(architecture: Architecture, loss: Loss, state_dtype: Any) -> Any:
    last = len(architecture.uses_bias) - 1

    def update(chunk: Chunk, weights: Weights, linear_penalty: Any) -> tuple[Any, ...]:
        z = architecture.forward(chunk.inputs, weights)
        targets = loss.update(z[last], chunk.targets, linear_penalty)
        a = _inputs_of(architecture, last, chunk.inputs, z, chunk.mask)
        hidden = tuple(tf.cast(tensor, state_dtype) for tensor in z[:last])
        return hidden, tf.cast(targets, state_dtype), _sums(architecture, last, a, targets - z[last], chunk.mask)

    return compiled(update, by_xla=True)


@functools.lru_cache(maxsize=256)
def _make_hidden_pass(architecture: Architecture, state_dtype: Any, layer: int) -> Any:
    # `layer` is a hidden layer, counted from 0. `above` are the weights of the next layer, and `targets` its targets.
    activation, dtype = architecture.activations[layer], architecture.dtype

    def update(
        inputs: Any, mask: Any, z: Any, targets: Any, above: Any, gain: Any, linear_penalty: Any, hidden_penalty: Any
    ) -> tuple[Any, ...]:
        z = [tf.cast(tensor, dtype) for tensor in z]
        kernel, bias = above
        a = activation_update(activation(z[layer]), tf.cast(targets, dtype) - bias, kernel, gain)
        new = activation.update(a, z[layer], hidden_penalty, linear_penalty)
        below = _inputs_of(architecture, layer, inputs, z, mask)
        return tf.cast(new, state_dtype), _sums(architecture, layer, below, new - z[layer], mask)

    return compiled(update, by_xla=True)


def _inputs_of(architecture: Architecture, layer: int, inputs: Any, z: Any, mask: Any) -> Any:
    return inputs if layer == 0 else architecture.activations[layer - 1](z[layer - 1]) * mask[:, None]


def _sums(architecture: Architecture, layer: int, a: Any, residual: Any, mask: Any) -> tuple[Any, Any, Any]:
    # Return the Gram matrices with the residuals of the targets, and the squared norm of the residuals.
    part = gram.of_rows(a, residual, mask, architecture.uses_bias[layer], with_gram=layer > 0)
    return *part, tf.reduce_sum(tf.cast(residual * residual * mask[:, None], tf.float64))[None]


@functools.lru_cache(maxsize=2)
def _make_inverse(with_bias: bool) -> Any:
    # Return (metric + ridge I + decay)^-1 of the first layer. Its metric never changes, so one inverse per sweep serves
    # all blocks.
    def invert(metric: Any, kernel: Any, bias: Any, numbers: Any) -> tuple[Any]:
        _, _, ridge, decay, *_ = tf.unstack(numbers)
        _, decays = join_bias(kernel, bias, decay, with_bias)
        identity = tf.eye(metric.shape[0], dtype=tf.float64)
        return (weight_update(metric, identity, ridge * mean_squares(metric, with_bias), penalty=decays),)

    return compiled(invert)


@functools.lru_cache(maxsize=4)
def _make_move(with_bias: bool, is_hidden_below: bool) -> Any:
    # W + step * argmin over D of |residual - A D|^2 + ridge |D|^2 + decay |W + D|^2, with no decay for biases. For the
    # first layer, `old` is the inverse of its matrix. For other layers, the Gram matrix is averaged with the earlier
    # ones, and the gain of the activations below is returned too.
    def move(old: Any, new_gram: Any, cross_gram: Any, kernel: Any, bias: Any, numbers: Any) -> Any:
        share, rate, ridge, decay, step, beta, gamma = tf.unstack(numbers)
        weights, decays = join_bias(kernel, bias, decay, with_bias)
        right = share * cross_gram - decays[:, None] * weights
        if is_hidden_below:
            old = (1 - rate) * old + rate * share * new_gram
            direction = weight_update(old, right, ridge * mean_squares(old, with_bias), penalty=decays)
        else:
            direction = tf.matmul(old, right)
        new = split_bias(weights + step * direction, kernel, bias, with_bias)
        return old, new, activation_gain(new[0], beta, gamma) if is_hidden_below else ()

    return compiled(move)


def _call(function: Any, *arguments: Any) -> Any:
    # The matrices are positive definite here. Skip the check, because it would block until the result is ready.
    return function(*arguments)
