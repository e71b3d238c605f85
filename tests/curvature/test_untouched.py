"""A measurement leaves the model bit for bit as it was."""

import random

import keras
import numpy as np
import pytest
from tensorflow.python.platform import tf_logging

from tfopt import models
from tfopt.curvature import GaussNewtonOperator, HessianOperator, extremal_eigenvalues

ZOO = {
    "mlp": lambda: models.mlp(6, (8, 8), 3, batch_normalization=True, residual=True, weight_decay=1e-3),
    "convnet": lambda: models.convnet((7, 7, 2), (4,), 3, hidden_units=8, batch_normalization=True),
    "resnet": lambda: models.resnet((8, 8, 2), 8, 3, width=4),
    "milne_regression": lambda: models.milne_regression(weight_decay=0.01),
    "dropout": lambda: keras.Sequential([keras.Input((6,)), keras.layers.Dropout(0.5, seed=1), keras.layers.Dense(3)]),
}


def state_of(model):
    metrics = [variable for metric in model.metrics for variable in metric.variables]
    return [np.asarray(v).tobytes() for v in [*model.variables, *model.optimizer.variables, *metrics]]


# The self-check must not move anything either.
CHECKED = ("mlp", "dropout")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.self_checked] * (name in CHECKED)) for name in ZOO]
)
def test_nothing_moves(name):
    model = ZOO[name]()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, *model.input_shape[1:])).astype("float32")
    is_regression = model.output_shape[-1] == 1
    y = rng.normal(size=(12, 1)) if is_regression else rng.integers(0, 3, 12)
    loss = "mse" if is_regression else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["mae"] if is_regression else ["accuracy"], jit_compile=False)
    model.fit(x, y, verbose=0)
    before = state_of(model)
    draws = random.getstate(), np.random.get_state()[1].tobytes()  # noqa: NPY002
    for operator, batch_norm in ((HessianOperator, "batch"), (GaussNewtonOperator, "moving")):
        matrix = operator(model, None, x, y, batch_norm=batch_norm)
        ends = extremal_eigenvalues(matrix, 8)
        assert np.isfinite([ends.lambda_min, ends.lambda_max]).all()
        matrix.loss_and_gradient()
    assert state_of(model) == before
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == draws  # noqa: NPY002
    assert not any("call" in vars(layer) for layer in model._flatten_layers())
    model.fit(x, y, verbose=0)  # and it still trains
    assert state_of(model) != before


def test_a_failed_measurement_leaves_nothing_behind():
    model = ZOO["mlp"]()
    x, y = np.ones((4, 6), "float32"), np.zeros(4)
    with pytest.raises(ValueError):  # noqa: PT011  whatever Keras says
        HessianOperator(model, "mse", x[:, :3], y)
    assert not any("call" in vars(layer) for layer in model._flatten_layers())
    assert all(layer.dtype_policy.name == "float32" for layer in model._flatten_layers())
    assert np.isfinite(model.predict(x, verbose=0)).all()


@pytest.mark.parametrize("operator", [HessianOperator, GaussNewtonOperator])
def test_many_operators_are_no_reason_to_warn(operator, monkeypatch):
    messages = []
    monkeypatch.setattr(tf_logging, "warning", lambda text, *_, **__: messages.append(text))
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    for _ in range(6):
        assert np.isfinite(operator(model, "mse", np.ones((2, 2)), np.zeros((2, 1))) @ np.ones(2)).all()
    assert messages == []
