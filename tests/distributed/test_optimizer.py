"""`DistributedOptimizer` in one process: it stands for the optimizer that it wraps."""

import pickle
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from optimizer_table import TABLE

from tfopt.communicator import SerialCommunicator
from tfopt.distributed import DistributedOptimizer
from tfopt.optimizers import LARS, Fromage


def make_model(optimizer, **options):
    model = keras.Sequential([
        keras.Input((3,)),
        keras.layers.Dense(4, activation="tanh", kernel_initializer=keras.initializers.HeNormal(1)),
        keras.layers.Dense(1, kernel_initializer=keras.initializers.HeNormal(2)),
    ])
    model.compile(optimizer, "mse", **{"jit_compile": False, **options})
    return model


def make_data():
    x = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
    return x, x.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("name", TABLE)
def test_alone_it_changes_nothing(name):
    plain, wrapped = TABLE[name].make(), DistributedOptimizer(TABLE[name].make())
    results = []
    for optimizer in (plain, wrapped):
        model = make_model(optimizer)
        model.fit(*make_data(), batch_size=4, epochs=2, shuffle=False, verbose=0)
        results.append(model.get_weights())
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("options", [{"run_eagerly": True}, {"steps_per_execution": 2}, {"jit_compile": True}])
def test_execution_modes_of_keras(options):
    results = []
    for wrap in (lambda optimizer: optimizer, DistributedOptimizer):
        model = make_model(wrap(keras.optimizers.Adam(gradient_accumulation_steps=2)), **options)
        model.fit(*make_data(), batch_size=4, epochs=2, shuffle=False, verbose=0)
        results.append(model.get_weights())
    for one, two in zip(*results, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6)


def test_it_stands_for_the_optimizer_that_it_wraps():
    inner = LARS(0.3, weight_decay=1e-3, clipnorm=2.0)
    outer = DistributedOptimizer(inner)
    assert isinstance(outer, LARS)
    assert isinstance(outer, keras.optimizers.Optimizer)
    assert isinstance(outer, DistributedOptimizer)
    assert keras.optimizers.get(outer) is outer
    assert outer.clipnorm == 2.0
    assert outer.get_config() == inner.get_config()
    assert "learning_rate" in dir(outer)
    assert "rank 0 of 1" in repr(outer)
    outer.learning_rate = 0.5
    outer.clipnorm = 1.0
    assert float(inner.learning_rate) == 0.5
    assert inner.clipnorm == 1.0


def test_a_name_will_do():
    assert isinstance(DistributedOptimizer("adam"), keras.optimizers.Adam)


def test_a_built_optimizer_keeps_its_state():
    inner = keras.optimizers.SGD(0.1, momentum=0.9)
    model = make_model(inner)
    model.fit(*make_data(), verbose=0)
    state = [np.asarray(v) for v in inner.variables]
    model.compile(DistributedOptimizer(inner), "mse", jit_compile=False)
    for variable, value in zip(model.optimizer.variables, state, strict=True):
        np.testing.assert_array_equal(np.asarray(variable), value)
    model.fit(*make_data(), verbose=0)
    assert int(inner.iterations) == 2


def test_saving_and_pickling_keep_the_plain_optimizer(tmp_path):
    model = make_model(DistributedOptimizer(keras.optimizers.Adam(0.01)))
    model.fit(*make_data(), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is keras.optimizers.Adam
    for one, two in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(two))
    new = DistributedOptimizer(keras.optimizers.Adam(0.01))  # Keras itself does not restore a built optimizer
    assert type(pickle.loads(pickle.dumps(new))) is keras.optimizers.Adam


def test_checkpoints_of_tensorflow_go_both_ways(tmp_path):
    wrapped = make_model(DistributedOptimizer(keras.optimizers.Adam(0.01)))
    wrapped.fit(*make_data(), verbose=0)
    path = tf.train.Checkpoint(model=wrapped, optimizer=wrapped.optimizer).save(str(tmp_path / "checkpoint"))
    for other in (make_model(keras.optimizers.Adam()), make_model(DistributedOptimizer(keras.optimizers.Adam()))):
        other.optimizer.build(other.trainable_variables)
        checkpoint = tf.train.Checkpoint(model=other, optimizer=other.optimizer)
        checkpoint.restore(path).assert_existing_objects_matched()
        for one, two in zip(wrapped.optimizer.variables, other.optimizer.variables, strict=True):
            np.testing.assert_array_equal(np.asarray(one), np.asarray(two))


def test_callbacks_of_keras_find_the_optimizer(tmp_path):
    model = make_model(DistributedOptimizer(keras.optimizers.SGD(0.1, use_ema=True)))
    model.fit(
        *make_data(),
        epochs=3,
        verbose=0,
        callbacks=[
            keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
            keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=100.0),
            keras.callbacks.ModelCheckpoint(tmp_path / "model.keras"),
        ],
    )
    assert float(model.optimizer.learning_rate) == pytest.approx(0.025)
    assert (tmp_path / "model.keras").exists()


def test_mixed_precision_wraps_loss_scaling_inside():
    keras.config.set_dtype_policy("mixed_float16")
    model = make_model(DistributedOptimizer(keras.optimizers.Adam()))
    assert isinstance(model.optimizer, DistributedOptimizer)  # `compile` has wrapped nothing around it
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    model.fit(*make_data(), epochs=10, verbose=0)
    assert isinstance(model.optimizer.inner_optimizer, keras.optimizers.Adam)
    scale = float(model.optimizer.dynamic_scale)
    num_skipped = int(np.log2(2.0**15 / scale))
    assert 0 < int(model.optimizer.iterations) == 10 - num_skipped


def test_custom_loops_and_missing_gradients():
    optimizer = DistributedOptimizer(keras.optimizers.SGD(1.0))
    one, two = keras.Variable(np.ones(2)), keras.Variable(np.ones(2))
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        steps = optimizer.apply_gradients([(tf.ones(2), one), (None, two)])
    assert int(steps) == 1
    assert np.asarray(one).tolist() == [0.0, 0.0]
    assert np.asarray(two).tolist() == [1.0, 1.0]
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([tf.ones(2), None])
    assert np.asarray(one).tolist() == [-1.0, -1.0]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: DistributedOptimizer(3),
            TypeError,
            "`optimizer` must be a Keras 3 optimizer or its name. Received: op",
        ),
        (lambda: DistributedOptimizer(DistributedOptimizer("sgd")), ValueError, "wrap an optimizer once"),
        (lambda: DistributedOptimizer("sgd", compression="zip"), ValueError, "`compression` must be one of 'float16'"),
        (
            lambda: keras.optimizers.LossScaleOptimizer(DistributedOptimizer("sgd")),
            ValueError,
            "must not be wrapped in a LossScaleOptimizer",
        ),
        (
            lambda: DistributedOptimizer("sgd").apply([tf.ones(1)], [keras.Variable([0.0]), keras.Variable([0.0])]),
            ValueError,
            "There are 1 gradients for 2 variables",
        ),
    ],
)
def test_refuses(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_refuses_accumulation_in_a_part_of_several_optimizers():
    parts = [keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)]
    with pytest.raises(ValueError, match="made of several optimizers"):
        DistributedOptimizer(_Several(parts))


def test_exclusions_from_weight_decay_of_several_optimizers_are_refused():
    """Keras accepts them, before and after the first step, and ignores them."""
    optimizer = DistributedOptimizer(_Several([keras.optimizers.SGD(0.1, weight_decay=0.1)]))
    with pytest.raises(ValueError, match="made of several. Received: _Several"):
        optimizer.exclude_from_weight_decay(var_names=["bias"])


class _RankOneOfTwo(SerialCommunicator):
    """Stands for the second of two ranks, where the first one's weights are all 3."""

    rank, size = 1, 2

    def allgather_object(self, item, name="object"):
        return [item, item]

    def broadcast(self, tensors, root_rank=0, name="broadcast"):
        return [tf.fill(tensor.shape, tf.constant(3, tensor.dtype)) for tensor in tensors]


def test_what_an_optimizer_notes_of_the_weights_is_that_of_rank_0():
    optimizer = DistributedOptimizer(Fromage(0.5, p_bound=1.0), communicator=_RankOneOfTwo())
    variable = keras.Variable([1.0, 0.0])
    optimizer.apply([tf.constant([0.0, -1.0])], [variable])
    (noted,) = [v for v in optimizer.variables if "initial_norm" in v.path]
    assert float(noted.numpy()) == pytest.approx(np.sqrt(18))
    assert np.linalg.norm(np.asarray(variable)) == pytest.approx(np.sqrt(18))  # and not the 1 of this rank


class _Several(keras.optimizers.SGD):
    def __init__(self, optimizers):
        super().__init__()
        self.optimizers = optimizers


def test_compression_alone_keeps_all_digits():
    optimizer = DistributedOptimizer(keras.optimizers.SGD(1.0), "float16", SerialCommunicator())
    variable = keras.Variable(np.zeros(1))
    optimizer.apply([tf.constant([1 / 3])], [variable])
    assert np.asarray(variable)[0] == np.float32(-1 / 3)


def test_an_optimizer_of_horovods_own_wrapper_is_refused():
    import horovod.tensorflow.keras as horovod_keras

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = horovod_keras.DistributedOptimizer(keras.optimizers.SGD(0.1))
    with pytest.raises(ValueError, match="one that Horovod's own Keras wrapper has made"):
        DistributedOptimizer(wrapped)


def test_no_gradients_are_refused():
    with pytest.raises(ValueError, match="`grads_and_vars` must hold at least one pair"):
        DistributedOptimizer("sgd").apply_gradients([])
