"""The options of a `BregmanTrainer`, one record for each algorithm, and presets of them."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from tfopt._checks import check_choice, check_integer, check_number
from tfopt._record import Record

__all__ = ["PRESETS", "RestartedSettings", "Settings", "SplittingSettings"]

Check = Callable[[str, Any], Any]


def _option(default: Any, check: Check) -> Any:
    return field(default=default, metadata={"check": check})


def _one_of(*choices: str) -> Check:
    return functools.partial(check_choice, choices=choices)


def _integer(minimum: int, maximum: int | None = None) -> Check:
    return functools.partial(check_integer, minimum=minimum, maximum=maximum)


def _at_least(minimum: float) -> Check:
    return functools.partial(check_number, minimum=minimum)


def _or(special: str | None, check: Check) -> Check:
    return lambda name, value: value if type(value) is type(special) and value == special else check(name, value)


def _check_penalty(name: str, value: Any) -> float | tuple[float, ...]:
    if (isinstance(value, Sequence) and not isinstance(value, str | bytes)) or getattr(value, "ndim", 0) == 1:
        return tuple(check_number(name, item, minimum=0.0, exclusive_minimum=True) for item in value)
    return check_number(name, value, minimum=0.0, exclusive_minimum=True)


@dataclass(frozen=True)
class Settings(Record):
    """The options that both algorithms have.

    Attributes:
        algorithm: "restarted" or "splitting"; the class of the record.
        linear_penalty: beta, of |Z_l - A_(l-1) W_l - b_l|^2: one number > 0, or one for each Dense layer.
        activation_penalty: gamma, of |A_l - h_l(Z_l)|^2: one number > 0, or one for each hidden layer.
        weight_decay: Coefficient of |W_l|^2 in the mean loss, without biases; >= 0.
        ridge: Coefficient of |W - W_old|^2 in the update of weights, in units of the mean square of the layer's inputs;
            >= 0.
        state_dtype: Dtype in which pre-activations, activations and multipliers are kept: "float16", "float32",
            "float64"; None for the dtype of the weights.
        chunk_rows: Maximum number of rows that are processed together.

    Raises:
        TypeError: An option has a wrong type.
        ValueError: An option is out of its range.
    """

    algorithm: ClassVar[str]
    linear_penalty: float | tuple[float, ...] = _option(0.1, _check_penalty)
    activation_penalty: float | tuple[float, ...] = _option(0.1, _check_penalty)
    weight_decay: float = _option(1e-5, _at_least(0.0))
    ridge: float = _option(0.1, _at_least(0.0))
    state_dtype: str | None = _option(None, _or(None, _one_of("float16", "float32", "float64")))
    chunk_rows: int = _option(8192, _integer(1))

    def __post_init__(self) -> None:
        # Keep plain numbers and tuples, so that equal settings compare equal in a checkpoint.
        for each in fields(self):
            object.__setattr__(self, each.name, each.metadata["check"](each.name, getattr(self, each.name)))

    @staticmethod
    def from_arguments(preset: Any, options: dict[str, Any]) -> "Settings":
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
        names = {key: {each.name for each in fields(value)} for key, value in PRESETS.items()}
        for name, value in options.items():
            owners = [key for key in PRESETS if name in names[key]]
            if not owners:
                known = ", ".join(sorted(set().union(*names.values())))
                raise TypeError(f"BregmanTrainer has no option {name!r}. Its options are {known}")
            if preset not in owners:
                raise ValueError(
                    f"`{name}` is not an option of preset={preset!r}. Received: {name}={value!r}. Presets with this "
                    f"option: {', '.join(map(repr, owners))}"
                )
        return replace(PRESETS[preset], **options)

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


def _per_layer(name: str, value: float | tuple[float, ...], count: int, what: str) -> list[float]:
    if not isinstance(value, tuple):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"`{name}` must be one number, or one for each of the {count} {what}. Received: {value!r}")
    return list(value)


@dataclass(frozen=True)
class RestartedSettings(Settings):
    """The options of `preset="restarted"`: those of `Settings`, and its own.

    Every sweep over a block of rows starts with a forward pass and goes backward through the layers. Pre-activations
    and activations are not kept, and steps are longer than the exact update as long as this lowers the objective.

    Attributes:
        num_blocks: Number of blocks of rows in a sweep; all weights are updated after each block. "auto": a block has
            about twice as many rows as the widest layer has inputs, and there are at most 32 blocks.
        step: Fraction of the last layer's update that is applied, in (0, 1]; "auto" is 1 for one block, else 0.3.
        relaxation_growth: Factor >= 1 by which the hidden layers' steps grow after a sweep that lowered the objective.
            The steps start at 1, the exact update.
        max_relaxation: Upper limit of these steps, >= 1.
    """

    algorithm = "restarted"
    num_blocks: int | str = _option("auto", _or("auto", _integer(1)))
    step: float | str = _option(
        "auto", _or("auto", functools.partial(check_number, minimum=0.0, maximum=1.0, exclusive_minimum=True))
    )
    relaxation_growth: float = _option(1.2, _at_least(1.0))
    max_relaxation: float = _option(20.0, _at_least(1.0))


@dataclass(frozen=True)
class SplittingSettings(Settings):
    """The options of the other presets: those of `Settings`, and their own.

    Pre-activations, activations and multipliers are kept and updated, as in Taylor et al. 2016.

    Attributes:
        multiplier: "bregman" (one, of the outputs), "admm" (one for each constraint), "none".
        multiplier_step: 2, the exact step, after which the multiplier is minus a subgradient of the loss; or 1, as
            printed.
        num_warm_start_iterations: Number of sweeps before the first update of the multiplier, >= 0.
        num_sweeps_per_multiplier_update: Number of sweeps between two updates of the multiplier, >= 1.
        penalty_growth: Factor >= 1 by which all penalties are multiplied after each sweep.
        max_penalty: Upper limit of the penalties, as a multiple >= 1 of their first values.
        order: "forward", as printed: W_l, A_l, Z_l for l = 1 to L-1, then the last layer; "backward": the last layer
            first, then A_l, Z_l, W_l down to 1; "alternating": both in turn.
        last_layer_order: "W,Z", as printed, or "Z,W".
        update: "gauss_seidel": each update uses the results of the updates before it. "jacobi": all weights are
            computed from the state of the last sweep, and their sums are reduced over ranks in one message while the
            other updates run.
        initialization: "forward", a pass through the network; or "gaussian", standard normal numbers.
        seed: Seed of the Gaussian initialization, from 0 to 2^31 - 1.
    """

    algorithm = "splitting"
    multiplier: str = _option("none", _one_of("bregman", "admm", "none"))
    multiplier_step: int = _option(2, _integer(1, 2))
    num_warm_start_iterations: int = _option(0, _integer(0))
    num_sweeps_per_multiplier_update: int = _option(1, _integer(1))
    penalty_growth: float = _option(1.0, _at_least(1.0))
    max_penalty: float = _option(1e6, _at_least(1.0))
    order: str = _option("forward", _one_of("forward", "backward", "alternating"))
    last_layer_order: str = _option("W,Z", _one_of("W,Z", "Z,W"))
    update: str = _option("gauss_seidel", _one_of("gauss_seidel", "jacobi"))
    initialization: str = _option("forward", _one_of("forward", "gaussian"))
    seed: int = _option(0, _integer(0, 2**31 - 1))


PRESETS: dict[str, Settings] = {
    "restarted": RestartedSettings(),
    "paper": SplittingSettings(
        linear_penalty=1.0,
        activation_penalty=10.0,
        weight_decay=0.0,
        ridge=0.0,
        multiplier="bregman",
        multiplier_step=1,
        initialization="gaussian",
    ),
    "penalty": SplittingSettings(
        linear_penalty=0.03,
        activation_penalty=0.03,
        ridge=1e-3,
        order="backward",
        last_layer_order="Z,W",
    ),
    "admm": SplittingSettings(
        linear_penalty=1.0,
        activation_penalty=1.0,
        weight_decay=0.0,
        ridge=1e-6,
        multiplier="admm",
    ),
}
