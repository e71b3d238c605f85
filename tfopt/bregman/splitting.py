"""The algorithm that keeps its variables: the paper's, a pure penalty method, and the classical method of multipliers.

Pre-activations Z, activations A and multipliers are kept for every row and updated block by block; `updates`,
`activations` and `losses` hold the updates. A sweep is a list of them: ("W", l), ("A", l), ("Z", l), and ("M", 0) for
the multipliers. Between two updates of weights everything is local to the rows, so that a sweep is one pass through the
chunks for each update of weights, and one more where updates are left at its end.

With `multiplier="admm"` each constraint has a multiplier: lambda_l of Z_l = A_(l-1) W_l + b_l and mu_l of A_l = h(Z_l).
In the updates it shifts what a variable is pulled to by lambda / (2 beta) or mu / (2 gamma). With "bregman" there is
lambda_L only, which meets Z_L alone: the term is <Z_L, lambda>, and the update of W_L does not see it.
"""

import concurrent.futures
from typing import Any, NamedTuple

import tensorflow as tf

from tfopt.bregman import gram
from tfopt.bregman.evaluation import Evaluation
from tfopt.bregman.losses import Loss
from tfopt.bregman.network import DenseChain
from tfopt.bregman.rows import Chunk, Rows
from tfopt.bregman.settings import Settings
from tfopt.bregman.updates import activation_gain, activation_update, multiplier_update, solve_compiled, weight_update
from tfopt.communicator import Communicator

__all__ = ["Splitting"]

Token = tuple[str, int]


class Variables(NamedTuple):
    """What is kept for the rows of a chunk; layers are counted from 0."""

    z: tuple[Any, ...]  # Z of each layer, shape (rows, width)
    a: tuple[Any, ...]  # A of each hidden layer
    linear: tuple[Any, ...]  # lambda of each layer; one, the last layer's, with "bregman"; none with "none"
    hidden: tuple[Any, ...]  # mu of each hidden layer, with "admm"


def order_of_updates(num_layers: int, settings: Settings, sweep: int) -> list[Token]:
    """List the updates of a sweep.

    Args:
        num_layers: Number of Dense layers.
        settings: The options.
        sweep: Number of the sweep, from 0.

    Returns:
        Kind and layer (from 0) of each update; kinds are "W", "A", "Z" and "M".
    """
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


class Splitting:
    """The algorithm and its state.

    Args:
        chain: The network.
        loss: The loss.
        settings: The options.
        rows: The rows of this process.
        evaluation: Measures the network.
        communicator: The job's processes.

    Attributes:
        weights: The current weights.
    """

    def __init__(
        self,
        chain: DenseChain,
        loss: Loss,
        settings: Settings,
        rows: Rows,
        evaluation: Evaluation,
        communicator: Communicator,
    ) -> None:
        self._chain, self._loss, self._settings = chain, loss, settings
        self._rows, self._evaluation, self._communicator = rows, evaluation, communicator
        self._num_layers = len(chain.layers)
        self._linear, self._hidden = settings.penalties(self._num_layers)
        self._state_dtype = tf.as_dtype(settings.state_dtype or chain.dtype)
        self.weights = chain.read_weights()
        self._variables: list[Variables] = []
        self._sweep = 0
        self._penalty_scale = 1.0
        self._input_gram: Any = None
        self._passes: dict[Any, Any] = {}
        self._gain = tf.function(activation_gain, autograph=False)
        self._solves = [self._make_solve(layer) for layer in range(self._num_layers)]
        self._measure_pass = tf.function(self._measure_chunk, jit_compile=True, autograph=False)

    # ---- Start

    def start(self) -> dict[str, float]:
        """Set up the variables of every row, and sum up the Gram matrix of the inputs, which stays as it is.

        Returns:
            The logs of the untrained network.
        """
        sums = gram.Sums(self._num_inputs(0), 1)
        count = tf.function(gram.of_rows, jit_compile=True, autograph=False)
        for chunk in self._rows.all():
            sums.add(count(chunk.inputs, chunk.mask[:, None], chunk.mask, self._chain.uses_bias[0]))
        gram.reduce_sums(self._communicator, [sums], "Gram matrix of the inputs")
        self._input_gram = sums.gram
        if not self._variables:
            self._variables = [
                self._first_variables(chunk, members)
                for chunk, members in zip(self._rows.all(), self._rows.row_numbers(), strict=True)
            ]
        return self._measure(with_metrics=True)

    def _first_variables(self, chunk: Chunk, members: Any) -> Variables:
        if self._settings.initialization == "forward":
            z = self._chain.forward(chunk.inputs, self.weights)
            a = [h(before) for h, before in zip(self._chain.activations, z, strict=False)]
        else:
            z, a = self._draw(members)
        kept_linear = {"none": [], "bregman": z[-1:], "admm": z}[self._settings.multiplier]
        kept_hidden = a if self._settings.multiplier == "admm" else []

        def keep(tensors: list[Any], function: Any = tf.identity) -> tuple[Any, ...]:
            return tuple(function(tf.cast(tensor, self._state_dtype)) for tensor in tensors)

        return Variables(keep(z), keep(a), keep(kept_linear, tf.zeros_like), keep(kept_hidden, tf.zeros_like))

    def _draw(self, members: Any) -> tuple[list[Any], list[Any]]:
        # Keyed by the number of the row in the whole data set, so that ranks draw what one process would.
        widths = self._chain.widths[1:]
        total = sum(widths) + sum(widths[:-1])
        first = tf.constant(self._rows.first_row, tf.int64)

        def draw(row: Any) -> Any:
            seed = tf.stack([tf.constant(self._settings.seed, tf.int64), row])
            return tf.random.stateless_normal((total,), seed, dtype=self._chain.dtype)

        drawn = tf.vectorized_map(draw, first + tf.constant(members, tf.int64))
        missing = self._rows.rows_per_chunk - len(members)
        parts = tf.split(tf.pad(drawn, [[0, missing], [0, 0]]), [*widths, *widths[:-1]], axis=1)
        return parts[: len(widths)], parts[len(widths) :]

    # ---- One sweep

    def sweep(self, with_metrics: bool) -> dict[str, float]:
        """Do all updates once.

        Args:
            with_metrics: Whether to measure the objective and the forward network too.

        Returns:
            The logs.
        """
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
            return self._measure(with_metrics=True)
        return {"penalty_scale": self._penalty_scale}

    def _sweep_jacobi(self, order: list[Token]) -> None:
        # All Gram matrices come from the last sweep's state; while they are summed over ranks, the rows are updated.
        layers = list(range(self._num_layers))
        sums = self._pass((), tuple(layers))
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            reduction = thread.submit(gram.reduce_sums, self._communicator, sums, "Gram matrices of all layers")
            self._pass(tuple(order), ())
            reduction.result()
        self._solve(layers, sums)

    def _num_inputs(self, layer: int) -> int:
        return self._chain.widths[layer] + self._chain.uses_bias[layer]

    def _penalties(self) -> tuple[Any, Any]:
        dtype = self._chain.dtype
        linear, hidden = (
            tf.constant([p * self._penalty_scale for p in penalties], dtype)
            for penalties in (self._linear, self._hidden)
        )
        return linear, hidden

    def _pass(self, local: tuple[Token, ...], layers: tuple[int, ...]) -> list[gram.Sums]:
        # Local updates of every chunk, then the Gram matrices for the weights of `layers`.
        sums = [
            gram.Sums(self._num_inputs(layer), self._chain.widths[layer + 1], with_gram=layer > 0) for layer in layers
        ]
        key = (local, layers)
        if key not in self._passes:
            self._passes[key] = tf.function(self._make_pass(local, layers), jit_compile=True, autograph=False)
        penalties = self._penalties()
        gains = tuple(
            solve_compiled(self._gain, self.weights[layer + 1][0], penalties[0][layer + 1], penalties[1][layer])
            if ("A", layer) in local
            else ()
            for layer in range(self._num_layers - 1)
        )
        for k, chunk in enumerate(self._rows.all()):
            changed, parts = self._passes[key](chunk, self._variables[k], self.weights, gains, *penalties)
            self._variables[k] = _merge(self._variables[k], changed)
            for item, part in zip(sums, parts, strict=True):
                item.add(part)
        return sums

    def _make_pass(self, local: tuple[Token, ...], layers: tuple[int, ...]) -> Any:
        def run(chunk: Chunk, variables: Variables, weights: Any, gains: Any, linear: Any, hidden: Any) -> Any:
            rows = _RowUpdates(self, chunk, variables, weights, gains, linear, hidden)
            for kind, layer in local:
                rows.update(kind, layer)
            parts = [rows.gram_of(layer) for layer in layers]
            return rows.changed(self._state_dtype), parts

        return run

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
            weights[layer] = solve_compiled(self._solves[layer], *map(tf.convert_to_tensor, arguments))
        self.weights = weights

    def _make_solve(self, layer: int) -> Any:
        with_bias = self._chain.uses_bias[layer]

        def solve(matrix: Any, cross_gram: Any, kernel: Any, bias: Any, ridge: Any, decay: Any) -> Any:
            old = tf.cast(kernel, tf.float64)
            decays = tf.fill([kernel.shape[0]], tf.cast(decay, tf.float64))
            if with_bias:
                old = tf.concat([old, tf.cast(bias, tf.float64)[None]], axis=0)
                decays = tf.concat([decays, [0.0]], axis=0)
            ridge = tf.cast(ridge, tf.float64) * tf.reduce_mean(tf.linalg.diag_part(matrix))
            new = tf.cast(weight_update(matrix, cross_gram, ridge, center=old, penalty=decays), kernel.dtype)
            return (new[:-1], new[-1]) if with_bias else (new, bias)

        return tf.function(solve, autograph=False)

    # ---- Measurements

    def _measure_chunk(self, chunk: Chunk, variables: Variables, weights: Any, linear: Any, hidden: Any) -> Any:
        rows = _RowUpdates(self, chunk, variables, weights, (), linear, hidden)
        return rows.measurements()

    def _measure(self, with_metrics: bool) -> dict[str, float]:
        penalties = self._penalties()
        total: Any = None
        for k, chunk in enumerate(self._rows.all()):
            part = self._measure_pass(chunk, self._variables[k], self.weights, *penalties)
            total = part if total is None else total + part
        (total,) = self._communicator.allreduce_sum([total], name="objective and residuals")
        means = [float(value) / self._rows.total_rows for value in total.numpy()]
        loss, inner, linear, hidden, norm = means[:5]
        decay = self._settings.weight_decay * sum(
            float(tf.reduce_sum(tf.cast(kernel, tf.float64) ** 2)) for kernel, _ in self.weights
        )
        logs = self._evaluation(self._rows, self.weights, with_metrics)[1]
        return logs | {
            "objective": loss + inner + linear + hidden + decay,
            "objective/loss": loss,
            "objective/multiplier": inner,
            "objective/linear_penalty": linear,
            "objective/activation_penalty": hidden,
            "multiplier_norm": norm**0.5,
            "penalty_scale": self._penalty_scale,
            **{f"primal_residual/{layer + 1}": value**0.5 for layer, value in enumerate(means[5:])},
        }

    def get_state(self) -> dict[str, Any]:
        """Return what a later run needs to go on with the same bits.

        Returns:
            Arrays and numbers.
        """
        return {
            "weights": [[part.numpy() for part in pair] for pair in self.weights],
            "variables": [[[tensor.numpy() for tensor in kind] for kind in chunk] for chunk in self._variables],
            "sweep": self._sweep,
            "penalty_scale": self._penalty_scale,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Args:
            state: What `get_state` has returned.
        """
        self.weights = [tuple(tf.constant(part) for part in pair) for pair in state["weights"]]  # type: ignore[misc]
        self._variables = [
            Variables(*(tuple(tf.constant(array) for array in kind) for kind in chunk)) for chunk in state["variables"]
        ]
        self._sweep, self._penalty_scale = state["sweep"], state["penalty_scale"]


class _RowUpdates:
    # The updates of one chunk while a pass is traced: variables are read in the dtype of the weights, changes are kept.

    def __init__(
        self,
        engine: Splitting,
        chunk: Chunk,
        variables: Variables,
        weights: Any,
        gains: Any,
        linear: Any,
        hidden: Any,
    ) -> None:
        dtype = engine._chain.dtype
        self._chain, self._loss, self._settings = engine._chain, engine._loss, engine._settings
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
        # lambda / (2 beta) of a constraint; the Bregman multiplier meets Z_L alone.
        return self.lam[layer] / (2 * self._linear[layer]) if self._settings.multiplier == "admm" else 0.0

    def _hidden_shift(self, layer: int) -> Any:
        return self.mu[layer] / (2 * self._hidden[layer]) if self._settings.multiplier == "admm" else 0.0

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
        step = self._settings.multiplier_step
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

    def changed(self, dtype: Any) -> tuple[Any, ...]:
        return tuple(
            tuple(tf.cast(t, dtype) if (name, k) in self._touched else () for k, t in enumerate(tensors))
            for name, tensors in (("z", self.z), ("a", self.a), ("lam", self.lam), ("mu", self.mu))
        )

    def measurements(self) -> Any:
        # Sums over rows: loss, <., multipliers>, both penalties, |multipliers|^2, then |Z_l - A_(l-1) W_l - b_l|^2.
        mask = self._chunk.mask[:, None]

        def total(tensor: Any) -> Any:
            return tf.reduce_sum(tf.cast(tensor * mask, tf.float64))

        gaps = [self.z[layer] - self._product(layer) for layer in range(self._last + 1)]
        hidden_gaps = [a - h(z) for a, h, z in zip(self.a, self._chain.activations, self.z, strict=False)]
        is_admm = self._settings.multiplier == "admm"
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


def _merge(variables: Variables, changed: tuple[Any, ...]) -> Variables:
    return Variables(
        *(
            tuple(old if isinstance(new, tuple) else new for old, new in zip(kind, news, strict=True))
            for kind, news in zip(variables, changed, strict=True)
        )
    )
