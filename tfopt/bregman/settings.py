"""The options of a `BregmanTrainer`, and presets of them."""

import functools
from collections.abc import Callable, Sequence
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
        algorithm: "restarted": every sweep over a block of rows starts with a forward pass and goes backward through
            the layers. Pre-activations and activations are not kept, and steps are longer than the exact update as long
            as this lowers the objective. "splitting": pre-activations, activations and multipliers are kept and
            updated, as in Taylor et al. 2016.
        linear_penalty: beta, of |Z_l - A_(l-1) W_l - b_l|^2: one number > 0, or one for each Dense layer.
        activation_penalty: gamma, of |A_l - h_l(Z_l)|^2: one number > 0, or one for each hidden layer.
        weight_decay: Coefficient of |W_l|^2 in the mean loss, without biases; >= 0.
        ridge: Coefficient of |W - W_old|^2 in the update of weights, in units of the mean square of the layer's inputs;
            >= 0.
        state_dtype: Dtype in which pre-activations, activations and multipliers are kept: "float16", "float32",
            "float64"; None for the dtype of the weights.
        chunk_rows: Maximum number of rows that are processed together.
        num_blocks: Restarted: number of blocks of rows in a sweep; all weights are updated after each block. "auto": a
            block has about twice as many rows as the widest layer has inputs, and there are at most 32 blocks.
        step: Restarted: fraction of the last layer's update that is applied, in (0, 1]; "auto" is 1 for one block, else
            0.3.
        relaxation_growth: Restarted: factor >= 1 by which the hidden layers' steps grow after a sweep that lowered the
            objective. The steps start at 1, the exact update.
        max_relaxation: Restarted: upper limit of these steps, >= 1.
        multiplier: Splitting: "bregman" (one, of the outputs), "admm" (one for each constraint), "none".
        multiplier_step: Splitting: 2, the exact step, after which the multiplier is minus a subgradient of the loss; or
            1, as printed.
        num_warm_start_iterations: Splitting: number of sweeps before the first update of the multiplier.
        num_sweeps_per_multiplier_update: Splitting: number of sweeps between two updates of the multiplier.
        penalty_growth: Splitting: factor >= 1 by which all penalties are multiplied after each sweep.
        max_penalty: Splitting: upper limit of the penalties, as a multiple >= 1 of their first values.
        order: Splitting: "forward", as printed: W_l, A_l, Z_l for l = 1 to L-1, then the last layer; "backward": the
            last layer first, then A_l, Z_l, W_l down to 1; "alternating": both in turn.
        last_layer_order: Splitting: "W,Z", as printed, or "Z,W".
        update: Splitting: "gauss_seidel": each update uses the results of the updates before it. "jacobi": all weights
            are computed from the state of the last sweep, and their sums are reduced over ranks in one message while
            the other updates run.
        initialization: Splitting: "forward", a pass through the network; or "gaussian", standard normal numbers.
        seed: Splitting: seed of the Gaussian initialization.
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
        """Return a preset with some options replaced.

        Args:
            preset: A key of `PRESETS`.
            options: Names and values of the options to replace.

        Returns:
            The settings, checked.

        Raises:
            TypeError: An option is unknown, or has a wrong type.
            ValueError: The preset is unknown, an option is out of its range, or it belongs to another algorithm.
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
                    f"`{name}` is not an option of preset={preset!r}. Received: {name}={options[name]!r}. Presets with "
                    f"this option: {', '.join(map(repr, others))}"
                )
        return replace(chosen, **chosen._checked(options))

    def _checked(self, options: dict[str, Any]) -> dict[str, Any]:
        # Return plain numbers and tuples, so that equal settings compare equal in a checkpoint.
        checks: dict[str, Callable[[str, Any], Any]] = {
            **dict.fromkeys(("weight_decay", "ridge"), functools.partial(check_number, minimum=0.0)),
            **dict.fromkeys(
                ("relaxation_growth", "max_relaxation", "penalty_growth", "max_penalty"),
                functools.partial(check_number, minimum=1.0),
            ),
            "state_dtype": lambda name, value: (
                None if value is None else check_choice(name, value, ("float16", "float32", "float64"))
            ),
            "chunk_rows": functools.partial(check_integer, minimum=1),
            "num_blocks": _auto_or(functools.partial(check_integer, minimum=1)),
            "step": _auto_or(functools.partial(check_number, minimum=0.0, maximum=1.0, exclusive_minimum=True)),
            "multiplier": functools.partial(check_choice, choices=("bregman", "admm", "none")),
            "multiplier_step": functools.partial(check_integer, minimum=1, maximum=2),
            "num_warm_start_iterations": functools.partial(check_integer, minimum=0),
            "num_sweeps_per_multiplier_update": functools.partial(check_integer, minimum=1),
            "order": functools.partial(check_choice, choices=("forward", "backward", "alternating")),
            "last_layer_order": functools.partial(check_choice, choices=("W,Z", "Z,W")),
            "update": functools.partial(check_choice, choices=("gauss_seidel", "jacobi")),
            "initialization": functools.partial(check_choice, choices=("forward", "gaussian")),
            "seed": functools.partial(check_integer, minimum=0, maximum=2**31 - 1),
            **dict.fromkeys(("linear_penalty", "activation_penalty"), _check_penalty),
        }
        return {name: checks[name](name, value) for name, value in options.items()}

    def penalties(self, num_layers: int) -> tuple[list[float], list[float]]:
        """Return beta of each Dense layer and gamma of each hidden layer.

        Args:
            num_layers: Number of Dense layers.

        Returns:
            Two lists, of `num_layers` and `num_layers - 1` numbers.

        Raises:
            ValueError: The number of penalties differs from the number of layers.
        """
        linear = _per_layer("linear_penalty", self.linear_penalty, num_layers, "Dense layers")
        return linear, _per_layer("activation_penalty", self.activation_penalty, num_layers - 1, "hidden layers")


def _auto_or(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda name, value: value if isinstance(value, str) and value == "auto" else check(name, value)


def _check_penalty(name: str, value: Any) -> float | tuple[float, ...]:
    if (isinstance(value, Sequence) and not isinstance(value, str | bytes)) or getattr(value, "ndim", 0) == 1:
        return tuple(check_number(name, item, minimum=0.0, exclusive_minimum=True) for item in value)
    return check_number(name, value, minimum=0.0, exclusive_minimum=True)


def _per_layer(name: str, value: float | tuple[float, ...], count: int, what: str) -> list[float]:
    if not isinstance(value, tuple):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"`{name}` must be one number, or one for each of the {count} {what}. Received: {value!r}")
    return list(value)


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
