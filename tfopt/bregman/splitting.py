"""The algorithm that keeps its variables: the paper's, a pure penalty method, and the classical method of multipliers.

Pre-activations Z, activations A and multipliers are kept for every row and updated block by block. The updates are in
`updates`, `activations` and `losses`. A sweep is a list of updates: ("W", l), ("A", l), ("Z", l), and ("M", 0) for the
multipliers. Between two updates of weights everything is local to the rows. Therefore a sweep takes one pass through
the chunks for each update of weights, and one more if other updates follow the last of them.

With `multiplier="admm"` each constraint has a multiplier: lambda_l of Z_l = A_(l-1) W_l + b_l and mu_l of A_l = h(Z_l).
In the updates it shifts the target of a variable by lambda / (2 beta) or mu / (2 gamma). With "bregman" there is only
lambda_L. It acts on Z_L alone: the term is <Z_L, lambda>, and the update of W_L does not contain it.
"""

import concurrent.futures
import functools
from typing import Any

import tensorflow as tf

from tfopt._compiled import compiled
from tfopt.bregman import gram
from tfopt.bregman.engine import Engine, Problem
from tfopt.bregman.kept import Kept, Variables
from tfopt.bregman.row_updates import Rules, Token, make_measurement, make_pass
from tfopt.bregman.rows import Chunk, Rows
from tfopt.bregman.settings import SplittingSettings
from tfopt.bregman.updates import (
    COMPILED_GAIN,
    as_tensor,
    join_bias,
    mean_squares,
    solve_compiled,
    split_bias,
    weight_update,
)

__all__ = ["Splitting"]

_ROWS_DRAWN = 256  # Rows in a group that is drawn together, for a random start.


def order_of_updates(num_layers: int, settings: SplittingSettings, sweep: int) -> list[Token]:
    """Return kind ("W", "A", "Z" or "M") and layer (from 0) of each update of a sweep, which is counted from 0."""
    last = num_layers - 1
    end = [("W", last), ("Z", last)] if settings.last_layer_order == "W,Z" else [("Z", last), ("W", last)]
    goes_back = settings.order == "backward" or (settings.order == "alternating" and sweep % 2 == 0)
    if goes_back:
        order = end + [(kind, layer) for layer in range(last - 1, -1, -1) for kind in "AZW"]
    else:
        order = [(kind, layer) for layer in range(last) for kind in "WAZ"] + end
    if settings.update == "jacobi":
        order = [token for token in order if token[0] != "W"]
    done = sweep - settings.num_warm_start_iterations
    if settings.multiplier != "none" and done >= 0 and (done + 1) % settings.num_sweeps_per_multiplier_update == 0:
        order.append(("M", 0))
    return order


class Splitting(Engine):
    """The splitting algorithm and its state."""

    _settings: SplittingSettings

    def __init__(self, problem: Problem, rows: Rows) -> None:
        super().__init__(problem, rows)
        self._kept: list[Kept] = []
        self._sweep = 0
        self._input_gram: Any = None
        multiplier = (self._settings.multiplier, self._settings.multiplier_step)
        self._rules = Rules(self._chain.architecture, self._loss, *multiplier, self._state_dtype)

    # ---- Start

    def start(self) -> dict[str, float]:
        """Initialise all variables, sum the Gram matrix of the inputs, which never changes, and return the logs."""
        self._input_gram = gram.of_inputs(self._rows, self._num_inputs(0), self._chain.uses_bias[0], self._communicator)
        if not self._kept:
            self._kept = self._allocate()
            for kept, chunk, members in zip(self._kept, self._rows.all(), self._rows.row_numbers(), strict=True):
                kept.write(self._first_variables(chunk, members))
        return self._measure()

    def _allocate(self) -> list[Kept]:
        z, a = self._chain.widths[1:], self._chain.widths[1:-1]
        linear, hidden = {"none": ((), ()), "bregman": (z[-1:], ()), "admm": (z, a)}[self._settings.multiplier]
        widths = Variables(z, a, linear, hidden)
        return [Kept(widths, self._rows.rows_per_chunk, self._state_dtype) for _ in self._rows.row_numbers()]

    def _first_variables(self, chunk: Chunk, members: Any) -> Variables:
        if self._settings.initialization == "forward":
            z: Any = self._chain.architecture.forward(chunk.inputs, self.weights)
            a: Any = [h(before) for h, before in zip(self._chain.activations, z, strict=False)]
        else:
            z, a = self._draw(members)
        z, a = (tuple(tf.cast(tensor, self._state_dtype) for tensor in tensors) for tensors in (z, a))
        # Multipliers keep the zeros with which they were allocated.
        numbers = {"none": (0, 0), "bregman": (1, 0), "admm": (len(z), len(a))}
        linear, hidden = numbers[self._settings.multiplier]
        return Variables(z, a, ((),) * linear, ((),) * hidden)

    def _draw(self, members: Any) -> tuple[list[Any], list[Any]]:
        # Draw groups of rows, keyed by the group's number in the whole data set, so that ranks draw the numbers of one
        # process. There is one block, so the rows of a chunk are consecutive.
        widths = self._chain.widths[1:]
        width = sum(widths) + sum(widths[:-1])
        first, last = self._rows.first_row + int(members[0]), self._rows.first_row + int(members[-1])
        groups = range(first // _ROWS_DRAWN, last // _ROWS_DRAWN + 1)
        drawn = tf.concat(
            [
                tf.random.stateless_normal((_ROWS_DRAWN, width), (self._settings.seed, group), dtype=self._chain.dtype)
                for group in groups
            ],
            axis=0,
        )
        begin = first - groups[0] * _ROWS_DRAWN
        missing = self._rows.rows_per_chunk - len(members)
        drawn = tf.pad(drawn[begin : begin + len(members)], [[0, missing], [0, 0]])
        parts = tf.split(drawn, [*widths, *widths[:-1]], axis=1)
        return parts[: len(widths)], parts[len(widths) :]

    # ---- One sweep

    def sweep(self, with_metrics: bool) -> dict[str, float]:
        """Do all updates once, and return the logs; measure the objective and the network only if `with_metrics`."""
        order = order_of_updates(self._num_layers, self._settings, self._sweep)
        if self._settings.update == "jacobi":
            self._sweep_jacobi(order)
        else:
            local: list[Token] = []
            for token in order:
                if token[0] == "W":
                    sums = self._pass(tuple(local), (token[1],))
                    self._reduce_and_solve([token[1]], sums)
                    local = []
                else:
                    local.append(token)
            if local:
                self._pass(tuple(local), ())
        self._sweep += 1
        self._penalty_scale = min(self._penalty_scale * self._settings.penalty_growth, self._settings.max_penalty)
        if with_metrics:
            return self._measure()
        return {"penalty_scale": self._penalty_scale}

    def _sweep_jacobi(self, order: list[Token]) -> None:
        # All Gram matrices come from the state of the last sweep. The rows are updated while the matrices are summed
        # over ranks.
        layers = list(range(self._num_layers))
        sums = self._pass((), tuple(layers))
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            reduction = thread.submit(gram.reduce_sums, self._communicator, sums, "Gram matrices of all layers")
            self._pass(tuple(order), ())
            reduction.result()
        self._solve(layers, sums)

    def _penalties(self) -> tuple[Any, Any]:
        dtype = self._chain.dtype
        linear, hidden = (
            tf.constant([p * self._penalty_scale for p in penalties], dtype)
            for penalties in (self._linear, self._hidden)
        )
        return linear, hidden

    def _pass(self, local: tuple[Token, ...], layers: tuple[int, ...]) -> list[gram.Sums]:
        # Do the local updates of every chunk, then sum the Gram matrices for the weights of `layers`.
        sums = [
            gram.Sums(self._num_inputs(layer), self._chain.widths[layer + 1], with_gram=layer > 0) for layer in layers
        ]
        penalties = self._penalties()
        gains = tuple(
            solve_compiled(COMPILED_GAIN, self.weights[layer + 1][0], penalties[0][layer + 1], penalties[1][layer])
            if ("A", layer) in local
            else ()
            for layer in range(self._num_layers - 1)
        )
        run = make_pass(self._rules, local, layers)
        for k, chunk in enumerate(self._rows.all()):
            changed, parts = run(chunk, self._kept[k].read(), self.weights, gains, *penalties)
            self._kept[k].write(changed)
            for item, part in zip(sums, parts, strict=True):
                item.add(*part)
        return sums

    # ---- Weights

    def _reduce_and_solve(self, layers: list[int], sums: list[gram.Sums]) -> None:
        gram.reduce_sums(self._communicator, sums, f"Gram matrices of layer {layers[0] + 1}")
        self._solve(layers, sums)

    def _solve(self, layers: list[int], sums: list[gram.Sums]) -> None:
        weights = list(self.weights)
        for layer, item in zip(layers, sums, strict=True):
            matrix = self._input_gram if layer == 0 else item.gram
            decay = self._settings.weight_decay * self._rows.total_rows / (self._linear[layer] * self._penalty_scale)
            arguments = (matrix, item.cross_gram, *weights[layer], self._settings.ridge, decay)
            weights[layer] = solve_compiled(
                _make_solve(self._chain.uses_bias[layer]), *(as_tensor(value) for value in arguments)
            )
        self.weights = weights

    # ---- Measurements

    def _measure(self) -> dict[str, float]:
        penalties = self._penalties()
        total: Any = None
        for k, chunk in enumerate(self._rows.all()):
            part = make_measurement(self._rules)(chunk, self._kept[k].read(), self.weights, *penalties)
            total = part if total is None else total + part
        (total,) = self._communicator.allreduce_sum([total], name="objective and residuals")
        means = [float(value) / self._rows.total_rows for value in total.numpy()]
        loss, inner, linear, hidden, norm = means[:5]
        logs = self._evaluation(self._rows, self.weights)[1]
        return logs | {
            "objective": loss + inner + linear + hidden + self._decay_of_weights(),
            "objective/loss": loss,
            "objective/multiplier": inner,
            "objective/linear_penalty": linear,
            "objective/activation_penalty": hidden,
            "multiplier_norm": norm**0.5,
            "penalty_scale": self._penalty_scale,
            **{f"primal_residual/{layer + 1}": value**0.5 for layer, value in enumerate(means[5:])},
        }

    def get_state(self) -> dict[str, Any]:
        """Return arrays and numbers from which a later run continues with the same bits."""
        return super().get_state() | {
            "variables": [[[tensor.numpy() for tensor in kind] for kind in kept.read()] for kept in self._kept],
            "sweep": self._sweep,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from a state that `get_state` returned."""
        super().set_state(state)
        self._kept = self._allocate()
        for kept, arrays in zip(self._kept, state["variables"], strict=True):
            kept.write([[tf.constant(array) for array in kind] for kind in arrays])
        self._sweep = state["sweep"]


@functools.lru_cache(maxsize=2)
def _make_solve(with_bias: bool) -> Any:
    def solve(matrix: Any, cross_gram: Any, kernel: Any, bias: Any, ridge: Any, decay: Any) -> Any:
        old, decays = join_bias(kernel, bias, decay, with_bias)
        new = weight_update(matrix, cross_gram, ridge * mean_squares(matrix, with_bias), center=old, penalty=decays)
        return split_bias(new, kernel, bias, with_bias)

    return compiled(solve)
