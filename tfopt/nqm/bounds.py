"""How small the transient along a direction can get during a stride of many steps."""

import functools
import math
from typing import Any

import tensorflow as tf

from tfopt.nqm.linear_system import LinearSystem, Vector, apply


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
        self.is_unstable = self.size >= 1.0

    def smallest(
        self, system: LinearSystem, state: Vector, end: Vector, power: Any, num_steps: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Bound the size of the readout from below.

        A sum of two powers of numbers of the same sign is, between changes of its sign, either a power times a concave
        function, or falls throughout: so it is smallest at an end. Every second step of any such sum has this form,
        whence both parities; for complex roots its logarithm is concave between zeros, which are pi / angle apart.
        Along an unstable direction the sum grows for ever once it has grown.

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
        third = apply(system.matrix, second)
        fourth = apply(system.matrix, third)
        place = 0 if len(state) == 3 else system.readout
        ends = [vector[place] for vector in (state, second, end, beyond)]
        sizes = [tf.abs(value) for value in ends]
        grows = self.is_unstable & (tf.abs(third[place]) >= sizes[0]) & (tf.abs(fourth[place]) >= sizes[1])
        for_ever = tf.where(grows, tf.minimum(sizes[0], sizes[1]), 0.0)
        keeps_sign = (ends[0] * ends[2] > 0.0) & (ends[1] * ends[3] > 0.0)
        keeps_sign &= ~self.is_complex | (self.angle * (num_steps + 1.0) < math.pi)
        bound = tf.where(keeps_sign, functools.reduce(tf.minimum, sizes), 0.0)
        bound = tf.where(self.is_unstable, for_ever, bound)
        if len(state) < 3:
            return bound, for_ever
        return self._smallest_average(state, second, power[2][2], num_steps, bound, keeps_sign), tf.zeros_like(bound)

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
        return tf.where(~self.is_unstable, tf.maximum(away, tf.where(together, towards, 0.0)), 0.0)
