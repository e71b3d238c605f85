"""Learning-rate schedules for training with large batches."""

from typing import Any

import keras
from keras import ops

from tfopt._checks import check_integer, check_number
from tfopt.numerics import Tensor, accumulation_dtype


@keras.saving.register_keras_serializable(package="tfopt")
class PolynomialDecayWithWarmup(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up to a peak, then polynomial decay: the schedule that is commonly used with LARS.

    With T_w = `warmup_steps` and T = `decay_steps`, the rate at step t is

        initial + (peak - initial) * t / T_w                        t < T_w
        end + (peak - end) * (1 - (t - T_w) / T)^power              T_w <= t < T_w + T
        end                                                         afterwards

    The decay starts at the end of the warm-up, where both formulas give the peak. For a run of N steps in total, set
    `decay_steps = N - warmup_steps`. Steps are batches; under gradient accumulation Keras counts micro-batches.

    Args:
        learning_rate: The peak, a number >= 0.
        decay_steps: Number of steps from the peak to the end, an integer >= 1.
        warmup_steps: Number of steps from the initial rate to the peak, an integer >= 0. Default 0.
        power: Exponent of the decay, a number > 0. Default 2, as in the paper.
        initial_learning_rate: The rate at step 0 if there is a warm-up, a number >= 0. Default 0.
        end_learning_rate: The rate at the end of the decay and afterwards, a number >= 0. Default 0.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range.

    Example:
        >>> schedule = PolynomialDecayWithWarmup(8.0, decay_steps=100, warmup_steps=10)
        >>> [float(schedule(step)) for step in (0, 5, 10, 60, 110, 500)]
        [0.0, 4.0, 8.0, 2.0, 0.0, 0.0]

    References:
        You, Gitman, Ginsburg: Large batch training of convolutional networks. 2017, arXiv:1708.03888, Section 5.
    """

    def __init__(
        self,
        learning_rate: float,
        decay_steps: int,
        warmup_steps: int = 0,
        power: float = 2.0,
        initial_learning_rate: float = 0.0,
        end_learning_rate: float = 0.0,
    ) -> None:
        self.learning_rate = check_number("learning_rate", learning_rate, minimum=0.0)
        self.decay_steps = check_integer("decay_steps", decay_steps, minimum=1)
        self.warmup_steps = check_integer("warmup_steps", warmup_steps, minimum=0)
        self.power = check_number("power", power, minimum=0.0, exclusive_minimum=True)
        self.initial_learning_rate = check_number("initial_learning_rate", initial_learning_rate, minimum=0.0)
        self.end_learning_rate = check_number("end_learning_rate", end_learning_rate, minimum=0.0)

    def __call__(self, step: Tensor) -> Tensor:
        """Return the learning rate at a step.

        Args:
            step: The number of steps taken so far, an integer or a scalar tensor.

        Returns:
            A scalar tensor in Keras's default float type, or in float32 if that type is half precision.
        """
        dtype = accumulation_dtype(keras.config.floatx())  # the largest float16 number is 65,504
        step = ops.cast(step, dtype)
        decayed = ops.clip((step - self.warmup_steps) / self.decay_steps, 0.0, 1.0)
        rate = self.end_learning_rate + (self.learning_rate - self.end_learning_rate) * ops.power(
            1.0 - decayed, self.power
        )
        if self.warmup_steps == 0:
            return ops.cast(rate, dtype)
        rise = (self.learning_rate - self.initial_learning_rate) / self.warmup_steps
        return ops.where(step < self.warmup_steps, self.initial_learning_rate + rise * step, rate)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments needed to build this schedule again.

        Returns:
            A dictionary for `from_config`.
        """
        return {
            "learning_rate": self.learning_rate,
            "decay_steps": self.decay_steps,
            "warmup_steps": self.warmup_steps,
            "power": self.power,
            "initial_learning_rate": self.initial_learning_rate,
            "end_learning_rate": self.end_learning_rate,
        }
