"""The optimizer of the guide `docs/write_an_optimizer.md`, read from the page, and its equations."""

import re
from pathlib import Path

import numpy as np
from optimizer_oracles import norm

PAGE = Path(__file__).resolve().parents[2] / "docs" / "write_an_optimizer.md"


# The first code block of the page defines `Lamb`. It must be defined in a module, so that it can be pickled.
exec(compile(re.search(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)[1], str(PAGE), "exec"))


class LambOracle:
    """Algorithm 2 of arXiv 1904.00962 with the identity for phi, and no weight decay."""

    def __init__(self, beta_1=0.9, beta_2=0.999, epsilon=1e-6):
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        self.moments, self.num_steps = None, 0

    def step(self, weights, gradients, eta):
        self.num_steps += 1
        if self.moments is None:
            self.moments = [(np.zeros_like(w), np.zeros_like(w)) for w in weights]
        result = []
        for index, (w, g) in enumerate(zip(weights, gradients, strict=True)):
            m, v = self.moments[index]
            m, v = self.beta_1 * m + (1 - self.beta_1) * g, self.beta_2 * v + (1 - self.beta_2) * g**2
            self.moments[index] = m, v
            mean, square = m / (1 - self.beta_1**self.num_steps), v / (1 - self.beta_2**self.num_steps)
            u = mean / (np.sqrt(square) + self.epsilon)
            ratio = norm(w) / norm(u) if norm(w) > 0 and norm(u) > 0 else 1.0
            result.append(w - eta * ratio * u)
        return result
