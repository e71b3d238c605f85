"""Parts that the compiled kernels share: settings and problems as tensors, and large grids cut into chunks."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np

from tfopt._lazy import tf
from tfopt.nqm.algorithm import Algorithm, Structure
from tfopt.nqm.linear_system import LinearSystem, make_system
from tfopt.nqm.problem import NoisyQuadratic

Part = TypeVar("Part")
Result = TypeVar("Result")
# Memory limit of one chunk, as a number of float64 entries: 32 MiB.
MAX_ENTRIES = 2**22
# The largest chunk that fits. One size for each problem means few compiled kernels.
CHUNKS = (64, 8, 1)
# Every thread holds one chunk.
MAX_THREADS = 8


class SettingTensors(NamedTuple):
    """Settings as float64 tensors, of shape (k, 1) each."""

    rate: tf.Tensor
    momentum: tf.Tensor
    decay: tf.Tensor
    power: tf.Tensor


class ProblemTensors(NamedTuple):
    """Curvatures h, and weights of squared transients and of the noise's second moments; float64, of shape (n',)."""

    curvature: tf.Tensor
    starts: tf.Tensor
    noises: tf.Tensor


class CompiledByShape:
    """A function of float64 tensors and nested tuples of them, compiled once for each of their shapes."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = tf.function(function, autograph=False, jit_compile=True)
        self._concrete: dict[Any, Any] = {}
        self._lock = threading.Lock()

    def __call__(self, *arguments: Any) -> Any:
        """Run the function on tensors and nested tuples of tensors."""
        # A concrete function does not compare the types of its arguments, which saves half a millisecond per call.
        key = _shapes(arguments)
        with self._lock:
            if key not in self._concrete:
                self._concrete[key] = self._function.get_concrete_function(*arguments)
        return self._concrete[key](*arguments)


def _shapes(part: Any) -> tuple[Any, ...]:
    return tuple(map(_shapes, part)) if isinstance(part, tuple) else tuple(part.shape)


def setting_tensors(algorithm: Algorithm) -> SettingTensors:
    """Return the settings of an algorithm of shape (k,) as tensors."""
    return SettingTensors(*(tf.constant(part[:, None]) for part in np.broadcast_arrays(*algorithm.settings)))


def problem_tensors(problem: NoisyQuadratic) -> ProblemTensors:
    """Return a problem of n entries as tensors of length n', which is n rounded up."""
    # With multiplicity k, the weights are 1/2 k h m and 1/2 k h c.
    half = 0.5 * problem.multiplicity * problem.curvature
    count = len(half)
    # Directions of weight 0 are appended, so that few sizes are compiled.
    power = 2 ** (count - 1).bit_length()
    missing = max(power, 8) - count if count <= 64 else -count % (8 if count < 512 else 128)
    curvature = np.pad(problem.curvature, (0, missing), mode="edge")
    weights = (half * problem.initial_second_moment, half * problem.noise_variance)
    return ProblemTensors(*map(tf.constant, (curvature, *(np.pad(part, (0, missing)) for part in weights))))


def make_tensor_system(structure: Structure, settings: SettingTensors, curvature: tf.Tensor) -> LinearSystem:
    """Return the steps along every direction as a linear system, whose entries are tensors of shape (k, n)."""
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
    """Return a linear system with None where an entry is always zero, and numbers without meaning elsewhere."""
    has_momentum, nesterov, has_average = structure
    return make_system(0.0, 0.0, 0.0 if has_momentum else None, 0.0 if has_average else None, nesterov)


def weigh(values: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Return the weighted sums over directions of values of shape (k, n), with weights of shape (n,); shape (k,)."""
    # A direction of weight 0 may overflow, and infinity times 0 would be NaN.
    return tf.reduce_sum(tf.where(weights > 0.0, values * weights, 0.0), axis=-1)


def in_chunks(
    run: Callable[..., tuple[np.ndarray, ...]], algorithm: Algorithm, *arrays: np.ndarray, entries: int
) -> tuple[np.ndarray, ...]:
    """Run a kernel on chunks of k settings and arrays of shape (k,) that fit into memory, and join its results."""
    # The kernel holds `entries` numbers for each setting.
    (num_settings,) = algorithm.shape
    size = next((chunk for chunk in CHUNKS if chunk * entries <= MAX_ENTRIES), CHUNKS[-1])

    def run_from(begin: int) -> tuple[np.ndarray, ...]:
        indices = np.minimum(np.arange(begin, begin + size), num_settings - 1)
        return run(algorithm.take(indices), *(array[indices] for array in arrays))

    results = on_all_cores(run_from, range(0, num_settings, size))
    return tuple(np.concatenate(parts)[:num_settings] for parts in zip(*results, strict=True))


def on_all_cores(function: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """Return the function's results on all parts, in order. A small kernel occupies one core only."""
    if len(parts) <= 1:
        return [function(part) for part in parts]
    return list(_threads().map(function, parts))


@functools.cache
def _threads() -> ThreadPoolExecutor:
    cores = tf.config.threading.get_intra_op_parallelism_threads() or os.cpu_count() or 1
    return ThreadPoolExecutor(min(cores, MAX_THREADS))


def finite_or_infinite(values: tf.Tensor) -> np.ndarray:
    """Return a tensor of losses as an array, with infinity in place of every value that is not finite."""
    found = values.numpy()
    return np.where(np.isfinite(found), found, np.inf)
