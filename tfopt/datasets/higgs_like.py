"""A synthetic replacement for HIGGS: 28 features, a weak linear signal, and a strong signal that needs a network."""

import numpy as np

from tfopt._checks import check_integer


def make_higgs_like(num_rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw rows of the synthetic data set.

    Seven objects k = 0..6 each have a momentum p_k = exp(u_k / 2), a direction eta_k = u_{7+k} and an angle
    phi_k = pi tanh(0.8 u_{14+k}), with u standard normal. The last seven features are derived from these: the masses
    of neighbouring pairs (k, k+1 mod 7),

        m_k^2 = p_k p_{k+1} (cosh(eta_k - eta_{k+1}) - cos(phi_k - phi_{k+1})) + 0.01

    The label is 1 with probability 1 / (1 + exp(-s)), where

        s = 0.75 (u_0 - u_1 + 0.7 u_7 - 0.5 u_14) + 0.8 (u_8 u_9 - u_2 u_15)
            + 2.6 (b_0 + b_2 + b_4 - b_1 - b_3 - b_5),     b_k = exp(-2 (log m_k - 0.3)^2)

    A linear classifier can use the first bracket (accuracy about 64%), but not the products and the resonances b_k.
    The best possible classifier has an accuracy of about 81%.

    Args:
        num_rows: Number of rows, an integer >= 1.
        seed: Seed of the generator, an integer >= 0. Default 0.

    Returns:
        Features, float32 of shape `(num_rows, 28)` in the order p, eta, phi, m; and labels 0 or 1, int64 of shape
        `(num_rows,)`.
    """
    check_integer("num_rows", num_rows, minimum=1)
    check_integer("seed", seed, minimum=0)
    rng = np.random.default_rng(seed)
    u = rng.standard_normal((num_rows, 21))
    momentum, direction, angle = np.exp(0.5 * u[:, :7]), u[:, 7:14], np.pi * np.tanh(0.8 * u[:, 14:21])

    def neighbour(values: np.ndarray) -> np.ndarray:
        return np.roll(values, -1, axis=1)

    separation = np.cosh(direction - neighbour(direction)) - np.cos(angle - neighbour(angle))
    mass = np.sqrt(momentum * neighbour(momentum) * separation + 0.01)
    resonance = np.exp(-2.0 * (np.log(mass) - 0.3) ** 2)
    linear = u[:, 0] - u[:, 1] + 0.7 * u[:, 7] - 0.5 * u[:, 14]
    products = u[:, 8] * u[:, 9] - u[:, 2] * u[:, 15]
    score = 0.75 * linear + 0.8 * products + 2.6 * (resonance[:, [0, 2, 4]] - resonance[:, [1, 3, 5]]).sum(axis=1)
    labels = rng.random(num_rows) < 1.0 / (1.0 + np.exp(-score))
    features = np.concatenate([momentum, direction, angle, mass], axis=1).astype(np.float32)
    return features, labels.astype(np.int64)
