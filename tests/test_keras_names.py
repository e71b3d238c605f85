"""The private names of Keras and TensorFlow: on an upgrade, the message says which has moved, and its use."""

import functools
import inspect
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt import _keras

VERSIONS = f"Keras {keras.__version__}, TensorFlow {tf.__version__}"


@pytest.mark.parametrize("name", _keras.IMPORTED)
def test_imported_names_exist(name):
    module, use = _keras.IMPORTED[name]
    try:
        getattr(_keras, name)
    except ImportError as error:
        raise AssertionError(f"{VERSIONS} have moved {module}.{name}. Its use: {use}") from error


class Spy(keras.callbacks.Callback):
    """Keeps the local variables of the `fit` that calls it."""

    def on_train_batch_end(self, batch, logs=None):
        frame = inspect.currentframe()
        while frame.f_code.co_name != "fit":
            frame = frame.f_back
        self.seen = dict(frame.f_locals)


@functools.cache
def fitted(kind="arrays"):
    """A small model after a `fit`, and the local variables of that `fit`."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, "softmax")])
    optimizer = keras.optimizers.SGD(gradient_accumulation_steps=2)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    x, y = np.ones((4, 2), "float32"), np.zeros(4, "int32")
    data = {"x": x, "y": y} if kind == "arrays" else {"x": tf.data.Dataset.from_tensor_slices((x, y)).batch(2)}
    spy = Spy()
    model.fit(**data, epochs=2, shuffle=False, verbose=0, validation_data=(x, y), callbacks=[spy])
    return model, spy.seen


def adapter(kind):
    return fitted(kind)[1]["epoch_iterator"].data_adapter


def torch_adapter():
    names = _keras.data_adapters.TorchDataLoaderAdapter.__init__.__code__.co_names  # PyTorch need not be installed.
    return types.SimpleNamespace(**dict.fromkeys(names))


def board():
    callback = keras.callbacks.TensorBoard(write_graph=False)
    callback.set_model(fitted()[0])
    return callback


def functional():
    inputs = keras.Input((2,))
    return keras.Model(inputs, keras.layers.Dense(1)(inputs))


ROWS = tf.data.Dataset.range(3)
# Owner of an attribute -> a function that makes one.
OWNERS = {
    "model": lambda: fitted()[0],
    "validated model": lambda: keep_validation_data(),
    "sequential model": lambda: fitted()[0],
    "functional model": functional,
    "layer": lambda: fitted()[0].layers[0],
    "symbolic tensor": lambda: functional().output,
    "error of a layer's call": lambda: error_of_a_call(),
    "dtype policy": lambda: keras.DTypePolicy("mixed_float16"),
    "softmax output": lambda: keras.activations.softmax(tf.ones((1, 2))),
    "masked output": lambda: keras.layers.Masking()(np.ones((1, 2, 2), "float32")),
    "compiled loss": lambda: fitted()[0]._compile_loss,
    "compiled metrics": lambda: fitted()[0]._compile_metrics,
    "loss": lambda: keras.losses.Huber(),
    "optimizer": lambda: fitted()[0].optimizer,
    "accumulating optimizer": lambda: fitted()[0].optimizer,
    "excluding optimizer": lambda: fitted()[0].optimizer,
    "variable": lambda: fitted()[0].trainable_variables[0],
    "tf.Variable": lambda: tf.Variable(0.0),
    "epoch iterator": lambda: fitted()[1]["epoch_iterator"],
    "ArrayDataAdapter": lambda: adapter("arrays"),
    "TFDatasetAdapter": lambda: adapter("a data set"),
    "TorchDataLoaderAdapter": torch_adapter,
    "shuffled data set": lambda: ROWS.map(lambda row: row).shuffle(3),
    "parallel data set": lambda: ROWS.map(lambda row: row, num_parallel_calls=2, deterministic=False),
    "cached data set": lambda: ROWS.cache(),
    "data set's iterator": lambda: iter(ROWS),
    "eager context": lambda: seeded_context(),
    "graph": lambda: tf.Graph(),
    "tf.function": lambda: tf.function(lambda: None),
    "nn_ops": lambda: _keras.nn_ops,
    "custom_gradient": lambda: _keras.custom_gradient,
    "TensorBoard": board,
}


def keep_validation_data():
    model, seen = functional(), []
    model.compile("sgd", "mse", jit_compile=False)
    spy = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(model._eval_epoch_iterator))
    x, y = np.ones((4, 2)), np.ones((4, 1))
    model.fit(x, y, verbose=0, validation_data=(x, y), callbacks=[spy])
    model._eval_epoch_iterator = seen[0]
    return model


def error_of_a_call():
    with pytest.raises(Exception, match="Exception encountered when calling") as caught:
        keras.layers.Lambda(lambda x: x.missing)(tf.zeros(1))
    return caught.value


def seeded_context():
    tf.random.set_seed(0)
    tf.random.uniform(())
    return _keras.context.context()


@pytest.mark.parametrize("attribute", _keras.ATTRIBUTES, ids=lambda attribute: f"{attribute.owner}.{attribute.name}")
def test_attributes_exist(attribute, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # TensorBoard writes to the current directory
    owner = OWNERS[attribute.owner]()
    message = f"{VERSIONS}: {type(owner).__name__} has no {attribute.name} any more. Its use: {attribute.use}"
    assert hasattr(owner, attribute.name), message


@pytest.mark.parametrize("kind", ["arrays", "a data set"])
def test_the_local_variables_of_fit_have_their_names(kind):
    missing = set(_keras.LOCALS_OF_FIT) - fitted(kind)[1].keys()
    assert not missing, f"{VERSIONS}: keras.Model.fit has no local variables {sorted(missing)} any more"
    expected = {"arrays": "ArrayDataAdapter", "a data set": "TFDatasetAdapter"}[kind]
    assert type(adapter(kind)).__name__ == expected


@pytest.mark.parametrize("name", _keras.LOOKS_FOR_SHAPES)
def test_functions_that_look_for_shapes_exist(name):
    assert callable(getattr(keras.Model, name, None)), f"{VERSIONS} have moved Model.{name}, which looks for shapes"
