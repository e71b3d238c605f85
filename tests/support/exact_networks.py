"""Tiny networks of (leaky) ReLUs in exact rational arithmetic, from the equations of arXiv 1810.12805.

Numbers are `fractions.Fraction` and matrices are NumPy arrays of them, so there is no rounding and no overflow.
"""

from fractions import Fraction

import numpy as np


def exact(numbers):
    """Floating-point numbers as fractions."""
    numbers = np.asarray(numbers)
    flat = [Fraction(float(number)) for number in numbers.reshape(-1)]
    return np.array(flat, dtype=object).reshape(numbers.shape)


def patterns_of(weights, x, slope):
    """The slope of each hidden unit for each row."""
    patterns = []
    for weight in weights[:-1]:
        x = x.dot(weight)
        patterns.append(np.where(x > 0, Fraction(1), slope))
        x = x * patterns[-1]
    return patterns


def outputs(weights, x, patterns):
    for weight, pattern in zip(weights[:-1], patterns, strict=True):
        x = x.dot(weight) * pattern
    return x.dot(weights[-1])


def hessian(weights, x, y, slope, l2):
    """The Hessian of the mean of (f - y)^2 over rows and targets, plus l2 |W|^2, on the piece with these weights.

    The output is linear in each matrix: a derivative is the output with a unit matrix in place of that matrix.
    """
    patterns = patterns_of(weights, x, slope)
    places = [(layer, index) for layer, weight in enumerate(weights) for index in np.ndindex(weight.shape)]

    def derivative(*chosen):
        changed = list(weights)
        for layer, index in chosen:
            changed[layer] = np.full(weights[layer].shape, Fraction(0))
            changed[layer][index] = Fraction(1)
        return outputs(changed, x, patterns)

    residuals = outputs(weights, x, patterns) - y
    first = [derivative(place) for place in places]
    found = np.full((len(places), len(places)), Fraction(0))
    for i, (layer, _) in enumerate(places):
        for j in range(i + 1):
            products = first[i] * first[j] + 0 * residuals  # this gives the shape of the targets
            if places[j][0] != layer:
                products = products + residuals * derivative(places[i], places[j])
            found[i, j] = found[j, i] = 2 * np.sum(products) / residuals.size
        found[i, i] += 2 * l2
    return found


def is_bounded_below(matrix, theta):
    """Whether all eigenvalues of a symmetric matrix are >= theta, by exact elimination."""
    rest = matrix - Fraction(theta) * np.eye(len(matrix), dtype=int)
    while len(rest):
        pivot, column = rest[0, 0], rest[1:, 0]
        if pivot < 0 or (pivot == 0 and (column != 0).any()):
            return False
        rest = rest[1:, 1:] if pivot == 0 else rest[1:, 1:] - np.outer(column, column) / pivot
    return True
