"""The minimum norm that sets the rate of a variable that starts at zero, and so has no norm of its own yet.

The optimizer's state holds one scalar per variable, its floor. The first step sets it to `norm_floor` if all entries of
the variable are zero, and to 0 otherwise.
"""

from typing import Any

import keras
from keras import ops

from tfopt import numerics
from tfopt.numerics import Tensor

UNDECIDED = -1.0


def add_floor(optimizer: Any, variable: Any) -> Any:
    """Add a variable's floor to an optimizer's state: an undecided scalar `keras.Variable` in float32 or better."""
    dtype = numerics.accumulation_dtype(variable.dtype)
    # The weights may have no values yet while the first step is traced, so the floor cannot be set here.
    initializer = keras.initializers.Constant(UNDECIDED)
    return optimizer.add_variable(shape=(), dtype=dtype, initializer=initializer, name="norm_floor")


def current_floor(noted: Any, norm_floor: float, weight_norm: Tensor | None = None) -> Tensor:
    """Return a scalar: `norm_floor` (> 0) if |w| is 0 now or was at the first step, else 0; |w| is None if not 0."""
    floor = ops.relu(ops.convert_to_tensor(noted))
    return floor if weight_norm is None else ops.where(ops.equal(weight_norm, 0.0), norm_floor, floor)


def note_floor(optimizer: Any, noted: Any, floor: Tensor) -> None:
    """Set a variable's floor to a scalar from `current_floor` if it is undecided, as it is at the first step."""
    before = ops.convert_to_tensor(noted)
    optimizer.assign(noted, ops.where(ops.less(before, 0.0), floor, before))
