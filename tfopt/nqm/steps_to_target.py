"""The first step at which the expected loss reaches a target, exactly, without a check of every step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tfopt._checks import check_number
from tfopt._lazy import tf
from tfopt.nqm._checks import check_kind
from tfopt.nqm.algorithm import Algorithm, Structure, check_batch_size
from tfopt.nqm.bounds import TransientBounds
from tfopt.nqm.dynamics import flatten_with
from tfopt.nqm.kernels import (
    CompiledByShape,
    SettingTensors,
    in_chunks,
    make_tensor_system,
    pattern,
    problem_tensors,
    setting_tensors,
    weigh,
)
from tfopt.nqm.linear_system import (
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

# Each row holds the number of stride lengths 1, 2, 4, ..., and the limit on strides. The second row is for settings
# that converge slowly.
TABLES = ((26, 20_000), (52, 10_000_000))
MAX_STEPS = 2**52
INFINITY, NAN = np.float64(np.inf), np.float64(np.nan)


class Strides(NamedTuple):
    """Powers of A with their noise's second moments, packed: for one stride length, or stacked for all of them."""

    powers: Vector
    grams: Vector


def steps_to_target(problem: NoisyQuadratic, algorithm: Algorithm, batch_size: Any, target_loss: float) -> np.ndarray:
    """Return the first number of steps t >= 0 after which the expected loss is at most the target.

    Losses need not fall monotonically, so that bisection would be wrong. Steps are skipped only where a bound proves
    that none of them reaches the target. The part of the loss that is due to noise never falls. The transient along a
    direction is a sum of two powers, and between changes of its sign it is smallest at an end of the stride. "Never" is
    proven in the same way: the noise alone exceeds the target. Losses are float64, see `expected_loss`. The function
    takes about 5 kB of memory for each entry of the problem. Merge the entries of problems with a million of them, see
    `NoisyQuadratic.binned`.

    Args:
        problem: The problem.
        algorithm: The settings.
        batch_size: B, > 0; need not be whole.
        target_loss: The target, > 0.

    Returns:
        Whole numbers as float64, or infinity if the target is never reached, or not within 2^52 steps; of the shape
        that settings and batch sizes broadcast to.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range, or shapes do not broadcast.
        RuntimeError: Ten million strides do not decide it. If momentum oscillates, each half period needs its own
            stride.

    Example:
        >>> problem = NoisyQuadratic(curvature=[1.0, 0.1], noise_variance=[1.0, 0.1])
        >>> steps_to_target(problem, Algorithm([0.01, 0.1, 1.0]), batch_size=10, target_loss=0.02).tolist()
        [466.0, 54.0, inf]
    """
    check_kind("problem", problem, NoisyQuadratic)
    flat, sizes, shape = flatten_with(algorithm, check_batch_size(batch_size))
    check_number("target_loss", target_loss, minimum=0.0, exclusive_minimum=True)
    found = first_passages(problem, flat, sizes, float(target_loss), TABLES)
    if np.isnan(found).any():
        index = int(np.argmax(np.isnan(found)))
        rate, momentum, decay, _ = (float(part[index]) for part in flat.settings)
        raise RuntimeError(
            f"Whether target_loss={target_loss:g} is reached at batch_size={sizes[index]:g} with "
            f"learning_rate={rate:g}, momentum={momentum:g} and ema_decay={decay:g} could not be decided in "
            f"{TABLES[-1][1]} strides, because the loss oscillates for too long. Use a higher target, or less momentum"
        )
    return found.reshape(shape)


def first_passages(
    problem: NoisyQuadratic, algorithm: Algorithm, sizes: np.ndarray, target: float, tables: tuple[tuple[int, int], ...]
) -> np.ndarray:
    """Return the first steps at the target, of shape (k,), infinity for never, or NaN if undecided after `tables`."""
    found = np.where(algorithm.learning_rate == 0, np.inf, np.nan) + np.zeros(len(sizes))
    if problem.initial_loss <= target:
        found[:] = 0.0
    for table in tables:
        undecided = np.flatnonzero(np.isnan(found))
        if len(undecided):
            found[undecided] = _walk(problem, algorithm.take(undecided), sizes[undecided], target, *table)
    return found


def _walk(
    problem: NoisyQuadratic, algorithm: Algorithm, sizes: np.ndarray, target: float, num_levels: int, max_strides: int
) -> np.ndarray:
    structure, parts = algorithm.structure, problem_tensors(problem)
    like = pattern(structure)
    per_direction = len(pack(like.matrix)) + len(pack_symmetric(outer(like.noise)))
    kernel = _walk_kernel(structure, num_levels)
    limits = tf.constant(max_strides), tf.constant(target, tf.float64)

    def run(settings: Algorithm, chunk_sizes: np.ndarray) -> tuple[np.ndarray, ...]:
        return (kernel(setting_tensors(settings), parts, tf.constant(chunk_sizes), *limits).numpy(),)

    entries = num_levels * per_direction * len(problem.curvature)
    return in_chunks(run, algorithm, sizes, entries=entries)[0]


def _all_strides(structure: Structure, num_levels: int, settings: SettingTensors, curvature: tf.Tensor) -> Strides:
    """Return the strides of lengths 1, 2, 4, ...; every entry has shape (settings, lengths, directions)."""
    system = make_tensor_system(structure, settings, curvature)

    def double(strides: Strides, level: tf.Tensor) -> Strides:
        a, g = unpack(strides.powers, system.matrix), unpack_symmetric(strides.grams)
        # Each squaring doubles the rounding error of 1 - x: after 10^11 steps four digits are wrong.
        powers = pack(multiply(a, a)) if any(structure) else _plain_power(level, settings, curvature)
        return Strides(powers, pack_symmetric(add_noise(a, g, g)))

    first = Strides(pack(system.matrix), pack_symmetric(outer(system.noise)))
    doubled = tf.scan(double, tf.range(1.0, num_levels, dtype=tf.float64), first)

    def join(one: tf.Tensor, rest: tf.Tensor) -> tf.Tensor:
        return tf.concat([one[:, None], tf.transpose(rest, (1, 0, 2))], axis=1)

    return tf.nest.map_structure(join, first, doubled)


def _plain_power(level: tf.Tensor, settings: SettingTensors, curvature: tf.Tensor) -> tuple[tf.Tensor, ...]:
    # Returns (1 - x)^(2^level) of SGD, with level >= 1, to all digits even for small x.
    x = settings.rate * curvature**-settings.power * curvature
    logarithm = tf.where(x < 0.5, tf.math.log1p(-tf.minimum(x, 0.5)), tf.math.log(tf.abs(1.0 - x)))
    return (tf.exp(2.0**level * logarithm),)


# Walks along the steps of every setting in strides. A stride is doubled if its bound held, and halved if not.
@functools.cache
def _walk_kernel(structure: Structure, num_levels: int) -> Callable[..., Any]:
    @CompiledByShape
    def kernel(settings, problem, sizes, max_strides, target):  # type: ignore[no-untyped-def]
        strides = _all_strides(structure, num_levels, settings, problem.curvature)
        system = make_tensor_system(structure, settings, problem.curvature)
        bounds = TransientBounds(system)
        first = (tf.zeros_like(sizes, tf.int64), tf.zeros_like(sizes, tf.int32), tf.fill(tf.shape(sizes), NAN))
        nothing = tuple(map(tf.zeros_like, pack_symmetric(outer(system.noise))))

        def stride(count, step, level, found, state, moment):  # type: ignore[no-untyped-def]
            a = unpack(_select(strides.powers, level), system.matrix)
            g, m = unpack_symmetric(_select(strides.grams, level)), unpack_symmetric(moment)
            noise = weigh(m[system.readout][system.readout], problem.noises) / sizes
            loss = weigh(state[system.readout] ** 2, problem.starts) + noise
            end, num_steps = apply(a, state), tf.bitwise.left_shift(tf.ones_like(step), tf.cast(level, tf.int64))
            here, there = bounds.smallest(system, state, end, a, tf.cast(num_steps, tf.float64)[:, None])
            never = (weigh(there**2, problem.starts) + noise > target) | ~tf.math.is_finite(loss)
            undecided = tf.math.is_nan(found)
            found = tf.where(undecided & (never | (step >= MAX_STEPS)), INFINITY, found)
            found = tf.where(undecided & (loss <= target), tf.cast(step, tf.float64), found)
            passed = tf.math.is_nan(found) & ((level == 0) | (weigh(here**2, problem.starts) + noise > target))
            state = tuple(tf.where(passed[:, None], new, old) for new, old in zip(end, state, strict=True))
            later = pack_symmetric(add_noise(a, m, g))
            moment = tuple(tf.where(passed[:, None], new, old) for new, old in zip(later, moment, strict=True))
            step = tf.where(passed, step + num_steps, step)
            level = tf.clip_by_value(tf.where(passed, level + 1, level - 1), 0, strides.powers[0].shape[1] - 1)
            return count + 1, step, level, found, state, moment

        def is_undecided(count, step, level, found, *_):  # type: ignore[no-untyped-def]
            return tf.reduce_any(tf.math.is_nan(found)) & (count < max_strides)

        return tf.while_loop(is_undecided, stride, (tf.constant(0), *first, system.start, nothing))[3]

    return kernel


def _select(entries: tuple[tf.Tensor, ...], level: tf.Tensor) -> tuple[tf.Tensor, ...]:
    return tuple(tf.gather(entry, level, axis=1, batch_dims=1) for entry in entries)
