"""Milne's regression: the smallest network on which piecewise strong convexity can be observed."""

import keras

from tfopt._checks import check_integer, check_number
from tfopt.models.mlp import mlp


def milne_regression(
    *,
    hidden_units: int = 2,
    initial_scale: float = 1.0,
    weight_decay: float = 1.0,
    seed: int | None = None,
    name: str = "milne_regression",
) -> keras.Model:
    """Build one input, one hidden layer of ReLUs, one linear output, no biases, and weight decay.

    With Keras's "mse" and the penalty `weight_decay * |W|^2`, training minimises twice the paper's l(W) + (lambda / 2)
    |W|^2, with lambda = `weight_decay`. The paper has two hidden units, target 0 on 100 points uniform in [-1, 1], and
    lambda = 1. It does not give the initial weights, and its results depend on them.

    Args:
        hidden_units: Number of hidden units. Default 2.
        initial_scale: Standard deviation of the initial weights, which are normal; > 0. Default 1.
        weight_decay: Coefficient of the L2 penalty on both kernels, >= 0. Default 1.
        seed: Seed of the initial weights, an integer >= 0; None (default) for random weights.
        name: Name of the model.

    Returns:
        An uncompiled, built `keras.Model`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range.

    Example:
        >>> milne_regression().count_params()
        4

    References:
        Milne: Piecewise strong convexity of neural networks. NeurIPS 2019, arXiv:1810.12805.
    """
    check_integer("hidden_units", hidden_units, minimum=1)
    check_number("initial_scale", initial_scale, minimum=0.0, exclusive_minimum=True)
    initializer = keras.initializers.RandomNormal(stddev=initial_scale)
    return mlp(
        1,
        (hidden_units,),
        1,
        use_bias=False,
        kernel_initializer=initializer,
        weight_decay=weight_decay,
        seed=seed,
        name=name,
    )
