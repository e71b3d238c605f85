"""The least norm that a variable counts as when its rate is set, for variables that start at zero.

Such a variable has no norm of its own yet. Each has a scalar in the optimizer's state, which holds its floor: the first
step notes `norm_floor` there if all entries are zero, and 0 if not.
"""

from typing import Any

import keras
from keras import ops

from tfopt import numerics
from tfopt.numerics import Tensor

UNDECIDED = -1.0


def add_floor(optimizer: Any, variable: Any) -> Any:
    """Add a variable's floor to the state of an optimizer.

    Args:
        optimizer: The optimizer, while it is being built.
        variable: One of its variables.

    Returns:
        A scalar `keras.Variable`, undecided: while the first step is traced, weights may have no values yet.
    """
    dtype = numerics.accumulation_dtype(variable.dtype)
    initializer = keras.initializers.Constant(UNDECIDED)
    return optimizer.add_variable(shape=(), dtype=dtype, initializer=initializer, name="norm_floor")


def current_floor(noted: Any, norm_floor: float, weight_norm: Tensor | None = None) -> Tensor:
    """Return the least norm that a variable counts as in this step.

    Args:
        noted: Its floor in the state.
        norm_floor: Number > 0, the floor of variables that are zero.
        weight_norm: Scalar tensor |w|; None if it is known not to be zero.

    Returns:
        A scalar tensor: `norm_floor` where |w| is zero, now or at the first step; 0 elsewhere.
    """
    floor = ops.relu(ops.convert_to_tensor(noted))
    return floor if weight_norm is None else ops.where(ops.equal(weight_norm, 0.0), norm_floor, floor)


def note_floor(optimizer: Any, noted: Any, floor: Tensor) -> None:
    """Decide, at the first step, about a variable's floor in all later ones.

    Args:
        optimizer: The optimizer.
        noted: The variable's floor in the state, changed in place if it is undecided.
        floor: Scalar tensor from `current_floor`.
    """
    before = ops.convert_to_tensor(noted)
    optimizer.assign(noted, ops.where(ops.less(before, 0.0), floor, before))
