"""The table of optimizers under contract. Every test that reads the table covers an optimizer with a row here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from guide import Lamb, LambOracle
from optimizer_oracles import FromageOracle, LarsOracle

from tfopt.optimizers import LARS, Fromage


@dataclass(frozen=True)
class Row:
    """An optimizer in one setting, and its equations."""

    make: Callable[..., Any]
    make_oracle: Callable[[], Any]
    learning_rate: float


def _lars(learning_rate=1.0, **settings):
    def oracle():
        arguments = dict(settings)
        if arguments.pop("layer_adaptation_exclude", None) == "vectors":
            arguments["adapt"] = lambda w: w.ndim > 1
        if arguments.pop("weight_decay_exclude", None) == "vectors":
            arguments["decay"] = lambda w: w.ndim > 1
        return LarsOracle(**arguments)

    return Row(lambda **kw: LARS(**{"learning_rate": learning_rate, **settings, **kw}), oracle, learning_rate)


TABLE = {
    "fromage": Row(lambda **kw: Fromage(**kw), FromageOracle, 0.01),
    "fromage_fast": Row(lambda **kw: Fromage(**{"learning_rate": 0.3, **kw}), FromageOracle, 0.3),
    "fromage_p_bound": Row(
        lambda **kw: Fromage(**{"learning_rate": 0.3, "p_bound": 1.1, **kw}), lambda: FromageOracle(1.1), 0.3
    ),
    "lars": _lars(),
    "lars_decay": _lars(weight_decay=0.1, trust_coefficient=0.01),
    "lars_norm": _lars(weight_decay=0.1, denominator="norm", epsilon=1e-3, trust_coefficient=0.02, norm_floor=0.3),
    "lars_nesterov": _lars(nesterov=True, weight_decay=0.01, trust_coefficient=0.01),
    "larc": _lars(clip=True, learning_rate=0.003, trust_coefficient=0.02, weight_decay=0.01),
    "lars_excluded": _lars(
        learning_rate=0.01,
        trust_coefficient=0.05,
        weight_decay=0.1,
        layer_adaptation_exclude="vectors",
        weight_decay_exclude="vectors",
    ),
    "guide": Row(lambda **kw: Lamb(**{"learning_rate": 0.01, **kw}), LambOracle, 0.01),
    "lars_no_momentum": _lars(momentum=0.0, weight_decay=0.1, trust_coefficient=0.01, norm_floor=0.0),
}
CLASSES = ("fromage", "lars", "guide")  # the first row of each
WAYS_TO_STEP = (*CLASSES, "fromage_p_bound", "lars_nesterov", "larc")
