"""What the compiled kernels share: settings and problems as tensors, and large grids cut into chunks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.nqm.algorithm import Algorithm, Structure
from tfopt.nqm.linear_system import LinearSystem, make_system
from tfopt.nqm.problem import NoisyQuadratic

MAX_ENTRIES = 2**22  # numbers that a kernel which works in chunks holds at once: 32 MiB
CHUNKS = (8, 128)  # few sizes, so that few kernels are compiled; 1 where these do not fit


class CompiledByShape:
    """A function of float64 tensors that is compiled once for each of their shapes.

    Args:
        function: Takes tensors and tuples of tensors.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = tf.function(function, autograph=False, jit_compile=True)
        self._concrete: dict[Any, Any] = {}

    def __call__(self, *arguments: Any) -> Any:
        """Run it.

        Args:
            *arguments: Tensors and tuples of tensors.

        Returns:
            What the function returns.
        """
        # Calling the concrete function spares comparing all arguments' types, half a millisecond each time.
        key = tuple(tuple(map(_shape, one)) if isinstance(one, tuple) else _shape(one) for one in arguments)
        if key not in self._concrete:
            self._concrete[key] = self._function.get_concrete_function(*arguments)
        return self._concrete[key](*arguments)


def _shape(tensor: tf.Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def settings_tensors(algorithm: Algorithm) -> tuple[tf.Tensor, ...]:
    """Return the settings as tensors.

    Args:
        algorithm: The settings, of shape (k,).

    Returns:
        Learning rate, momentum, decay and power, float64 of shape (k, 1).
    """
    return tuple(tf.constant(part[:, None]) for part in np.broadcast_arrays(*algorithm.settings))


def problem_tensors(problem: NoisyQuadratic) -> tuple[tf.Tensor, ...]:
    """Return what the kernels need of a problem.

    Args:
        problem: The problem.

    Returns:
        h, and with multiplicities k the weights 1/2 k h m of the squared transients and 1/2 k h c of the noise's second
        moments; float64 of shape (n',), n' being n rounded up.
    """
    half = 0.5 * problem.multiplicity * problem.curvature
    count = len(half)
    # Filled up with directions of no weight, so that few sizes are compiled.
    missing = -count % (8 if count < 512 else 128)
    curvature = np.pad(problem.curvature, (0, missing), mode="edge")
    weights = (half * problem.initial_second_moment, half * problem.noise_variance)
    return tuple(map(tf.constant, (curvature, *(np.pad(part, (0, missing)) for part in weights))))


def make_tensor_system(structure: Structure, settings: tuple[tf.Tensor, ...], curvature: tf.Tensor) -> LinearSystem:
    """Write the steps along every direction as linear systems.

    Args:
        structure: Which parts of the state there are.
        settings: As `settings_tensors` returns them.
        curvature: h.

    Returns:
        The system, whose entries are tensors of shape (k, n).
    """
    has_momentum, nesterov, has_average = structure
    rate, momentum, decay, power = settings
    step = rate * curvature**-power
    contraction = step * curvature
    system = make_system(
        step, contraction, momentum if has_momentum else None, decay if has_average else None, nesterov
    )

    def fill(entry: Any) -> Any:
        return (
            None if entry is None else tf.broadcast_to(tf.convert_to_tensor(entry, tf.float64), tf.shape(contraction))
        )

    def fill_all(entries: Any) -> Any:
        return tuple(map(fill, entries))

    matrix = tuple(map(fill_all, system.matrix))
    return LinearSystem(matrix, fill_all(system.noise), fill_all(system.start), system.readout)


def pattern(structure: Structure) -> LinearSystem:
    """Return a system whose entries only say where there are any.

    Args:
        structure: Which parts of the state there are.

    Returns:
        The system, with None where an entry is always zero.
    """
    has_momentum, nesterov, has_average = structure
    return make_system(0.0, 0.0, 0.0 if has_momentum else None, 0.0 if has_average else None, nesterov)


def weigh(values: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Add up over directions.

    Args:
        values: Of shape (k, n).
        weights: Of shape (n,).

    Returns:
        Sums, of shape (k,).
    """
    # A direction of no weight may overflow.
    return tf.reduce_sum(tf.where(weights > 0.0, values * weights, 0.0), axis=-1)


def in_chunks(
    run: Callable[..., tuple[np.ndarray, ...]], algorithm: Algorithm, *arrays: np.ndarray, entries: int
) -> tuple[np.ndarray, ...]:
    """Run a kernel on a grid in chunks that fit into memory.

    Args:
        run: Takes an algorithm and arrays, all of shape (c,), and returns arrays of shape (c,).
        algorithm: The settings, of shape (k,).
        *arrays: Further arrays of shape (k,).
        entries: How many numbers the kernel holds for each setting.

    Returns:
        What `run` returned, joined to shape (k,).
    """
    (num_settings,) = algorithm.shape
    fitting = [chunk for chunk in CHUNKS if chunk * entries <= MAX_ENTRIES] or [1]
    size = min(fitting) if num_settings <= 4 * min(fitting) else max(fitting)
    results = []
    for begin in range(0, num_settings, size):
        places = np.minimum(np.arange(begin, begin + size), num_settings - 1)
        results.append(run(algorithm.take(places), *(array[places] for array in arrays)))
    return tuple(np.concatenate(parts)[:num_settings] for parts in zip(*results, strict=True))


def finite_or_infinite(values: tf.Tensor) -> np.ndarray:
    """Make an array in which what overflowed is infinite.

    Args:
        values: A tensor of losses.

    Returns:
        The array, without NaN.
    """
    found = values.numpy()
    return np.where(np.isfinite(found), found, np.inf)
