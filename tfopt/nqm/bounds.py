"""Lower bounds on the transient along a direction, during a stride of many steps."""

from __future__ import annotations

import functools
import math
from typing import Any

from tfopt._lazy import tf
from tfopt.nqm.linear_system import LinearSystem, Vector, apply

# Roots this close to 1 are taken for 1, because rounding hides how much they shrink in a step.
ROUNDING = 1e-15


class TransientBounds:
    """Lower bounds on the transient along each direction, over a stride and over all later steps."""

    def __init__(self, system: LinearSystem) -> None:
        # The roots are those of the first two rows and columns. An average adds its decay as a third root.
        a = system.matrix
        if len(a) == 1:
            self.trace, self.determinant = a[0][0], tf.zeros_like(a[0][0])
        else:
            corner = 0.0 if a[0][1] is None else a[0][1] * a[1][0]
            self.trace, self.determinant = a[0][0] + a[1][1], a[0][0] * a[1][1] - corner
        discriminant = self.trace**2 - 4.0 * self.determinant
        self.is_complex = discriminant < 0.0
        self.imaginary = 0.5 * tf.sqrt(tf.maximum(-discriminant, 0.0))
        swing = tf.sqrt(tf.maximum(discriminant, 0.0))
        self.real = tf.where(
            self.is_complex, 0.5 * self.trace, 0.5 * (self.trace + tf.where(self.trace < 0.0, -swing, swing))
        )
        self.size = tf.sqrt(self.real**2 + self.imaginary**2)
        self.angle = tf.atan2(self.imaginary, self.real)
        self.is_unstable = ~self.is_complex & (self.size >= 1.0 - ROUNDING)

    def smallest(
        self, system: LinearSystem, state: Vector, end: Vector, power: Any, num_steps: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Return lower bounds on the readout's size over the stride and over all later steps, of shape (k, n) each."""
        # `state` and `end` are z at the two ends of the stride, `power` is A to its length, and `num_steps`, of shape
        # (k, 1), is that length. Consider a sum of two powers of numbers of the same sign, between two changes of its
        # own sign. It is a power times a concave function, or it falls throughout; so its size is smallest at an end.
        # Every second step of any such sum has this form; so both parities are checked. For complex roots the
        # logarithm is concave between zeros, which are pi / angle apart. If a root is 1 or larger, its part never
        # shrinks and the other parts never grow.
        second, beyond = apply(system.matrix, state), apply(system.matrix, end)
        index = 0 if len(state) == 3 else system.readout
        ends = [vector[index] for vector in (state, second, end, beyond)]
        sizes = [tf.abs(value) for value in ends]
        keeps_sign = (ends[0] * ends[2] > 0.0) & (ends[1] * ends[3] > 0.0)
        keeps_sign &= ~self.is_complex | (self.angle * (num_steps + 1.0) < math.pi)
        bound = tf.where(keeps_sign, functools.reduce(tf.minimum, sizes), 0.0)
        if len(state) == 3:
            bound = self._smallest_average(state, second, power[2][2], num_steps, bound, keeps_sign)
        for_ever = self._growing(system, state, ends)
        return tf.where(~self.is_unstable, bound, for_ever), for_ever

    def _growing(self, system: LinearSystem, state: Vector, ends: list[tf.Tensor]) -> tf.Tensor:
        # |c1 r1^t + c2 r2^t| >= |c1| - |c2| for |r1| >= 1 >= |r2|; an average adds a root, and scales the two.
        other = self.determinant / self.real
        first = (ends[1] - other * ends[0]) / (self.real - other)
        rest = ends[0] - first
        size = tf.abs(first) - tf.abs(rest)
        if len(state) == 3:
            decay = system.matrix[2][2]
            first *= (1.0 - decay) * self.real / (self.real - decay)
            rest *= (1.0 - decay) * other / (other - decay)
            size = tf.abs(first) - tf.abs(rest) - tf.abs(state[2] - first - rest)
        return tf.where(self.is_unstable & (size > 0.0), size, 0.0)

    def _smallest_average(
        self,
        state: Vector,
        second: Vector,
        kept: tf.Tensor,
        num_steps: tf.Tensor,
        bound: tf.Tensor,
        keeps_sign: tf.Tensor,
    ) -> tf.Tensor:
        # The average moves towards theta, at most to `bound`, or to the largest theta of the other sign.
        theta, average = state[0], tf.abs(state[2])
        together = keeps_sign & (theta * state[2] > 0.0) & (theta * second[0] > 0.0)
        towards = tf.minimum(average, kept * average + (1.0 - kept) * bound)
        rest = tf.sqrt((second[0] - self.real * theta) ** 2 + (self.imaginary * theta) ** 2)
        largest = tf.abs(theta) + rest * tf.minimum(num_steps, 1.0 / (1.0 - self.size))
        away = tf.maximum(kept * average - (1.0 - kept) * largest, 0.0)
        return tf.maximum(away, tf.where(together, towards, 0.0))
