"""Training goes on bit for bit after a save and a load, by every way that Keras and TensorFlow have."""

import copy
import json
import pickle
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from optimizer_table import TABLE

from tfopt.distributed import DistributedOptimizer
from tfopt.optimizers import LARS, Fromage
from tfopt.optimizers.schedules import PolynomialDecayWithWarmup

ALL = pytest.mark.parametrize("name", TABLE)


def make_data():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((32, 6)).astype("float32")
    return x, x[:, :1] - x[:, 1:2]


def make_model(optimizer):
    # 6 x 3000 entries: the first kernel takes the fused path.
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3000, activation="tanh"), keras.layers.Dense(1)])
    model.compile(optimizer, "mse", jit_compile=False)
    return model


def train(model):
    model.fit(*make_data(), batch_size=8, epochs=1, verbose=0, shuffle=False)


def variables_of(model):
    return [*model.variables, *model.optimizer.variables]


def state(model):
    return [np.array(keras.ops.convert_to_numpy(v.value)) for v in variables_of(model)]


def assert_same_state(first, second):
    for a, b in zip(state(first), state(second), strict=True):
        np.testing.assert_array_equal(a, b)


# One row for each set of variables that an optimizer can have, and the guide's.
SETS_OF_VARIABLES = ("fromage", "fromage_p_bound", "lars_nesterov", "lars_no_momentum", "guide")


@pytest.fixture(scope="module", params=SETS_OF_VARIABLES)
def trained_once(request):
    keras.utils.set_random_seed(1234)
    model = make_model(TABLE[request.param].make())
    train(model)
    return request.param, model, state(model)


@pytest.fixture
def trained(trained_once):
    """The same model for several tests, which may train it on: tracing its step takes longest."""
    name, model, values = trained_once
    for variable, value in zip(variables_of(model), values, strict=True):
        variable.assign(value)
    return name, model


def test_keras_file(trained, tmp_path):
    _, model = trained
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is type(model.optimizer)
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    assert_same_state(loaded, model)
    train(model)
    train(loaded)
    assert_same_state(loaded, model)


def test_weights_file(trained, tmp_path):
    name, model = trained
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = make_model(TABLE[name].make())
    loaded.optimizer.build(loaded.trainable_variables)
    loaded.load_weights(tmp_path / "model.weights.h5")
    train(model)
    train(loaded)
    assert_same_state(loaded, model)


def test_tensorflow_checkpoint(trained, tmp_path):
    name, model = trained
    path = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(tmp_path / "checkpoint")
    loaded = make_model(TABLE[name].make())
    loaded.optimizer.build(loaded.trainable_variables)
    tf.train.Checkpoint(model=loaded, optimizer=loaded.optimizer).restore(path).assert_consumed()
    train(model)
    train(loaded)
    assert_same_state(loaded, model)


def test_pickle_of_a_model(trained):
    _, model = trained
    loaded = pickle.loads(pickle.dumps(model))
    train(model)
    train(loaded)
    assert_same_state(loaded, model)


def test_clone_compiles_and_trains_with_a_copied_optimizer(trained):
    _, model = trained
    clone = keras.models.clone_model(model)
    clone.compile(type(model.optimizer).from_config(model.optimizer.get_config()), "mse")
    train(clone)
    assert all(np.isfinite(v).all() for v in state(clone))


WRAPPERS = (
    lambda optimizer: optimizer,
    keras.optimizers.LossScaleOptimizer,
    DistributedOptimizer,
    lambda optimizer: DistributedOptimizer(keras.optimizers.LossScaleOptimizer(optimizer)),
)


@pytest.mark.parametrize("name", [*SETS_OF_VARIABLES, "lars_excluded"])
def test_each_state_has_a_name_of_its_own_which_hdf5_files_need(name, tmp_path):
    layers = [keras.layers.Dense(2, dtype=dtype) for dtype in ("float32", "float32", "float16")]
    model = keras.Sequential([keras.Input((3,)), *layers])
    for wrap in WRAPPERS:
        for options in ({}, {"use_ema": True, "gradient_accumulation_steps": 2}):
            model.compile(wrap(TABLE[name].make(**options)), "mse")
            model.optimizer.build(model.trainable_variables)
            paths = [variable.path for variable in model.optimizer.variables]
            assert len(set(paths)) == len(paths)
            model.save(tmp_path / "model.h5")
            loaded = keras.models.load_model(tmp_path / "model.h5", compile=False)
            for value, other in zip(loaded.get_weights(), model.get_weights(), strict=True):
                np.testing.assert_array_equal(value, other)


@pytest.mark.parametrize("name", ["fromage_p_bound", "lars_nesterov"])
def test_recompiling_starts_the_optimizer_anew(name):
    model = make_model(TABLE[name].make())
    train(model)
    model.compile(TABLE[name].make(), "mse", jit_compile=False)
    train(model)
    assert int(model.optimizer.iterations) == 4


def test_export_serves_the_trained_model(trained, tmp_path):
    _, model = trained
    model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(tmp_path / "served")
    x = make_data()[0]
    np.testing.assert_allclose(np.array(served.serve(x)), model.predict(x, verbose=0), rtol=1e-5, atol=1e-6)


@ALL
def test_config_builds_the_same_optimizer(name):
    optimizer = TABLE[name].make(clipnorm=1.0, use_ema=True, name="mine")
    for copied in (
        type(optimizer).from_config(optimizer.get_config()),
        keras.optimizers.get(keras.optimizers.serialize(optimizer)),
        keras.optimizers.deserialize(keras.optimizers.serialize(optimizer)),
    ):
        assert type(copied) is type(optimizer)
        assert copied.get_config() == optimizer.get_config()


@ALL
def test_optimizers_pickle_and_copy_before_they_are_built(name):
    optimizer = TABLE[name].make()
    for other in (pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer)):
        assert other.get_config() == optimizer.get_config()


def test_exclusions_are_saved(tmp_path):
    model = make_model(LARS(weight_decay=0.1, weight_decay_exclude=["bias$"], layer_adaptation_exclude="vectors"))
    train(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    config = loaded.optimizer.get_config()
    assert (config["weight_decay_exclude"], config["layer_adaptation_exclude"]) == (["bias$"], "vectors")
    train(model)
    train(loaded)
    assert_same_state(loaded, model)


def test_a_schedule_is_saved(tmp_path):
    model = make_model(LARS(PolynomialDecayWithWarmup(2.0, decay_steps=20, warmup_steps=3)))
    train(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    train(model)
    train(loaded)
    assert_same_state(loaded, model)


def test_initial_norms_are_those_of_the_start_not_of_the_load(tmp_path):
    model = make_model(Fromage(0.3, p_bound=1.05))
    model.optimizer.build(model.trainable_variables)
    initial = [float(v.numpy()) for v in model.optimizer.variables if "initial_norm" in v.path]
    train(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert [float(v.numpy()) for v in loaded.optimizer.variables if "initial_norm" in v.path] == initial


def test_files_older_than_the_floor_of_lars_load_with_their_state(tmp_path):
    """Such a file has no `norm_floor` in its configuration, and no state for it."""
    model = make_model(LARS(0.1, norm_floor=0.0))
    train(model)
    model.save(tmp_path / "new.keras")
    with zipfile.ZipFile(tmp_path / "new.keras") as new, zipfile.ZipFile(tmp_path / "old.keras", "w") as old:
        for name in new.namelist():
            content = new.read(name)
            if name == "config.json":
                config = json.loads(content)
                del config["compile_config"]["optimizer"]["config"]["norm_floor"]
                content = json.dumps(config).encode()
            old.writestr(name, content)
    loaded = keras.models.load_model(tmp_path / "old.keras")
    assert loaded.optimizer.norm_floor == 0.0
    assert int(loaded.optimizer.iterations) == 4
    assert_same_state(loaded, model)


def test_configurations_keep_the_floor_that_they_have():
    assert LARS.from_config(LARS().get_config()).norm_floor == 1.0
    assert LARS.from_config(LARS(norm_floor=0.3).get_config()).norm_floor == 0.3
