import itertools

import keras
import numpy as np
import pytest
from trajectories import values

from tfopt.models import mlp


@pytest.mark.parametrize("depth", [0, 1, 2, 16, 50])
@pytest.mark.parametrize("use_bias", [True, False])
def test_parameter_counts(depth, use_bias):
    model = mlp((4, 3), [8] * depth, 5, use_bias=use_bias)
    widths = [12, *[8] * depth, 5]
    expected = sum((a + use_bias) * b for a, b in itertools.pairwise(widths))
    assert model.count_params() == expected
    assert model.output_shape == (None, 5)


def test_is_the_composition_that_it_says():
    model = mlp(3, [6, 6, 4, 4], 2, residual=True, seed=1)
    kernels = {layer.name: [values(w) for w in layer.weights] for layer in model.layers if layer.weights}
    for _, bias in kernels.values():
        bias += 0.3  # biases that matter
    model.set_weights([w for pair in kernels.values() for w in pair])
    x = np.random.default_rng(0).standard_normal((5, 3)).astype("float32")

    def dense(h, name):
        return h @ kernels[name][0] + kernels[name][1]

    h = np.maximum(dense(x, "hidden_1"), 0)
    h = h + np.maximum(dense(h, "hidden_2"), 0)
    h = np.maximum(dense(h, "hidden_3"), 0)  # the width changes: no skip
    h = h + np.maximum(dense(h, "hidden_4"), 0)
    np.testing.assert_allclose(model.predict(x, verbose=0), dense(h, "outputs"), rtol=1e-4, atol=1e-5)


def test_batch_normalisation_replaces_biases():
    model = mlp(3, [6], 2, batch_normalization=True)
    assert [v.path for v in model.trainable_variables] == [
        "hidden_1/kernel", "normalization_1/gamma", "normalization_1/beta", "outputs/kernel", "outputs/bias"
    ]  # fmt: skip
    bare = mlp(3, [6], 2, batch_normalization=True, use_bias=False)
    assert [v.path for v in bare.trainable_variables] == ["hidden_1/kernel", "normalization_1/gamma", "outputs/kernel"]


def test_negative_slope_makes_leaky_relus():
    model = mlp(2, [3], 1, negative_slope=0.2, use_bias=False, seed=0)
    first, last = (values(v) for v in model.trainable_variables)
    x = np.random.default_rng(0).standard_normal((4, 2)).astype("float32")
    z = x @ first
    np.testing.assert_allclose(model.predict(x, verbose=0), np.where(z > 0, z, 0.2 * z) @ last, rtol=1e-5)


def test_weight_decay_is_an_l2_penalty_on_kernels():
    model = mlp(2, [3], 1, weight_decay=0.01)
    kernels = [values(v) for v in model.trainable_variables if "kernel" in v.path]
    assert float(sum(model.losses)) == pytest.approx(0.01 * sum(np.sum(k**2) for k in kernels), rel=1e-5)


def test_seeds_make_weights_reproducible_and_layers_different():
    first, again, other = (mlp(4, [4, 4], 4, seed=seed) for seed in (0, 0, 1))
    for a, b, c in zip(first.get_weights(), again.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.ndim == 1 or (a != c).any()
    kernels = [w for w in first.get_weights() if w.ndim == 2]
    assert (kernels[0] != kernels[1]).any()
    shared = mlp(4, [4, 4], 4, kernel_initializer=keras.initializers.HeNormal(seed=7))
    kernels = [w for w in shared.get_weights() if w.ndim == 2]
    assert (kernels[0] != kernels[1]).any()


def test_models_of_neighbouring_seeds_share_no_layer():
    weights = [w.tobytes() for seed in range(4) for w in mlp(8, (8, 8), 8, seed=seed).get_weights() if w.ndim == 2]
    assert len(set(weights)) == len(weights)


def test_initializers_without_a_seed_and_plain_functions():
    assert (mlp(2, [2], 2, kernel_initializer="ones", seed=3).get_weights()[0] == 1).all()
    constant = mlp(2, [2], 2, kernel_initializer=lambda shape, dtype: keras.ops.full(shape, 0.5, dtype))
    assert (constant.get_weights()[0] == 0.5).all()


def test_output_activation_and_saving(tmp_path):
    model = mlp((8, 8, 1), output_activation="softmax", residual=True, batch_normalization=True)
    x = np.random.default_rng(0).standard_normal((3, 8, 8, 1)).astype("float32")
    np.testing.assert_allclose(model.predict(x, verbose=0).sum(axis=1), 1.0, rtol=1e-5)
    model.save(tmp_path / "mlp.keras")
    loaded = keras.models.load_model(tmp_path / "mlp.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input_shape": ()}, ValueError, "`input_shape` must hold one or more positive integers"),
        ({"input_shape": (4, 0)}, ValueError, "`input_shape` must be an integer >= 1"),
        ({"input_shape": (None, 4)}, TypeError, "`input_shape` must be an integer"),
        ({"hidden_units": 64}, TypeError, "`hidden_units` must be a sequence"),
        ({"hidden_units": [0]}, ValueError, "`hidden_units` must be an integer >= 1"),
        ({"hidden_units": [4] * 51}, ValueError, "`hidden_units` must list at most 50"),
        ({"num_outputs": 0}, ValueError, "`num_outputs` must be"),
        ({"negative_slope": -0.5}, ValueError, "`negative_slope` must be"),
        ({"negative_slope": 1.5}, ValueError, "`negative_slope` must be"),
        ({"negative_slope": 0.1, "activation": "tanh"}, ValueError, "`negative_slope` needs activation"),
        ({"use_bias": 1}, TypeError, "`use_bias` must be True or False"),
        ({"residual": "yes"}, TypeError, "`residual` must be True or False"),
        ({"input_shape": None}, TypeError, "`input_shape` must hold one or more positive integers"),
        ({"seed": "x"}, TypeError, "`seed` must be an integer"),
        ({"seed": -1}, ValueError, "`seed` must be an integer >= 0"),
        ({"weight_decay": -1.0}, ValueError, "`weight_decay` must be"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        mlp(**{"input_shape": 4, **arguments})
