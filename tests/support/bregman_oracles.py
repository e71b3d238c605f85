"""Reference results of training without gradients, written from the equations in plain NumPy float64."""

import math

import numpy as np
import scipy.optimize
from scipy.special import erf, expit, log_softmax, softmax

ACTIVATIONS = {
    "identity": lambda z: z,
    "relu": lambda z: np.maximum(z, 0),
    "leaky_relu": lambda z: np.where(z > 0, z, 0.2 * z),
    "clip": lambda z: np.clip(z, 0, 1),
    "tanh": np.tanh,
    "sigmoid": expit,
    "softplus": lambda z: np.logaddexp(0, z),
    "gelu": lambda z: 0.5 * z * (1 + erf(z / math.sqrt(2))),
}

# The loss of one row of outputs z with targets y.
LOSSES = {
    "squared": lambda z, y: np.sum((z - y) ** 2),
    "unit_hinge": lambda z, y: np.sum(np.where(y > 0.5, np.maximum(1 - z, 0), np.maximum(z, 0))),
    "hinge": lambda z, y: np.sum(np.where(y > 0.5, np.maximum(1 - z, 0), np.maximum(1 + z, 0))),
    "binary": lambda z, y: np.sum(np.logaddexp(0, z) - y * z),
    "categorical": lambda z, y: -np.sum(y * log_softmax(z)),
}


def pre_activation_cost(h, z, a, m, gamma, beta):
    return gamma * (a - h(z)) ** 2 + beta * (z - m) ** 2


def lowest_pre_activation_cost(h, a, m, gamma, beta):
    """The global minimum for one entry: a fine grid, then Brent's method from the lowest grid point."""
    radius = math.sqrt(gamma / beta) * abs(a - h(np.array(m))) + 1e-9
    grid = np.linspace(m - radius, m + radius, 40_001)
    if radius > 20:  # a finer grid where activations are curved
        grid = np.concatenate([grid, np.linspace(-20, 20, 40_001)])
    grid.sort()
    costs = pre_activation_cost(h, grid, a, m, gamma, beta)
    k = int(np.argmin(costs))
    low, high = grid[max(k - 1, 0)], grid[min(k + 1, len(grid) - 1)]
    found = scipy.optimize.minimize_scalar(
        lambda z: pre_activation_cost(h, z, a, m, gamma, beta), bounds=(low, high), method="bounded"
    )
    return min(found.fun, costs[k])


def output_cost(loss, z, y, u, beta):
    return LOSSES[loss](z, y) + beta * np.sum((z - u) ** 2)


def lowest_output_cost(loss, y, u, beta):
    """The minimum for one row. All losses are convex, and those with kinks separate into single outputs."""
    if loss in ("unit_hinge", "hinge", "binary", "squared"):
        total = 0.0
        for target, start in zip(y, u, strict=True):
            far = 2 / beta + 2

            def cost(z, target=target, start=start):
                return output_cost(loss, np.array([z]), np.array([target]), np.array([start]), beta)

            found = scipy.optimize.minimize_scalar(
                cost, bounds=(start - far, start + far), method="bounded", options={"xatol": 1e-12}
            )
            total += min(found.fun, cost(1.0), cost(0.0), cost(-1.0))
        return total
    found = scipy.optimize.minimize(
        lambda z: output_cost(loss, z, y, u, beta),
        u,
        jac=lambda z: softmax(z) - y + 2 * beta * (z - u),
        method="BFGS",
        options={"gtol": 1e-12},
    )
    return found.fun


def with_ones(a):
    return np.concatenate([a, np.ones((len(a), 1))], axis=1)


def paper(x, y, weights, z, a, beta, gamma, sweeps):
    """Algorithm 1 of Taylor et al. 2016 as printed, with pseudo-inverses, ReLU, biases and the {0, 1} hinge.

    The lists begin with layer 1: z[0] is Z_1, a[0] is A_1, weights[0] is W_1 with its bias as the last row.
    """
    weights, z, a = list(weights), list(z), list(a)
    last = len(weights) - 1
    multiplier = np.zeros_like(z[-1])
    history = []
    for _ in range(sweeps):
        for k in range(last):
            before = x if k == 0 else a[k - 1]
            weights[k] = np.linalg.pinv(with_ones(before)) @ z[k]
            kernel, bias = weights[k + 1][:-1], weights[k + 1][-1]
            left = beta * (z[k + 1] - bias) @ kernel.T + gamma * np.maximum(z[k], 0)
            a[k] = left @ np.linalg.inv(beta * kernel @ kernel.T + gamma * np.eye(len(kernel)))
            m = with_ones(before) @ weights[k]
            positive, negative = np.maximum(0, (gamma * a[k] + beta * m) / (gamma + beta)), np.minimum(0, m)
            costs = [gamma * (a[k] - np.maximum(c, 0)) ** 2 + beta * (c - m) ** 2 for c in (positive, negative)]
            z[k] = np.where(costs[0] <= costs[1], positive, negative)
        before = a[-1] if a else x
        weights[last] = np.linalg.pinv(with_ones(before)) @ z[last]
        m = with_ones(before) @ weights[last]
        u = m - multiplier / (2 * beta)
        ones = np.where(u >= 1, u, np.minimum(1, u + 1 / (2 * beta)))
        zeros = np.where(u <= 0, u, np.maximum(0, u - 1 / (2 * beta)))
        z[last] = np.where(y > 0.5, ones, zeros)
        multiplier = multiplier + beta * (z[last] - m)
        history.append(([w.copy() for w in weights], [t.copy() for t in z], [t.copy() for t in a], multiplier.copy()))
    return history


def admm_of_one_layer(x, y, z, beta, step, order, sweeps):
    """The classical method of multipliers for min sum (z - y)^2 subject to Z = X W: W, Z and lambda after each sweep.

    The Lagrangian is loss(Z) + <lambda, Z - X W> + beta |Z - X W|^2, so the update of W depends on lambda.
    """
    multiplier = np.zeros_like(z)
    weights, history = None, []
    for _ in range(sweeps):
        for block in order:
            if block == "W":
                weights = np.linalg.lstsq(x, z + multiplier / (2 * beta), rcond=None)[0]
            elif weights is not None:
                z = (y + beta * (x @ weights - multiplier / (2 * beta))) / (1 + beta)
        multiplier = multiplier + step * beta * (z - x @ weights)
        history.append((weights.copy(), z.copy(), multiplier.copy()))
    return history


def restarted_sweep(x, y, weights, beta, gamma, ridge, weight_decay, relaxation):
    """One sweep over one block from a forward pass, ReLU and squared loss; the last row of weights is the bias."""
    z, a = [], [x]
    for k, w in enumerate(weights):
        z.append(with_ones(a[-1]) @ w)
        if k < len(weights) - 1:
            a.append(np.maximum(z[-1], 0))
    weights = list(weights)
    last, rows = len(weights) - 1, len(x)
    target = (y + beta * z[last]) / (1 + beta)
    for k in range(last, -1, -1):
        inputs = with_ones(a[k])
        matrix = inputs.T @ inputs / rows
        decay = np.full(len(matrix), weight_decay / beta)
        decay[-1] = 0
        right = inputs.T @ (target - z[k]) / rows - decay[:, None] * weights[k]
        squares = np.diag(matrix)
        near = ridge * np.append(np.full(len(squares) - 1, squares[:-1].mean()), squares[-1])
        way = np.linalg.solve(matrix + np.diag(near + decay), right)
        weights[k] = weights[k] + (1.0 if k == last else relaxation) * way
        if k:
            kernel, bias = weights[k][:-1], weights[k][-1]
            h, m = a[k], z[k - 1]
            left = beta * (target - bias) @ kernel.T + gamma * h
            activations = left @ np.linalg.inv(beta * kernel @ kernel.T + gamma * np.eye(len(kernel)))
            positive, negative = np.maximum(0, (gamma * activations + beta * m) / (gamma + beta)), np.minimum(0, m)
            costs = [gamma * (activations - np.maximum(c, 0)) ** 2 + beta * (c - m) ** 2 for c in (positive, negative)]
            target = np.where(costs[0] <= costs[1], positive, negative)
    return weights
