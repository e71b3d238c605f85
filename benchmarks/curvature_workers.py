"""One process of `curvature.py`: products of one framework with the Hessian."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import workers

ROWS, WIDTH, CLASSES = 512, 784, 10


def make_problem() -> tuple[np.ndarray, np.ndarray, list[np.ndarray], np.ndarray]:
    """Return inputs, labels, the weights of an MLP 784-784-784-10, and a vector to multiply with."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, WIDTH)).astype("float32")
    sizes = [WIDTH, WIDTH, WIDTH, CLASSES]
    weights = []
    for rows, columns in itertools.pairwise(sizes):
        weights.append((rng.standard_normal((rows, columns)) * np.sqrt(2 / rows)).astype("float32"))
        weights.append(np.zeros(columns, "float32"))
    vector = rng.standard_normal(sum(weight.size for weight in weights)).astype("float32")
    return x, rng.integers(0, CLASSES, ROWS), weights, vector


def tfopt_cases() -> dict[str, Callable[[], Any]]:
    """Return tfopt's cases; operators in a run of products cache the results that the products share."""
    import keras
    import tensorflow as tf

    from tfopt import models
    from tfopt.curvature import GaussNewtonOperator, HessianOperator

    x, y, weights, vector = make_problem()
    model = models.mlp((WIDTH,), (WIDTH, WIDTH), CLASSES)
    model.set_weights(weights)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    inputs, labels = tf.constant(x), tf.constant(y)
    variables = [variable.value for variable in model.trainable_variables]

    @tf.function(autograph=False)
    def gradient() -> Any:
        with tf.GradientTape() as tape:
            value = loss(labels, model(inputs, training=True))
        return tape.gradient(value, variables)

    cases: dict[str, Callable[[], Any]] = {"TensorFlow gradient": lambda: gradient()[-1].numpy()}
    for name, kind in (("Hessian", HessianOperator), ("Gauss-Newton", GaussNewtonOperator)):
        matrix, kept = (kind(model, loss, x, y, batch_size=ROWS) for _ in range(2))
        context = kept.shared()
        context.__enter__()
        cases[f"tfopt {name}, alone"] = lambda matrix=matrix: matrix @ vector
        cases[f"tfopt {name}, in a run"] = lambda matrix=kept, context=context: matrix @ vector
    return cases


def torch_cases() -> dict[str, Callable[[], Any]]:
    """Return the cases of PyHessian and curvlinops."""
    import torch
    from curvlinops import GGNLinearOperator, HessianLinearOperator
    from pyhessian import hessian
    from pyhessian.utils import hessian_vector_product

    x, y, weights, vector = make_problem()
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    linear = [torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, CLASSES)]
    for layer, weight, bias in zip(linear, weights[::2], weights[1::2], strict=True):
        layer.weight.data, layer.bias.data = torch.from_numpy(weight.T.copy()), torch.from_numpy(bias)
    model = torch.nn.Sequential(linear[0], torch.nn.ReLU(), linear[1], torch.nn.ReLU(), linear[2])
    loss = torch.nn.CrossEntropyLoss()
    parameters = list(model.parameters())
    pieces, start = [], 0
    for parameter in parameters:
        pieces.append(torch.from_numpy(vector[start : start + parameter.numel()]).view_as(parameter).clone())
        start += parameter.numel()

    def gradient() -> Any:
        return torch.autograd.grad(loss(model(inputs), labels), parameters)[-1].numpy()

    kept = hessian(model, loss, data=(inputs, labels), cuda=False)
    cases = {
        "torch gradient": gradient,
        "PyHessian Hessian, in a run": lambda: hessian_vector_product(kept.gradsH, kept.params, pieces)[-1].numpy(),
    }
    for name, kind in (("Hessian", HessianLinearOperator), ("Gauss-Newton", GGNLinearOperator)):
        operator = kind(model, loss, parameters, [(inputs, labels)], check_deterministic=False)
        flat = torch.from_numpy(vector)
        cases[f"curvlinops {name}"] = lambda operator=operator, flat=flat: (operator @ flat).numpy()
    return cases


if __name__ == "__main__":
    workers.serve({"tfopt": lambda: tfopt_cases().items(), "torch": lambda: torch_cases().items()})
