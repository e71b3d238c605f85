"""Networks of (leaky) ReLUs without biases in NumPy float64, from the equations of arXiv 1810.12805.

On a fixed activation pattern output and loss are polynomials in the weights, so complex steps give their derivatives to
full precision.
"""

import itertools

import numpy as np

STEP = 1e-100


def random_case(rng, num_hidden, width, num_inputs, num_outputs, num_rows, scale):
    sizes = [num_inputs, *[width] * num_hidden, num_outputs]
    shapes = list(itertools.pairwise(sizes))
    weights = [scale * rng.normal(size=shape) / np.sqrt(shape[0]) for shape in shapes]
    return weights, rng.normal(size=(num_rows, num_inputs)), rng.normal(size=(num_rows, num_outputs))


def slopes_of(weights, x, slope):
    """The slope of each hidden unit for each row: the activation pattern."""
    slopes = []
    for weight in weights[:-1]:
        x = x @ weight
        slopes.append(np.where(x > 0, 1.0, slope))
        x = x * slopes[-1]
    return slopes


def outputs(weights, x, slopes):
    for weight, slope in zip(weights[:-1], slopes, strict=True):
        x = (x @ weight) * slope
    return x @ weights[-1]


def losses(weights, x, y, slope):
    """l(W) = 1/(2N) sum_i |y_i - f_i|^2."""
    return np.sum((outputs(weights, x, slopes_of(weights, x, slope)) - y) ** 2) / (2 * len(x))


def gradient(weights, x, y, slopes, decay):
    """The gradient of l(W) + decay/2 |W|^2 by backpropagation, as one vector. The weights may be complex."""
    inputs = [x]
    for weight, slope in zip(weights[:-1], slopes, strict=True):
        inputs.append((inputs[-1] @ weight) * slope)
    back = (inputs[-1] @ weights[-1] - y) / len(x)
    parts = []
    for place in reversed(range(len(weights))):
        parts.append(inputs[place].T @ back + decay * weights[place])
        if place:
            back = (back @ weights[place].T) * slopes[place - 1]
    return np.concatenate([part.reshape(-1) for part in reversed(parts)])


def _steps(weights):
    for place, weight in enumerate(weights):
        for index in np.ndindex(weight.shape):
            moved = [w.astype(complex) for w in weights]
            moved[place][index] += 1j * STEP
            yield place, moved


def hessian(weights, x, y, slope, decay):
    """The Hessian of l(W) + decay/2 |W|^2."""
    slopes = slopes_of(weights, x, slope)
    return np.stack([gradient(moved, x, y, slopes, decay).imag / STEP for _, moved in _steps(weights)], axis=1)


def spectral_norm(weights):
    return max(np.linalg.svd(weight, compute_uv=False)[0] for weight in weights)
