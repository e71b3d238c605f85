"""Models and data that `fit` takes are measured: layers that are never built, text, images, and integers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt.callbacks import Convexity, GradientBreakdown, GradientNoiseScale
from tfopt.curvature import GaussNewtonOperator, HessianOperator, Objective, Probe, gradient_noise
from tfopt.planning import fit_noisy_quadratic

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
WORDS = ["a", "b"]
TEXT, LABELS = np.array([["a b"], ["b"], ["a"], ["b a"]] * 2), np.array([0, 1, 2, 0] * 2)
NUMBERS = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")


def make_text_model():
    return keras.Sequential([
        keras.Input((1,), dtype="string"),
        keras.layers.TextVectorization(vocabulary=WORDS, output_sequence_length=2),
        keras.layers.Embedding(5, 3),
        keras.layers.Flatten(),
        keras.layers.Dense(3),
    ])


class TextBatches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return TEXT[4 * index : 4 * index + 4], LABELS[4 * index : 4 * index + 4]


SOURCES = {
    "strings": lambda: Probe(TEXT, LABELS),
    "bytes": lambda: Probe(TEXT.astype("S"), LABELS),
    "objects": lambda: Probe(TEXT.astype(object), LABELS),
    "objects that are bytes": lambda: Probe(TEXT.astype("S").astype(object), LABELS),
    "strings of any length": lambda: Probe(TEXT.astype(np.dtypes.StringDType()), LABELS),
    "tensors": lambda: Probe(tf.constant(TEXT), LABELS),
    "a data set": lambda: Probe(tf.data.Dataset.from_tensor_slices((TEXT, LABELS)).batch(4)),
    "a PyDataset": lambda: Probe(TextBatches()),
}


@pytest.mark.parametrize("name", SOURCES)
def test_text_is_taken(name):
    probe = SOURCES[name]()
    assert probe.num_rows == 8
    assert {batch.x.dtype for batch in probe.batches} == {tf.string}
    assert [text.decode() for batch in probe.batches for text in batch.x.numpy()[:, 0]] == TEXT[:, 0].tolist()
    assert probe.first(3).batches[0].x.shape == (3, 1)


def test_models_of_text_are_those_of_their_tokens():
    model = make_text_model()
    tokens = model.layers[0](TEXT)
    rest = keras.Sequential([keras.Input((2,)), *model.layers[1:]])
    for kind in (HessianOperator, GaussNewtonOperator):
        matrix = kind(model, LOSS, TEXT, LABELS, batch_size=4)
        vector = np.random.default_rng(0).normal(size=matrix.shape[0])
        expected = kind(rest, LOSS, tokens, LABELS, self_check=False) @ vector
        np.testing.assert_allclose(matrix @ vector, expected, rtol=1e-4, atol=1e-6)
    # The self-check computes in float64, except the text.
    small = matrix.objective.on_rows(matrix.objective.probe.batches[0].rows(0, 4), "float64")
    assert HessianOperator(small).matvec(small.values())[0].dtype == tf.float64
    noise, expected = (gradient_noise(m, LOSS, x, LABELS) for m, x in ((model, TEXT), (rest, tokens)))
    assert noise.covariance_trace.value == pytest.approx(expected.covariance_trace.value, rel=1e-4)
    many = np.tile(TEXT, (8, 1)), np.tile(LABELS, 8)
    assert fit_noisy_quadratic(Objective(model, LOSS, many), None, num_runs=4, num_matvecs=2, num_rows_per_run=16)


def test_callbacks_take_text():
    model = make_text_model()
    model.compile("sgd", LOSS)
    batches = tf.data.Dataset.from_tensor_slices((TEXT, LABELS)).batch(4)
    convexity = Convexity((TEXT, LABELS), eigenvalues=False)
    model.fit(
        batches,
        shuffle=False,
        verbose=0,
        callbacks=[convexity, GradientBreakdown(batches), GradientNoiseScale(batches, group_size=2)],
    )
    assert len(convexity.history["step"]) > 1


def make_mixed_model(numbers):
    """Text, numbers, integers, booleans and images of bytes; or the same, as numbers that somebody else has made."""
    sizes = {"text": 3, "number": 3, "integer": 4, "bool": 2, "image": 16}
    if numbers:
        inputs = {name: keras.Input((size,), name=name) for name, size in sizes.items()}
        parts = list(inputs.values())
    else:
        kinds = {"text": "string", "integer": "int32", "bool": "bool", "image": "uint8", "number": "float32"}
        shapes = {"text": (1,), "number": (3,), "integer": (1,), "bool": (2,), "image": (4, 4, 1)}
        inputs = {name: keras.Input(shapes[name], dtype=kinds[name], name=name) for name in sizes}
        layers = {
            "text": keras.layers.StringLookup(vocabulary=WORDS, output_mode="one_hot"),
            "number": keras.layers.Normalization(mean=1.0, variance=4.0),
            "integer": keras.layers.CategoryEncoding(4, output_mode="one_hot"),
            "bool": keras.layers.Lambda(lambda x: keras.ops.cast(x, "float32")),
            "image": keras.layers.Rescaling(1 / 255),
        }
        parts = [keras.layers.Flatten()(layers[name](inputs[name])) for name in sizes]
    hidden = keras.layers.Dense(3, "tanh", kernel_initializer=keras.initializers.HeNormal(0))
    last = keras.layers.Dense(3, kernel_initializer=keras.initializers.HeNormal(1))
    return keras.Model(inputs, last(hidden(keras.layers.Concatenate()(parts))))


@pytest.mark.parametrize("weight", [None, np.arange(8), np.arange(8.0), np.arange(8) % 2 == 0])
def test_inputs_of_every_kind_are_taken(weight):
    rng = np.random.default_rng(1)
    data = {
        "text": np.array([["a"], ["b"], ["c"], ["a"]] * 2),
        "number": rng.normal(size=(8, 3)),
        "integer": rng.integers(0, 4, (8, 1)),
        "bool": rng.integers(0, 2, (8, 2)).astype(bool),
        "image": rng.integers(0, 256, (8, 4, 4, 1)).astype("uint8"),
    }
    numbers = {
        "text": np.eye(3)[[1, 2, 0, 1] * 2],
        "number": (data["number"] - 1.0) / 2.0,
        "integer": np.eye(4)[data["integer"][:, 0]],
        "bool": data["bool"].astype(float),
        "image": data["image"].reshape(8, 16) / 255.0,
    }
    probe = Probe(data, LABELS, weight, batch_size=5)
    assert probe.batches[0].x["image"].dtype == tf.uint8
    assert probe.batches[0].x["bool"].dtype == tf.bool
    matrix = HessianOperator(make_mixed_model(False), LOSS, probe, self_check=weight is None)
    floats = None if weight is None else weight.astype(float)
    expected = HessianOperator(make_mixed_model(True), LOSS, numbers, LABELS, floats, self_check=False)
    vector = rng.normal(size=matrix.shape[0])
    np.testing.assert_allclose(matrix @ vector, expected @ vector, rtol=1e-4, atol=1e-6)
    small = HessianOperator(matrix.objective.on_rows(matrix.objective.probe.batches[0].rows(0, 4), "float64"))
    assert small.matvec(small.objective.values())[0].dtype == tf.float64


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.array([[1], [1, 2]], dtype=object), "object"),
        (np.array(["a", None], dtype=object), "object"),
        (np.array(["2026-01-01"], dtype="datetime64[D]"), "datetime64"),
        (np.zeros(2, dtype=[("a", "f4")]), "'a'"),
        ("a", "<U1"),
    ],
)
def test_arrays_of_other_things_are_named(array, dtype):
    with pytest.raises(
        TypeError, match=rf"`x` must hold arrays of numbers or strings with one row per sample.*{dtype}"
    ):
        Probe(array)


def test_numbers_in_bfloat16_must_be_finite():
    bad = tf.constant([[1.0], [np.nan]], tf.bfloat16)
    with pytest.raises(ValueError, match="`x` must be finite. Received: nan in batch 0, row 1"):
        Probe(bad)
    assert Probe(bad[:1]).batches[0].x.dtype == tf.bfloat16


# --- layers that are not built


class SpareHead(keras.Model):
    def __init__(self):
        super().__init__()
        self.head, self.spare = keras.layers.Dense(3), keras.Sequential([keras.layers.Dense(2)])

    def call(self, x):
        return self.head(x)


class BuiltByName(keras.Model):
    """Says that it is built, though the layers that it uses have no weights yet; its kernel is its own."""

    def __init__(self):
        super().__init__()
        self.late = keras.Sequential([keras.layers.Dense(3, name="second")], name="late")

    def build(self, shape):
        self.kernel = self.add_weight((4, 4), name="kernel")

    def call(self, x):
        return self.late(x @ self.kernel)


@pytest.mark.filterwarnings("ignore:.build... was called on layer:UserWarning")  # Keras's, of any training of it
def test_layers_that_are_not_used_need_no_weights():
    model = SpareHead()
    model.compile("sgd", LOSS)
    convexity = Convexity((NUMBERS, LABELS), eigenvalues=False)
    model.fit(NUMBERS, LABELS, verbose=0, callbacks=[convexity])
    assert len(convexity.history["step"]) > 1
    assert HessianOperator(model, LOSS, NUMBERS, LABELS).shape == (15, 15)
    assert not model.spare.built
    assert model.spare(NUMBERS).shape == (8, 2)  # as it was: it can be built and used later


def test_layers_that_are_used_need_weights():
    model = BuiltByName()
    model.build((None, 4))
    assert model.built
    for _ in range(2):  # the first refusal leaves the model as it is
        with pytest.raises(
            ValueError, match="`model` must have its variables: .*Received: the layer 'late', which the model calls"
        ):
            HessianOperator(model, LOSS, NUMBERS, LABELS)
        assert len(model.variables) == 1
    model(NUMBERS)
    assert HessianOperator(model, LOSS, NUMBERS, LABELS).shape == (31, 31)
