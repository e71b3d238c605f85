"""The minimum norm that sets the rate of a variable that starts at zero, and so has no norm of its own yet.

The optimizer's state holds one scalar per variable, its floor. The first step sets it to `norm_floor` if all entries of
the variable are zero, and to 0 otherwise.
"""

from typing import Any

import keras
from keras import ops

from tfopt.numerics import Tensor

UNDECIDED = -1.0


def add_floor(optimizer: Any, variable: Any) -> Any:
    """Add a variable's floor, which is undecided, to an optimizer's state; None for the scales of float8 layers."""
    # The weights may have no values yet while the first step is traced, so the floor cannot be set here.
    return optimizer.add_scalar(variable, "norm_floor", keras.initializers.Constant(UNDECIDED))


def floor_of(optimizer: Any, noted: Any, norm_floor: float, weight_norm: Tensor) -> Tensor:
    """Return a scalar, `norm_floor` (> 0) if |w| is 0 now or was at the first step, else 0; the first step notes it."""
    before = ops.convert_to_tensor(noted)
    floor = ops.where(ops.equal(weight_norm, 0.0), norm_floor, ops.relu(before))
    optimizer.assign(noted, ops.where(ops.less(before, 0.0), floor, before))
    return floor
