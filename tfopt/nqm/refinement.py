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
from tfopt.nqm.candidates import Candidates
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

    def __init__(
        self, problem: NoisyQuadratic, space: SettingsSpace, sizes: np.ndarray, target: float, bar: Progress
    ) -> None:
        self._problem, self._space, self._sizes, self._target, self._bar = problem, space, sizes, target, bar
        self._last_width = np.full(space.num_free, HOP_WIDTHS[-1])

    def run(self) -> Candidates:
        """Search everywhere, and return the candidates, best first."""
        points, spacing = self._search_grid()
        found = self._refine(points, 0.4 * spacing).best_first(NUM_STARTS)
        found = self._hop(self._share(found))
        return self._share(self._decide(found))

    def polish(self, points: np.ndarray) -> Candidates:
        """Search near known points of shape (k, starts, free settings), such as the best ones of a similar problem."""
        return self._share(self._decide(self._refine(points, 0.25 * self._last_width)))

    def _of_sizes(self, rows: np.ndarray) -> "Refinement":
        # Returns the same search for some of the batch sizes.
        return Refinement(self._problem, self._space, self._sizes[rows], self._target, self._bar)

    def _decide(self, found: Candidates) -> Candidates:
        # The best settings that are still undecided get as many strides as `steps_to_target` allows.
        undecided = np.flatnonzero(np.isinf(found.steps[:, 0]))
        if len(undecided):
            found.steps[undecided, 0] = self._passages(found.points[undecided, 0], self._sizes[undecided], TABLES)
        return found

    def _hop(self, found: Candidates) -> Candidates:
        # With underdamped momentum the loss at a fixed step oscillates with the settings, so there are many valleys.
        rng = np.random.default_rng(0)
        going = found.steps[:, 0] > 1
        is_small = len(self._problem.curvature) <= FEW_CURVATURES and len(self._sizes) <= FEW_SIZES
        tries = FEWEST_HOPS if is_small else 1
        for hop in range(MAX_HOPS):
            rows = np.flatnonzero(going)
            if not len(rows):
                break
            before, part = found.take(rows), self._of_sizes(rows)
            landed = part._refine(part._scatter(before, rng), self._last_width)
            after = before.join(landed).best_first(NUM_STARTS)
            old, new = before.steps[:, 0], after.steps[:, 0]
            worthwhile = (new <= (1.0 - WORTHWHILE) * old) & (new < old)
            going[rows] = (worthwhile | (hop + 1 < tries)) & (new > 1)
            found.points[rows], found.steps[rows] = after.points, after.steps
        return found

    def _scatter(self, found: Candidates, rng: np.random.Generator) -> np.ndarray:
        # Draws random points around the best one, and returns the best point of each width. With few directions all
        # oscillations may be near zero at once, so the passages themselves decide which point is best.
        free, num_sizes = self._space.num_free, len(self._sizes)
        count = int(np.clip(HOP_POINTS // (num_sizes * len(HOP_WIDTHS)), 16, HOPS_PER_WIDTH[free]))
        offsets = rng.standard_normal((len(HOP_WIDTHS), count, free)) * np.array(HOP_WIDTHS)[:, None, None]
        trial = found.points[:, :1, None, :] + offsets
        if len(self._problem.curvature) <= FEW_CURVATURES:
            sizes = np.repeat(self._sizes, len(HOP_WIDTHS) * count)
            values = self._passages(trial.reshape(-1, free), sizes, HOP_TABLES).reshape(trial.shape[:-1])
        else:
            best = found.steps[:, 0]
            times = np.where(np.isfinite(best), np.maximum(best - 1, 1), 1)[:, None, None]
            values = self._losses(trial, times, self._sizes)
        indices = np.argmin(values, axis=2)
        points = np.take_along_axis(trial, indices[:, :, None, None], axis=2)[:, :, 0]
        return Candidates(points, values.min(axis=2)).best_first(HOP_STARTS).points

    def _share(self, found: Candidates) -> Candidates:
        # Tries the settings of each batch size at its neighbours, unchanged and scaled with the batch size. At the end
        # no larger batch takes more steps than a smaller one.
        order = np.argsort(self._sizes)
        for _ in range(MAX_SHARINGS):
            points = self._lend(found.points[order, 0])[np.argsort(order)]
            lent = Candidates(points, self._steps(points)).best_first(1)
            rows = np.flatnonzero(lent.steps[:, 0] < found.steps[:, 0])
            if not len(rows):
                break
            better = self._of_sizes(rows)._refine(lent.points[rows], self._last_width)
            before = found.steps[rows, 0]
            found.points[rows, 0], found.steps[rows, 0] = better.points[:, 0], better.steps[:, 0]
            if (better.steps[:, 0] > (1.0 - WORTHWHILE) * before).all():
                break
        for smaller, larger in itertools.pairwise(order):
            if found.steps[larger, 0] > found.steps[smaller, 0]:
                counted = self._passages(found.points[smaller, :1], self._sizes[[larger]], TABLES)
                if counted[0] < found.steps[larger, 0]:
                    found.points[larger, 0], found.steps[larger, 0] = found.points[smaller, 0], counted[0]
        return found

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

    def _search_grid(self) -> tuple[np.ndarray, np.ndarray]:
        # Returns the points at which to start, of shape (k, starts, free settings), and the spacings of the grid.
        axes = self._space.grid(self._problem, self._sizes, self._target)
        points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        flat = points.reshape(-1, points.shape[-1])
        losses = np.full((len(self._sizes), len(flat)), np.inf)
        waiting = np.ones(len(self._sizes), bool)
        for step, transient, noise in _all_times(self._problem, self._space.algorithm(flat)):
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

    def _refine(self, points: np.ndarray, spacing: np.ndarray) -> Candidates:
        found = Candidates(points.copy(), self._steps(points))
        steps, spacing = found.steps, np.broadcast_to(spacing, points.shape).copy()
        going = np.nonzero(steps > 1)
        for _ in range(MAX_ROUNDS):
            self._bar.show(f"refining, {steps.min():.0f} to {steps.max():.0f} steps")
            if not len(going[0]):
                break
            sizes, before = self._sizes[going[0]], steps[going]
            trial, spacing[going] = self._lower(found.points[going], before, spacing[going], sizes)
            counts = self._passages(trial, sizes)
            better = counts < before
            improved = tuple(indices[better] for indices in going)
            found.points[improved], steps[improved] = trial[better], counts[better]
            worthwhile = better & (counts <= (1.0 - WORTHWHILE) * before) & (counts > 1)
            worthwhile &= counts <= HOPELESS * steps.min(axis=1)[going[0]]
            going = tuple(indices[worthwhile] for indices in going)
        return found

    def _lower(
        self, points: np.ndarray, steps: np.ndarray, width: np.ndarray, sizes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        # Lowers the loss one step before each passage: moves to the best point of a stencil, or halves the stencil.
        stencil = np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=points.shape[1])))
        centre = len(stencil) // 2
        times = np.where(np.isfinite(steps), steps - 1, 1)
        for _ in range(STENCILS_PER_ROUND):
            trial = points[:, None, :] + stencil * width[:, None, :]
            losses = self._losses(trial, times[:, None], sizes)
            lower = losses.min(axis=1) < (1.0 - 1e-9) * losses[:, centre]
            points = trial[np.arange(len(points)), np.where(lower, np.argmin(losses, axis=1), centre)]
            width = width * np.where(lower, 1.3, 0.5)[:, None]
        return points, width

    def _steps(self, points: np.ndarray) -> np.ndarray:
        sizes = np.repeat(self._sizes, points.shape[1])
        return self._passages(points.reshape(-1, points.shape[-1]), sizes).reshape(points.shape[:2])

    def _passages(
        self, points: np.ndarray, sizes: np.ndarray, tables: tuple[tuple[int, int], ...] | None = None
    ) -> np.ndarray:
        tables = PASSAGE_TABLES if tables is None else tables
        found = first_passages(self._problem, self._space.algorithm(points), sizes, self._target, tables)
        return np.where(np.isnan(found), np.inf, found)

    def _losses(self, points: np.ndarray, times: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        # Points have shape (len(sizes), ..., free settings); times broadcast with all but the last of these.
        algorithm = self._space.algorithm(points.reshape(-1, points.shape[-1]))
        times = np.broadcast_to(times, points.shape[:-1]).ravel().astype(np.int64)
        parts = transient_and_noise(self._problem, algorithm, times)
        transient, noise = (part.reshape(len(sizes), -1) for part in parts)
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


def _lowest_minima(values: np.ndarray, count: int) -> list[int]:
    # Returns flat indices of the lowest entries, no two of which are neighbours; the lowest fills missing ones.
    remaining, chosen = values.copy(), list[int]()
    for _ in range(count):
        index = int(np.argmin(remaining))
        chosen.append(index if np.isfinite(remaining.flat[index]) or not chosen else chosen[0])
        near = tuple(slice(max(0, i - 2), i + 3) for i in np.unravel_index(index, values.shape))
        remaining[near] = np.inf
    return chosen
