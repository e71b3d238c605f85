"""Fromage and LARS written from their equations in plain NumPy float64, without tfopt and Keras."""

import numpy as np


def norm(array):
    return np.sqrt(np.sum(np.square(array.astype(np.float64))))


class FromageOracle:
    """w <- (w - eta |w|/|g| g) / sqrt(1 + eta^2), or (w - eta g) / sqrt(1 + eta^2) where a norm is zero."""

    def __init__(self, p_bound=None):
        self.p_bound = p_bound
        self.initial_norms = None

    def step(self, weights, gradients, eta):
        if self.initial_norms is None:
            self.initial_norms = [norm(w) for w in weights]
        result = []
        for w, g, initial in zip(weights, gradients, self.initial_norms, strict=True):
            ratio = norm(w) / norm(g) if norm(w) > 0 and norm(g) > 0 else 1.0
            w = (w - eta * ratio * g) / np.sqrt(1 + eta**2)
            if self.p_bound is not None and initial > 0 and norm(w) > self.p_bound * initial:
                w = w * (self.p_bound * initial / norm(w))
            result.append(w)
        return result


class LarsOracle:
    """v <- m v + eta ratio (g + wd w); w <- w - v (with Nesterov w - (m v + eta ratio (g + wd w))).

    The |w| in the numerator of the ratio is at least `norm_floor` for variables that are zero now or were at the start.
    """

    def __init__(
        self, momentum=0.9, trust_coefficient=0.001, weight_decay=0.0, epsilon=0.0, nesterov=False, denominator="sum",
        clip=False, norm_floor=1.0, adapt=lambda w: True, decay=lambda w: True,
    ):  # fmt: skip
        self.momentum, self.trust_coefficient, self.weight_decay = momentum, trust_coefficient, weight_decay
        self.epsilon, self.nesterov, self.denominator, self.clip = epsilon, nesterov, denominator, clip
        self.norm_floor, self.adapt, self.decay = norm_floor, adapt, decay
        self.velocities = self.starts_at_zero = None

    def rate(self, w, g, update, weight_decay, eta, starts_at_zero):
        size = max(norm(w), self.norm_floor) if starts_at_zero or norm(w) == 0 else norm(w)
        if not self.adapt(w) or size == 0:
            return eta
        if self.denominator == "sum":
            if norm(g) == 0:
                return eta
            denominator = norm(g) + weight_decay * norm(w) + self.epsilon
        else:
            if norm(update) == 0:
                return eta
            denominator = norm(update) + self.epsilon
        ratio = self.trust_coefficient * size / denominator
        return min(ratio, eta) if self.clip else eta * ratio

    def step(self, weights, gradients, eta):
        if self.velocities is None:
            self.velocities = [np.zeros_like(w) for w in weights]
            self.starts_at_zero = [norm(w) == 0 for w in weights]
        result = []
        for index, (w, g) in enumerate(zip(weights, gradients, strict=True)):
            weight_decay = self.weight_decay if self.decay(w) else 0.0
            update = g + weight_decay * w
            step = self.rate(w, g, update, weight_decay, eta, self.starts_at_zero[index]) * update
            velocity = self.momentum * self.velocities[index] + step
            self.velocities[index] = velocity
            result.append(w - (self.momentum * velocity + step if self.nesterov else velocity))
        return result
