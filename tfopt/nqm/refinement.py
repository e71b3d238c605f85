"""From a grid of settings to the best ones: scans for local minima, and stencils that shrink around them.

Points have shape (batch sizes, starts, free settings). The fewest steps over all settings are the first t at which some
setting's loss is at most the target; so settings are improved by lowering the loss one step before the best passage
known, and the search ends where that step stays out of reach.
"""

import itertools
from collections.abc import Iterator

import numpy as np

from tfopt.nqm._progress import Progress
from tfopt.nqm.algorithm import Algorithm
from tfopt.nqm.dynamics import DoublingTimes, transient_and_noise
from tfopt.nqm.problem import NoisyQuadratic
from tfopt.nqm.settings_space import SettingsSpace
from tfopt.nqm.steps_to_target import steps_to_target

NUM_STARTS = 3  # local minima that are refined for each batch size
RIPPLE_STARTS = 6
RIPPLE_CENTRES = 3
MAX_ROUNDS = 20
STENCILS_PER_ROUND = 8
WORTHWHILE = 1e-4  # share of the steps that another round must be expected to save
HOPELESS = 1.05  # a start that is that far behind another is given up
MAX_STEPS = 2**50
# Points along each setting, by the number of free settings.
COARSE_SCAN = {1: (17,), 2: (11, 11), 3: (5, 5, 5)}
RIPPLE_SCAN = {1: (41,), 2: (41, 21), 3: (41, 5, 3)}
RIPPLE_WIDTH = np.array([0.04, 0.1, 0.1])
RIPPLE_PASSES = 2
RIPPLE_STEPS = 2000  # with more steps the minima are as many as they are alike
POLISH_WIDTH = 0.005


class Refinement:
    """A search for the settings that reach a target in the fewest steps.

    Args:
        space: The free settings.
        sizes: Batch sizes, of shape (k,).
        target: The target loss.
        bar: Where to say how far it is.
    """

    def __init__(self, space: SettingsSpace, sizes: np.ndarray, target: float, bar: Progress) -> None:
        self._space, self._sizes, self._target, self._bar = space, sizes, target, bar

    def run(self, problem: NoisyQuadratic) -> tuple[np.ndarray, np.ndarray]:
        """Search everywhere.

        Args:
            problem: The problem.

        Returns:
            Points, of shape (k, starts, free settings), best first, and their steps, of shape (k, starts).
        """
        free = self._space.num_free
        points, spacing = self._search_grid(problem)
        points = self._scan(problem, points, 1.5 * spacing, COARSE_SCAN[free], NUM_STARTS)
        points, steps = _best_first(*self._refine(problem, points, 0.4 * spacing))
        few = steps.min(axis=1) <= RIPPLE_STEPS
        if few.any():
            part = Refinement(self._space, self._sizes[few], self._target, self._bar)
            found, counts = part._search_ripples(problem, points[few])
            points[few], steps[few] = found[:, :NUM_STARTS], counts[:, :NUM_STARTS]
        return points, steps

    def polish(self, problem: NoisyQuadratic, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Search near known points, such as the best ones of a similar problem.

        Args:
            problem: The problem.
            points: Of shape (k, starts, free settings).

        Returns:
            Better points, and their steps.
        """
        return _best_first(*self._refine(problem, points, np.full(points.shape[2], POLISH_WIDTH)))

    def _search_ripples(self, problem: NoisyQuadratic, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # Where momentum is underdamped, the loss after a few hundred steps ripples with the rate: its many narrow
        # minima lie pi / steps apart in the angle of the roots.
        width = RIPPLE_WIDTH[: self._space.num_free]
        for _ in range(RIPPLE_PASSES):
            points = self._scan(
                problem, points[:, :RIPPLE_CENTRES], width, RIPPLE_SCAN[self._space.num_free], RIPPLE_STARTS
            )
            points, steps = _best_first(*self._refine(problem, points, width / 40))
        return points, steps

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
        return flat[np.array(starts)], np.array([axis[1] - axis[0] for axis in axes])

    def _scan(
        self, problem: NoisyQuadratic, points: np.ndarray, width: np.ndarray, shape: tuple[int, ...], num_starts: int
    ) -> np.ndarray:
        # Keeps each batch size's best point, and adds the lowest minima on lattices around all of them.
        steps = self._steps(problem, points)
        lattice = np.array(list(itertools.product(*(np.linspace(-1.0, 1.0, count) for count in shape))))
        trial = points[:, :, None, :] + lattice * width
        losses = self._losses(problem, trial, np.maximum(steps.min(axis=1) - 1, 1)[:, None, None])
        best = np.take_along_axis(points, np.argmin(steps, axis=1)[:, None, None], axis=1)
        found = np.repeat(best, num_starts, axis=1)
        for row, (candidates, values) in enumerate(zip(trial, losses, strict=True)):
            minima = [
                (start, place)
                for start in range(len(values))
                for place in _lowest_minima(values[start].reshape(shape), num_starts)
            ]
            minima.sort(key=lambda index: values[index])
            found[row, 1:] = [candidates[index] for index in minima[: num_starts - 1]]
        return found

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
            counts = steps_to_target(problem, self._space.algorithm(trial), self._sizes[rows], self._target)
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
        algorithm = self._space.algorithm(points.reshape(-1, points.shape[-1]))
        sizes = np.repeat(self._sizes, points.shape[1])
        return steps_to_target(problem, algorithm, sizes, self._target).reshape(points.shape[:2])

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
    while step < MAX_STEPS:
        for step, *parts in zip(*grid.advance(), strict=True):
            yield int(step), *parts
    raise ValueError(
        f"`target_loss` was reached by no setting within {MAX_STEPS} steps: the curvatures differ too much"
    )


def _best_first(points: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(steps, axis=1)
    return np.take_along_axis(points, order[:, :, None], axis=1), np.take_along_axis(steps, order, axis=1)


def _lowest_minima(values: np.ndarray, count: int) -> list[int]:
    # Flat indices of the lowest entries, no two of which are neighbours; filled up with the lowest.
    remaining, chosen = values.copy(), list[int]()
    for _ in range(count):
        place = int(np.argmin(remaining))
        chosen.append(place if np.isfinite(remaining.flat[place]) or not chosen else chosen[0])
        near = tuple(slice(max(0, i - 2), i + 3) for i in np.unravel_index(place, values.shape))
        remaining[near] = np.inf
    return chosen
