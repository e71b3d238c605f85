"""The exact expected loss after any number of steps, for whole grids of settings at once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tfopt._lazy import tf
from tfopt.nqm._checks import check_kind
from tfopt.nqm.algorithm import Algorithm, Structure, broadcast_with, check_batch_size
from tfopt.nqm.kernels import (
    CompiledByShape,
    ProblemTensors,
    finite_or_infinite,
    in_chunks,
    make_tensor_system,
    on_all_cores,
    pattern,
    problem_tensors,
    setting_tensors,
    weigh,
)
from tfopt.nqm.linear_system import (
    LinearSystem,
    Matrix,
    Vector,
    add_noise,
    apply,
    multiply,
    outer,
    pack,
    pack_symmetric,
    unpack,
    unpack_symmetric,
)
from tfopt.nqm.problem import NoisyQuadratic

Losses = list[Any]  # Transients and noises of a chunk of settings, as tensors of shape (times, settings).
LARGEST_STEP = 2**62
# Settings of a grid that are computed together: for 100 curvatures they fit into a core's cache.
GRID_CHUNK = 256


def expected_loss(problem: NoisyQuadratic, algorithm: Algorithm, batch_size: Any, steps: Any) -> np.ndarray:
    """Return the expected loss after some steps, exactly.

    Second moments of (theta, velocity, average) along each direction follow a linear recurrence. Its t-th power comes
    from repeated squaring of matrices of at most 3 x 3. This is right for defective matrices too, which have too few
    eigenvectors (at critical damping, or where 1 - a h equals the average's decay). Exact means in float64: the
    rounding of 1 - a h changes the logarithm of a transient by about 1e-16 per step.

    Args:
        problem: The problem.
        algorithm: The settings.
        batch_size: B, > 0; need not be whole.
        steps: Numbers of steps, integers >= 0 and <= 2^62, of any shape.

    Returns:
        The losses, of the shape that settings and batch sizes broadcast to, followed by the shape of `steps`. Infinite
        where they are too large for float64.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range, or shapes do not broadcast.

    Example:
        >>> problem = NoisyQuadratic(curvature=[1.0], noise_variance=[1.0])
        >>> expected_loss(problem, Algorithm(0.5), batch_size=4, steps=[0, 1, 100]).round(4).tolist()
        [0.5, 0.1562, 0.0417]
    """
    check_kind("problem", problem, NoisyQuadratic)
    times = _check_steps(steps)
    flat, sizes, shape = flatten_with(algorithm, check_batch_size(batch_size))
    settings = flat.take(np.repeat(np.arange(len(sizes)), times.size))
    transient, noise = transient_and_noise(problem, settings, np.tile(times.ravel(), len(sizes)))
    return (transient + noise / np.repeat(sizes, times.size)).reshape(shape + times.shape)


def transient_and_noise(problem: NoisyQuadratic, algorithm: Algorithm, steps: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the two parts of the expected loss, transient + noise / B; settings, steps and parts have shape (k,)."""
    # The transient is the remaining part of the initial loss. The noise is that of single examples, and never falls.
    kernel, parts = _power_kernel(algorithm.structure), problem_tensors(problem)

    def run(settings: Algorithm, times: np.ndarray) -> tuple[np.ndarray, ...]:
        found = kernel(setting_tensors(settings), tf.constant(times), parts)
        return tuple(map(finite_or_infinite, found))

    return in_chunks(run, algorithm, steps, entries=20 * len(problem.curvature))  # type: ignore[return-value]


class Octave(NamedTuple):
    """A^q with its noise's second moment, and the state with its noise's second moment after 4 q steps, all packed."""

    powers: Vector
    grams: Vector
    state: Vector
    moment: Vector


class DoublingTimes:
    """Transient and noise of a grid at 4, 5, 6, 7, 8, 10, 12, 14, 16, ... steps, each octave from the last one."""

    def __init__(self, problem: NoisyQuadratic, algorithm: Algorithm) -> None:
        self._kernel = _octave_kernel(algorithm.structure)
        self._problem, (self._num_settings,) = problem_tensors(problem), algorithm.shape
        self._octaves: list[Any] = [None] * -(-self._num_settings // GRID_CHUNK)
        prepare = _first_octave_kernel(algorithm.structure)

        def begin(chunk: int) -> Losses:
            indices = np.minimum(np.arange(GRID_CHUNK) + chunk * GRID_CHUNK, self._num_settings - 1)
            *losses, self._octaves[chunk] = prepare(setting_tensors(algorithm.take(indices)), self._problem)
            return losses

        # Transient and noise after 1, 2 and 3 steps, of shape (3, k) each.
        self.first = self._of_all_chunks(begin)
        self._quarter = 1

    def advance(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Move on by one octave; return its 4 numbers of steps, and transient and noise there, of shape (4, k)."""
        times = self._quarter * np.arange(4, 8)

        def move_on(chunk: int) -> Losses:
            # Each octave takes the place of the last one at once: a whole grid of them is hundreds of megabytes.
            *losses, self._octaves[chunk] = self._kernel(self._octaves[chunk], self._problem)
            return losses

        losses = self._of_all_chunks(move_on)
        self._quarter *= 2
        return times, *losses

    def _of_all_chunks(self, step: Callable[[int], Losses]) -> tuple[np.ndarray, np.ndarray]:
        transient, noise = (
            np.concatenate([finite_or_infinite(part) for part in parts], axis=1)[:, : self._num_settings]
            for parts in zip(*on_all_cores(step, range(len(self._octaves))), strict=True)
        )
        return transient, noise


def flatten_with(algorithm: Algorithm, batch_size: np.ndarray) -> tuple[Algorithm, np.ndarray, tuple[int, ...]]:
    """Broadcast and flatten settings and batch sizes to shape (k,); also return the shape before flattening."""
    check_kind("algorithm", algorithm, Algorithm)
    shape = broadcast_with(algorithm, batch_size)
    flat, sizes = algorithm.flat(batch_size)
    return flat, sizes, shape


# Takes t steps by repeated squaring: the bits of t select the powers A^(2^j).
@functools.cache
def _power_kernel(structure: Structure) -> Callable[..., Any]:
    @CompiledByShape
    def kernel(settings, steps, problem):  # type: ignore[no-untyped-def]
        system = make_tensor_system(structure, settings, problem.curvature)
        first = pack_symmetric(outer(system.noise))

        def double(bits, state, moment, powers, grams):  # type: ignore[no-untyped-def]
            a, g = unpack(powers, system.matrix), unpack_symmetric(grams)
            moved = pack_symmetric(add_noise(a, unpack_symmetric(moment), g))
            odd = (bits % 2 == 1)[:, None]
            state = tuple(tf.where(odd, new, old) for new, old in zip(apply(a, state), state, strict=True))
            moment = tuple(tf.where(odd, new, old) for new, old in zip(moved, moment, strict=True))
            return bits // 2, state, moment, pack(multiply(a, a)), pack_symmetric(add_noise(a, g, g))

        loop = (steps, system.start, tuple(map(tf.zeros_like, first)), pack(system.matrix), first)
        _, state, moment, _, _ = tf.while_loop(lambda bits, *_: tf.reduce_any(bits > 0), double, loop)
        return _losses(system, state, unpack_symmetric(moment), problem)

    return kernel


# Returns the losses at 1, 2 and 3 steps; then A and the noise of one step, and the state after 4 steps.
@functools.cache
def _first_octave_kernel(structure: Structure) -> Callable[..., Any]:
    @CompiledByShape
    def kernel(settings, problem):  # type: ignore[no-untyped-def]
        system = make_tensor_system(structure, settings, problem.curvature)
        gram = moment = outer(system.noise)
        state = apply(system.matrix, system.start)
        losses = []
        for _ in range(3):
            losses.append(_losses(system, state, moment, problem))
            state, moment = apply(system.matrix, state), add_noise(system.matrix, moment, gram)
        following = Octave(pack(system.matrix), pack_symmetric(gram), state, pack_symmetric(moment))
        return *map(tf.stack, zip(*losses, strict=True)), following

    return kernel


# Takes A^q with its noise and the state after 4 q steps. Returns the losses at 4 q, 5 q, 6 q and 7 q steps, and the
# same inputs for 2 q.
@functools.cache
def _octave_kernel(structure: Structure) -> Callable[..., Any]:
    @CompiledByShape
    def kernel(octave, problem):  # type: ignore[no-untyped-def]
        like, state = pattern(structure), octave.state
        a, g, m = unpack(octave.powers, like.matrix), unpack_symmetric(octave.grams), unpack_symmetric(octave.moment)
        losses = []
        for _ in range(4):
            losses.append(_losses(like, state, m, problem))
            state, m = apply(a, state), add_noise(a, m, g)
        following = Octave(pack(multiply(a, a)), pack_symmetric(add_noise(a, g, g)), state, pack_symmetric(m))
        return *map(tf.stack, zip(*losses, strict=True)), following

    return kernel


def _losses(
    system: LinearSystem, state: Vector, moment: Matrix, problem: ProblemTensors
) -> tuple[tf.Tensor, tf.Tensor]:
    index = system.readout
    return weigh(state[index] ** 2, problem.starts), weigh(moment[index][index], problem.noises)


def _check_steps(steps: Any) -> np.ndarray:
    try:
        values = np.asarray(steps)
    except ValueError as error:
        raise TypeError(f"`steps` must hold integers >= 0. Received: steps={steps!r}") from error
    if values.size == 0:
        raise ValueError("`steps` must hold one or more integers >= 0. Received an empty list")
    if values.dtype.kind not in "iu":
        raise TypeError(f"`steps` must hold integers >= 0. Received: steps={steps!r}")
    if (values < 0).any() or (values > LARGEST_STEP).any():
        raise ValueError(f"`steps` must hold integers >= 0 and <= {LARGEST_STEP}. Received: steps={steps!r}")
    return values.astype(np.int64)
