"""How small the transient along a direction can get during a stride of many steps."""

import functools
import math
from typing import Any

import tensorflow as tf

from tfopt.nqm.linear_system import LinearSystem, Vector, apply

ROUNDING = 1e-15  # roots so close to 1 are 1: what they shrink in a step is lost in rounding


class TransientBounds:
    """Bounds on the transient along each direction, over a stride and for ever after.

    Args:
        system: The system; the roots are those of its first two rows and columns.
    """

    def __init__(self, system: LinearSystem) -> None:
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
        """Bound the size of the readout from below.

        A sum of two powers of numbers of the same sign is, between changes of its sign, either a power times a concave
        function, or falls throughout: so it is smallest at an end. Every second step of any such sum has this form,
        whence both parities; for complex roots its logarithm is concave between zeros, which are pi / angle apart.
        Where a root is 1 or larger, its part never shrinks, and the others never grow.

        Args:
            system: The system.
            state: z at the stride's start.
            end: z at its end.
            power: A to the power of the stride.
            num_steps: The stride's length, of shape (k, 1).

        Returns:
            Bounds over the stride's steps, and over all steps from its start on, of shape (k, n) each.
        """
        second, beyond = apply(system.matrix, state), apply(system.matrix, end)
        place = 0 if len(state) == 3 else system.readout
        ends = [vector[place] for vector in (state, second, end, beyond)]
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
        # The average moves towards theta: no further than to `bound`, or to the largest theta of the other sign.
        theta, average = state[0], tf.abs(state[2])
        together = keeps_sign & (theta * state[2] > 0.0) & (theta * second[0] > 0.0)
        towards = tf.minimum(average, kept * average + (1.0 - kept) * bound)
        rest = tf.sqrt((second[0] - self.real * theta) ** 2 + (self.imaginary * theta) ** 2)
        largest = tf.abs(theta) + rest * tf.minimum(num_steps, 1.0 / (1.0 - self.size))
        away = tf.maximum(kept * average - (1.0 - kept) * largest, 0.0)
        return tf.maximum(away, tf.where(together, towards, 0.0))
