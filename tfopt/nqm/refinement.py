"""From a grid of settings to the best ones: the lowest minima of the grid, and stencils that shrink around them.

Points have shape (batch sizes, starts, free settings). The fewest steps over all settings are the first t at which some
setting's loss is at most the target. So the search lowers the loss one step before the best passage known, and ends
when that step stays out of reach.
"""

import itertools
from collections.abc import Iterator

import numpy as np

from tfopt._progress import Progress
from tfopt.nqm.algorithm import Algorithm
from tfopt.nqm.dynamics import DoublingTimes, transient_and_noise
from tfopt.nqm.problem import NoisyQuadratic
from tfopt.nqm.settings_space import SettingsSpace
from tfopt.nqm.steps_to_target import TABLES, first_passages

# The grid's local minima that are refined for each batch size.
NUM_STARTS = 3
MAX_ROUNDS = 20
STENCILS_PER_ROUND = 8
# Another round must be expected to save at least this fraction of the steps.
WORTHWHILE = 1e-4
# A start is dropped if it takes this many times the steps of the best start.
HOPELESS = 1.05
LAST_GRID_STEP = 2**50
FEWEST_HOPS, MAX_HOPS = 4, 12
# Standard deviations of random points, in logarithms of the settings, and points per width by number of free settings.
HOP_WIDTHS = (2.0, 0.6, 0.2, 0.06, 0.02)
HOPS_PER_WIDTH = {1: 32, 2: 192, 3: 256}
HOP_STARTS = 3
MAX_SHARINGS = 4
# Limit on the random points of all batch sizes together.
HOP_POINTS = 10_000
FEW_CURVATURES, FEW_SIZES = 32, 16
# Stride lengths and strides, see `first_passages`. Settings that need more strides are not worth their time.
HOP_TABLES = ((26, 3_000),)
PASSAGE_TABLES = ((26, 20_000),)


class Refinement:
    """A search for the settings that reach a target in the fewest steps, for batch sizes of shape (k,)."""

    def __init__(self, space: SettingsSpace, sizes: np.ndarray, target: float, bar: Progress) -> None:
        self._space, self._sizes, self._target, self._bar = space, sizes, target, bar

    def run(self, problem: NoisyQuadratic) -> tuple[np.ndarray, np.ndarray]:
        """Search everywhere. Return points, of shape (k, starts, free settings), and their steps, best first."""
        points, spacing = self._search_grid(problem)
        points, steps = _best_first(*self._refine(problem, points, 0.4 * spacing))
        points, steps = self._share(problem, points[:, :NUM_STARTS], steps[:, :NUM_STARTS])
        points, steps = self._hop(problem, points, steps)
        return self._share(problem, points, self._decide(problem, points, steps))

    def polish(self, problem: NoisyQuadratic, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Search near known points, such as the best ones of a similar problem. Return as `run` does."""
        points, steps = self._refine(problem, points, np.full(points.shape[2], 0.25 * HOP_WIDTHS[-1]))
        return self._share(problem, points, self._decide(problem, points, steps))

    def _decide(self, problem: NoisyQuadratic, points: np.ndarray, steps: np.ndarray) -> np.ndarray:
        # The best settings that are still undecided get as many strides as `steps_to_target` allows.
        undecided = np.flatnonzero(np.isinf(steps[:, 0]))
        if len(undecided):
            steps[undecided, 0] = self._passages(problem, points[undecided, 0], self._sizes[undecided], TABLES)
        return steps

    def _hop(self, problem: NoisyQuadratic, points: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # With underdamped momentum the loss at a fixed step oscillates with the settings, so there are many valleys.
        rng = np.random.default_rng(0)
        going = steps[:, 0] > 1
        tries = FEWEST_HOPS if len(problem.curvature) <= FEW_CURVATURES and len(points) <= FEW_SIZES else 1
        for hop in range(MAX_HOPS):
            rows = np.flatnonzero(going)
            if not len(rows):
                break
            part = Refinement(self._space, self._sizes[rows], self._target, self._bar)
            landed = part._scatter(problem, points[rows], steps[rows], rng)
            landed, counts = part._refine(problem, landed, np.full(points.shape[2], HOP_WIDTHS[-1]))
            together = np.concatenate([points[rows], landed], axis=1), np.concatenate([steps[rows], counts], axis=1)
            found, counts = _best_first(*together)
            worthwhile = (counts[:, 0] <= (1.0 - WORTHWHILE) * steps[rows, 0]) & (counts[:, 0] < steps[rows, 0])
            going[rows] = (worthwhile | (hop + 1 < tries)) & (counts[:, 0] > 1)
            points[rows], steps[rows] = found[:, :NUM_STARTS], counts[:, :NUM_STARTS]
        return points, steps

    def _scatter(
        self, problem: NoisyQuadratic, points: np.ndarray, steps: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        # Draws random points around the best one, and returns the best point of each width. With few directions all
        # oscillations may be near zero at once, so the passages themselves decide which point is best.
        free, few = points.shape[2], len(problem.curvature) <= FEW_CURVATURES
        count = int(np.clip(HOP_POINTS // (len(points) * len(HOP_WIDTHS)), 16, HOPS_PER_WIDTH[free]))
        offsets = rng.standard_normal((len(HOP_WIDTHS), count, free)) * np.array(HOP_WIDTHS)[:, None, None]
        trial = points[:, :1, None, :] + offsets
        if few:
            sizes = np.repeat(self._sizes, len(HOP_WIDTHS) * count)
            values = self._passages(problem, trial.reshape(-1, free), sizes, HOP_TABLES).reshape(trial.shape[:-1])
        else:
            times = np.where(np.isfinite(steps[:, 0]), np.maximum(steps[:, 0] - 1, 1), 1)[:, None, None]
            values = self._losses(problem, trial, times)
        indices = np.argmin(values, axis=2)
        best = np.take_along_axis(trial, indices[:, :, None, None], axis=2)[:, :, 0]
        order = np.argsort(values.min(axis=2), axis=1)[:, :HOP_STARTS]
        return np.take_along_axis(best, order[:, :, None], axis=1)

    def _share(self, problem: NoisyQuadratic, points: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # Tries the settings of each batch size at its neighbours, unchanged and scaled with the batch size. At the end
        # no larger batch takes more steps than a smaller one.
        order = np.argsort(self._sizes)
        for _ in range(MAX_SHARINGS):
            lent = self._lend(points[order, 0])[np.argsort(order)]
            counts = self._steps(problem, lent)
            index = np.argmin(counts, axis=1)[:, None]
            best, lent = np.take_along_axis(counts, index, axis=1), np.take_along_axis(lent, index[:, :, None], axis=1)
            rows = np.flatnonzero(best[:, 0] < steps[:, 0])
            if not len(rows):
                break
            part = Refinement(self._space, self._sizes[rows], self._target, self._bar)
            lent, best = part._refine(problem, lent[rows], np.full(points.shape[2], HOP_WIDTHS[-1]))
            before = steps[rows, 0]
            points[rows, 0], steps[rows, 0] = lent[:, 0], best[:, 0]
            if (best[:, 0] > (1.0 - WORTHWHILE) * before).all():
                break
        for smaller, larger in itertools.pairwise(order):
            if steps[larger, 0] > steps[smaller, 0]:
                counted = self._passages(problem, points[smaller, :1], self._sizes[[larger]], TABLES)
                if counted[0] < steps[larger, 0]:
                    points[larger, 0], steps[larger, 0] = points[smaller, 0], counted[0]
        return points, steps

    def _lend(self, points: np.ndarray) -> np.ndarray:
        # Takes points in order of batch size. At small batches all settings, or the rate alone, scale with batch size.
        logs = np.log(np.sort(self._sizes))
        indices = np.arange(len(logs))
        offers = []
        for neighbour in (indices - 1, indices + 1):
            neighbour = np.clip(neighbour, 0, len(logs) - 1)
            shift = (logs - logs[neighbour])[:, None]
            alone = np.eye(1, points.shape[1])
            offers += [points[neighbour], points[neighbour] + shift * alone, points[neighbour] + shift]
        return np.stack(offers, axis=1)

    def _search_grid(self, problem: NoisyQuadratic) -> tuple[np.ndarray, np.ndarray]:
        axes = self._space.grid(problem, self._sizes, self._target)
        points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        flat = points.reshape(-1, points.shape[-1])
        losses = np.full((len(self._sizes), len(flat)), np.inf)
        waiting = np.ones(len(self._sizes), bool)
        for step, transient, noise in _all_times(problem, self._space.algorithm(flat)):
            self._bar.show(f"grid at {step} steps")
            with np.errstate(over="ignore"):
                losses[waiting] = transient + noise / self._sizes[waiting, None]
            waiting &= losses.min(axis=1) > self._target
            if not waiting.any():
                break
        starts = [_lowest_minima(values.reshape(points.shape[:-1]), NUM_STARTS) for values in losses]
        if self._space.has_momentum:
            # The last index of this axis is no momentum, without which the loss does not oscillate.
            plain = np.arange(len(flat)).reshape(points.shape[:-1])[:, -1].ravel()
            starts = [[*chosen, plain[np.argmin(values[plain])]] for chosen, values in zip(starts, losses, strict=True)]
        return flat[np.array(starts)], np.array([axis[1] - axis[0] for axis in axes])

    def _refine(
        self, problem: NoisyQuadratic, points: np.ndarray, spacing: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        steps = self._steps(problem, points)
        spacing = np.broadcast_to(spacing, points.shape).copy()
        going = np.argwhere(steps > 1).T
        for _ in range(MAX_ROUNDS):
            self._bar.show(f"refining, {steps.min():.0f} to {steps.max():.0f} steps")
            if not going.size:
                break
            rows, starts = going
            trial, spacing[rows, starts] = self._lower(problem, going, points, steps, spacing)
            counts = self._passages(problem, trial, self._sizes[rows])
            before = steps[rows, starts]
            better = counts < before
            points[rows[better], starts[better]], steps[rows[better], starts[better]] = trial[better], counts[better]
            worthwhile = better & (counts <= (1.0 - WORTHWHILE) * before) & (counts > 1)
            going = going[:, worthwhile & (counts <= HOPELESS * steps.min(axis=1)[rows])]
        return points, steps

    def _lower(
        self,
        problem: NoisyQuadratic,
        going: np.ndarray,
        points: np.ndarray,
        steps: np.ndarray,
        spacing: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        # Lowers the loss one step before each passage: moves to the best point of a stencil, or halves the stencil.
        rows, starts = going
        stencil = np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=points.shape[2])))
        centre = len(stencil) // 2
        times = np.where(np.isfinite(steps), steps - 1, 1)[rows, starts]
        here, width = points[rows, starts], spacing[rows, starts]
        for _ in range(STENCILS_PER_ROUND):
            trial = here[:, None, :] + stencil * width[:, None, :]
            losses = self._losses(problem, trial, times[:, None], self._sizes[rows])
            lower = losses.min(axis=1) < (1.0 - 1e-9) * losses[:, centre]
            here = trial[np.arange(len(rows)), np.where(lower, np.argmin(losses, axis=1), centre)]
            width = width * np.where(lower, 1.3, 0.5)[:, None]
        return here, width

    def _steps(self, problem: NoisyQuadratic, points: np.ndarray) -> np.ndarray:
        sizes = np.repeat(self._sizes, points.shape[1])
        return self._passages(problem, points.reshape(-1, points.shape[-1]), sizes).reshape(points.shape[:2])

    def _passages(
        self,
        problem: NoisyQuadratic,
        points: np.ndarray,
        sizes: np.ndarray,
        tables: tuple[tuple[int, int], ...] = PASSAGE_TABLES,
    ) -> np.ndarray:
        found = first_passages(problem, self._space.algorithm(points), sizes, self._target, tables)
        return np.where(np.isnan(found), np.inf, found)

    def _losses(
        self, problem: NoisyQuadratic, points: np.ndarray, times: np.ndarray, sizes: np.ndarray | None = None
    ) -> np.ndarray:
        sizes = self._sizes if sizes is None else sizes
        algorithm = self._space.algorithm(points.reshape(-1, points.shape[-1]))
        times = np.broadcast_to(times, points.shape[:-1]).ravel().astype(np.int64)
        transient, noise = (part.reshape(len(sizes), -1) for part in transient_and_noise(problem, algorithm, times))
        with np.errstate(over="ignore"):
            return (transient + noise / sizes[:, None]).reshape(points.shape[:-1])


def _all_times(problem: NoisyQuadratic, algorithm: Algorithm) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    grid = DoublingTimes(problem, algorithm)
    yield from zip((1, 2, 3), *grid.first, strict=True)
    step = 4
    while step < LAST_GRID_STEP:
        for step, *parts in zip(*grid.advance(), strict=True):
            yield int(step), *parts
    raise ValueError(
        f"`target_loss` is reached by no setting of the grid within {LAST_GRID_STEP} steps, because the curvatures "
        "differ too much. Raise the target, or leave out the smallest curvatures"
    )


def _best_first(points: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(steps, axis=1)
    return np.take_along_axis(points, order[:, :, None], axis=1), np.take_along_axis(steps, order, axis=1)


def _lowest_minima(values: np.ndarray, count: int) -> list[int]:
    # Returns flat indices of the lowest entries, no two of which are neighbours; the lowest fills missing ones.
    remaining, chosen = values.copy(), list[int]()
    for _ in range(count):
        index = int(np.argmin(remaining))
        chosen.append(index if np.isfinite(remaining.flat[index]) or not chosen else chosen[0])
        near = tuple(slice(max(0, i - 2), i + 3) for i in np.unravel_index(index, values.shape))
        remaining[near] = np.inf
    return chosen
