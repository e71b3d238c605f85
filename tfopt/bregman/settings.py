"""The options of a `BregmanTrainer`, and sets of them that go together."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from tfopt._checks import check_choice, check_integer, check_number

__all__ = ["PRESETS", "Settings"]

_ONLY_SPLITTING = (
    "multiplier",
    "multiplier_step",
    "num_warm_start_iterations",
    "num_sweeps_per_multiplier_update",
    "penalty_growth",
    "max_penalty",
    "order",
    "last_layer_order",
    "update",
    "initialization",
    "seed",
)
_ONLY_RESTARTED = ("num_blocks", "step", "relaxation_growth", "max_relaxation")


@dataclass(frozen=True)
class Settings:
    """Options of a `BregmanTrainer`; the defaults are those of `preset="restarted"`.

    Attributes:
        algorithm: "restarted": every sweep over a block of rows begins with a forward pass, so that pre-activations and
            activations need not be kept, goes backward through the layers, and relaxes its steps as long as that pays.
            "splitting": pre-activations, activations and multipliers are kept and updated, as in Taylor et al. 2016.
        linear_penalty: beta, of |Z_l - A_(l-1) W_l - b_l|^2: one number > 0, or one for each Dense layer.
        activation_penalty: gamma, of |A_l - h_l(Z_l)|^2: one number > 0, or one for each hidden layer.
        weight_decay: Coefficient of |W_l|^2 in the mean loss, biases left out; >= 0.
        ridge: The update of weights stays near the old ones: ridge * |W - W_old|^2, in units of the mean square of the
            layer's inputs; >= 0.
        state_dtype: Dtype in which pre-activations, activations and multipliers are kept: "float16", "float32",
            "float64"; None for that of the weights.
        chunk_rows: Most rows worked on at once.
        num_blocks: Restarted: into how many blocks of rows a sweep is cut; all weights are updated after each. "auto":
            about twice as many rows in a block as the widest layer has inputs, and at most 32 blocks.
        step: Restarted: share of the last layer's update that is done, in (0, 1]; "auto" is 1 for one block, else 0.3.
        relaxation_growth: Restarted: factor >= 1 by which the hidden layers' steps grow after a sweep that lowered the
            objective. They begin at 1, the exact update.
        max_relaxation: Restarted: the largest such step, >= 1.
        multiplier: Splitting: "bregman" (one, of the outputs), "admm" (one for each constraint), "none".
        multiplier_step: Splitting: 2, the exact step, after which the multiplier is minus a subgradient of the loss; or
            1, as printed.
        num_warm_start_iterations: Splitting: sweeps before the multiplier is first updated.
        num_sweeps_per_multiplier_update: Splitting: sweeps from one update of the multiplier to the next.
        penalty_growth: Splitting: factor >= 1 by which all penalties are multiplied after each sweep.
        max_penalty: Splitting: how many times their first values penalties may grow to.
        order: Splitting: "forward", as printed: W_l, A_l, Z_l for l = 1 to L-1, then the last layer; "backward": the
            last layer first, then A_l, Z_l, W_l down to 1; "alternating": one, then the other.
        last_layer_order: Splitting: "W,Z", as printed, or "Z,W".
        update: Splitting: "gauss_seidel", each update sees those before it; "jacobi": all weights from the last sweep's
            state, reduced over ranks in one message while the other updates are computed.
        initialization: Splitting: "forward", a pass through the network; or "gaussian", standard normal numbers.
        seed: Splitting: seed of the Gaussian start.
    """

    algorithm: str = "restarted"
    linear_penalty: float | tuple[float, ...] = 0.1
    activation_penalty: float | tuple[float, ...] = 0.1
    weight_decay: float = 1e-5
    ridge: float = 0.1
    state_dtype: str | None = None
    chunk_rows: int = 8192
    num_blocks: int | str = "auto"
    step: float | str = "auto"
    relaxation_growth: float = 1.2
    max_relaxation: float = 20.0
    multiplier: str = "none"
    multiplier_step: int = 2
    num_warm_start_iterations: int = 0
    num_sweeps_per_multiplier_update: int = 1
    penalty_growth: float = 1.0
    max_penalty: float = 1e6
    order: str = "forward"
    last_layer_order: str = "W,Z"
    update: str = "gauss_seidel"
    initialization: str = "forward"
    seed: int = 0

    @classmethod
    def of(cls, preset: Any, options: dict[str, Any]) -> "Settings":
        """Take a preset and change some options.

        Args:
            preset: A key of `PRESETS`.
            options: What to change.

        Returns:
            The settings, checked.

        Raises:
            TypeError: An option is unknown, or of a wrong type.
            ValueError: The preset is unknown, or an option out of its range, or not one of the preset's algorithm.
        """
        check_choice("preset", preset, tuple(PRESETS))
        known = {field.name for field in fields(cls)} - {"algorithm"}
        for name in options:
            if name not in known:
                raise TypeError(f"BregmanTrainer has no option {name!r}. Its options are {', '.join(sorted(known))}")
        chosen = PRESETS[preset]
        foreign = _ONLY_SPLITTING if chosen.algorithm == "restarted" else _ONLY_RESTARTED
        for name in options:
            if name in foreign:
                others = [key for key, value in PRESETS.items() if value.algorithm != chosen.algorithm]
                raise ValueError(
                    f"`{name}` does not go with preset={preset!r}. Received: {name}={options[name]!r}. It is an option "
                    f"of preset {', '.join(map(repr, others))}"
                )
        settings = replace(chosen, **options)
        settings._check()
        return settings

    def _check(self) -> None:
        for name in ("weight_decay", "ridge"):
            check_number(name, getattr(self, name), minimum=0.0)
        for name in ("relaxation_growth", "max_relaxation", "penalty_growth", "max_penalty"):
            check_number(name, getattr(self, name), minimum=1.0)
        if self.state_dtype is not None:
            check_choice("state_dtype", self.state_dtype, ("float16", "float32", "float64"))
        check_integer("chunk_rows", self.chunk_rows, minimum=1)
        if not isinstance(self.num_blocks, str) or self.num_blocks != "auto":
            check_integer("num_blocks", self.num_blocks, minimum=1)
        if not isinstance(self.step, str) or self.step != "auto":
            check_number("step", self.step, minimum=0.0, maximum=1.0, exclusive_minimum=True)
        check_choice("multiplier", self.multiplier, ("bregman", "admm", "none"))
        check_integer("multiplier_step", self.multiplier_step, minimum=1, maximum=2)
        check_integer("num_warm_start_iterations", self.num_warm_start_iterations, minimum=0)
        check_integer("num_sweeps_per_multiplier_update", self.num_sweeps_per_multiplier_update, minimum=1)
        check_choice("order", self.order, ("forward", "backward", "alternating"))
        check_choice("last_layer_order", self.last_layer_order, ("W,Z", "Z,W"))
        check_choice("update", self.update, ("gauss_seidel", "jacobi"))
        check_choice("initialization", self.initialization, ("forward", "gaussian"))
        check_integer("seed", self.seed, minimum=0, maximum=2**31 - 1)
        self.penalties(None)

    def penalties(self, num_layers: int | None) -> tuple[list[float], list[float]]:
        """Return beta of each Dense layer and gamma of each hidden layer.

        Args:
            num_layers: Number of Dense layers; None only checks the values.

        Returns:
            Two lists, of `num_layers` and `num_layers - 1` numbers.

        Raises:
            ValueError: The number of penalties is not that of the layers, or a value is not positive.
        """
        linear = _per_layer("linear_penalty", self.linear_penalty, num_layers, "Dense layers")
        hidden = None if num_layers is None else num_layers - 1
        return linear, _per_layer("activation_penalty", self.activation_penalty, hidden, "hidden layers")


def _per_layer(name: str, value: Any, count: int | None, what: str) -> list[float]:
    if (isinstance(value, Sequence) and not isinstance(value, str)) or getattr(value, "ndim", 0) == 1:
        values = [check_number(name, item, minimum=0.0, exclusive_minimum=True) for item in value]
        if count is not None and len(values) != count:
            raise ValueError(f"`{name}` must be one number, or one for each of the {count} {what}. Received: {value!r}")
        return values
    number = check_number(name, value, minimum=0.0, exclusive_minimum=True)
    return [number] * (1 if count is None else count)


PRESETS = {
    "restarted": Settings(),
    "paper": Settings(
        algorithm="splitting",
        linear_penalty=1.0,
        activation_penalty=10.0,
        weight_decay=0.0,
        ridge=0.0,
        multiplier="bregman",
        multiplier_step=1,
        initialization="gaussian",
    ),
    "penalty": Settings(
        algorithm="splitting",
        linear_penalty=0.03,
        activation_penalty=0.03,
        ridge=1e-3,
        order="backward",
        last_layer_order="Z,W",
    ),
    "admm": Settings(
        algorithm="splitting",
        linear_penalty=1.0,
        activation_penalty=1.0,
        weight_decay=0.0,
        ridge=1e-6,
        multiplier="admm",
    ),
}
