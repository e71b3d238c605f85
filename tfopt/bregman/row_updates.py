"""Local updates of the splitting algorithm, compiled as passes through the rows of a chunk."""

import functools
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tfopt._compiled import compiled
from tfopt.bregman import gram
from tfopt.bregman.kept import Variables
from tfopt.bregman.losses import Loss
from tfopt.bregman.network import Architecture
from tfopt.bregman.rows import Chunk
from tfopt.bregman.updates import activation_update, multiplier_update

__all__ = ["Rules", "Token", "make_measurement", "make_pass"]

Token = tuple[str, int]  # Kind of an update and its layer.


@dataclass(frozen=True)
class Rules:
    """The key of compiled passes: everything they depend on except shapes.

    Attributes:
        architecture: The network.
        loss: The loss.
        multiplier: "bregman", "admm" or "none".
        multiplier_step: 1 or 2.
        state_dtype: Dtype in which variables are kept.
    """

    architecture: Architecture
    loss: Loss
    multiplier: str
    multiplier_step: int
    state_dtype: Any


@functools.lru_cache(maxsize=256)
def make_pass(rules: Rules, local: tuple[Token, ...], layers: tuple[int, ...]) -> Any:
    """Compile a pass: the updates `local` in their order, then the Gram matrices for the weights of `layers`."""

    # The penalties `linear` and `hidden` are per layer, and `gains` of `activation_gain` per hidden layer. Returns the
    # changed variables (`()` for an unchanged one) and the Gram matrices.
    def run(chunk: Chunk, variables: Variables, weights: Any, gains: Any, linear: Any, hidden: Any) -> Any:
        rows = _RowUpdates(rules, chunk, variables, weights, gains, linear, hidden)
        for kind, layer in local:
            rows.update(kind, layer)
        parts = [rows.gram_of(layer) for layer in layers]
        return rows.changed(), parts

    return compiled(run, by_xla=True)


@functools.lru_cache(maxsize=64)
def make_measurement(rules: Rules) -> Any:
    """Compile the sums over rows that make up the objective and the residuals."""

    # Returns the loss, <., multipliers>, both penalties, |multipliers|^2, then |Z_l - A_(l-1) W_l - b_l|^2 of each
    # layer.
    def measure(chunk: Chunk, variables: Variables, weights: Any, linear: Any, hidden: Any) -> Any:
        return _RowUpdates(rules, chunk, variables, weights, (), linear, hidden).measurements()

    return compiled(measure, by_xla=True)


class _RowUpdates:
    # The updates of one chunk while a pass is traced. Variables are read in the dtype of the weights, and changed ones
    # are noted.

    def __init__(
        self, rules: Rules, chunk: Chunk, variables: Variables, weights: Any, gains: Any, linear: Any, hidden: Any
    ) -> None:
        dtype = rules.architecture.dtype
        self._rules, self._chain, self._loss = rules, rules.architecture, rules.loss
        self._chunk, self._weights, self._gains = chunk, weights, gains
        self._linear, self._hidden = linear, hidden
        self.z, self.a, self.lam, self.mu = ([tf.cast(tensor, dtype) for tensor in kind] for kind in variables)
        self._last = len(weights) - 1
        self._touched: set[tuple[str, int]] = set()

    def _inputs(self, layer: int) -> Any:
        return self._chunk.inputs if layer == 0 else self.a[layer - 1]

    def _product(self, layer: int) -> Any:
        kernel, bias = self._weights[layer]
        return tf.matmul(self._inputs(layer), kernel) + bias

    def _shift(self, layer: int) -> Any:
        # lambda / (2 beta) of a constraint. The Bregman multiplier acts on Z_L alone.
        return self.lam[layer] / (2 * self._linear[layer]) if self._rules.multiplier == "admm" else 0.0

    def _hidden_shift(self, layer: int) -> Any:
        return self.mu[layer] / (2 * self._hidden[layer]) if self._rules.multiplier == "admm" else 0.0

    def update(self, kind: str, layer: int) -> None:
        if kind == "A":
            kernel, bias = self._weights[layer + 1]
            h = self._chain.activations[layer](self.z[layer]) - self._hidden_shift(layer)
            goal = self.z[layer + 1] + self._shift(layer + 1) - bias
            self.a[layer] = activation_update(h, goal, kernel, self._gains[layer])
            self._touched.add(("a", layer))
        elif kind == "Z":
            self.z[layer] = self._new_pre_activations(layer)
            self._touched.add(("z", layer))
        else:
            self._update_multipliers()

    def _new_pre_activations(self, layer: int) -> Any:
        m = self._product(layer)
        beta = self._linear[layer]
        if layer < self._last:
            a = self.a[layer] + self._hidden_shift(layer)
            return self._chain.activations[layer].update(a, m - self._shift(layer), self._hidden[layer], beta)
        u = m - self.lam[-1] / (2 * beta) if self.lam else m
        return self._loss.update(u, self._chunk.targets, beta)

    def _update_multipliers(self) -> None:
        step = self._rules.multiplier_step
        first = self._last + 1 - len(self.lam)
        for k, multiplier in enumerate(self.lam):
            layer = first + k
            residual = self.z[layer] - self._product(layer)
            self.lam[k] = multiplier_update(multiplier, residual, self._linear[layer], step)
            self._touched.add(("lam", k))
        for layer, multiplier in enumerate(self.mu):
            residual = self.a[layer] - self._chain.activations[layer](self.z[layer])
            self.mu[layer] = multiplier_update(multiplier, residual, self._hidden[layer], step)
            self._touched.add(("mu", layer))

    def gram_of(self, layer: int) -> Any:
        a = self._inputs(layer)
        a = a if layer == 0 else a * self._chunk.mask[:, None]
        goal = self.z[layer] + self._shift(layer)
        return gram.of_rows(a, goal, self._chunk.mask, self._chain.uses_bias[layer], with_gram=layer > 0)

    def changed(self) -> tuple[Any, ...]:
        dtype = self._rules.state_dtype
        return tuple(
            tuple(tf.cast(t, dtype) if (name, k) in self._touched else () for k, t in enumerate(tensors))
            for name, tensors in (("z", self.z), ("a", self.a), ("lam", self.lam), ("mu", self.mu))
        )

    def measurements(self) -> Any:
        mask = self._chunk.mask[:, None]

        def total(tensor: Any) -> Any:
            return tf.reduce_sum(tf.cast(tensor * mask, tf.float64))

        gaps = [self.z[layer] - self._product(layer) for layer in range(self._last + 1)]
        hidden_gaps = [a - h(z) for a, h, z in zip(self.a, self._chain.activations, self.z, strict=False)]
        is_admm = self._rules.multiplier == "admm"
        met = zip(self.lam, gaps, strict=True) if is_admm else [(lam, self.z[-1]) for lam in self.lam]
        pairs = [*met, *zip(self.mu, hidden_gaps, strict=is_admm)]
        zero = tf.zeros((), tf.float64)
        squares = [total(gap**2) for gap in gaps]
        linear, hidden = tf.cast(self._linear, tf.float64), tf.cast(self._hidden, tf.float64)
        return tf.stack([
            total(self._loss.value(self.z[-1], self._chunk.targets)[:, None]),
            sum((total(first * second) for first, second in pairs), zero),
            sum((linear[layer] * square for layer, square in enumerate(squares)), zero),
            sum((hidden[layer] * total(gap**2) for layer, gap in enumerate(hidden_gaps)), zero),
            sum((total(multiplier**2) for multiplier in [*self.lam, *self.mu]), zero),
            *squares,
        ])
