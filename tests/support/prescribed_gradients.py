"""A Keras model whose gradients are its inputs, so that the effect of any feature of compile and fit can be computed.

The loss is the mean over the batch of sum(w * c), with c from the data, so the gradient of w is the mean of c.
"""

import keras
import numpy as np
from keras import ops

NUM_STEPS, NUM_ROWS = 4, 5
SHAPES = {"large": (130, 128), "kernel": (7, 5), "bias": (6,)}  # the first is large enough for the fused kernels
TABLE_SHAPE = (40, 8)


@keras.saving.register_keras_serializable(package="tests")
class Weight(keras.layers.Layer):
    """Multiplies its input by a variable and sums."""

    def build(self, input_shape):
        self.w = self.add_weight(shape=input_shape[1:], name="w")

    def call(self, inputs):
        products = ops.cast(self.w, "float32") * ops.cast(inputs, "float32")
        return ops.sum(ops.reshape(products, (-1, int(np.prod(inputs.shape[1:])))), axis=1)


@keras.saving.register_keras_serializable(package="tests")
class LookedUp(keras.layers.Layer):
    """Multiplies rows of a table by its second input and sums; the table's gradient is sparse, with repeated rows."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.embedding = keras.layers.Embedding(*TABLE_SHAPE, name="table")

    def build(self, input_shape):
        self.embedding.build()

    def call(self, rows, factors):
        products = ops.cast(self.embedding(rows), "float32") * ops.cast(factors, "float32")
        return ops.sum(products, axis=(1, 2))


@keras.saving.register_keras_serializable(package="tests")
def mean_of_outputs(y_true, y_pred):
    return ops.mean(y_pred)


def make_data(seed=0):
    """Initial weights, and data that prescribe NUM_STEPS gradients, small enough not to overflow float16."""
    rng = np.random.default_rng(seed)
    shapes = {**SHAPES, "table": TABLE_SHAPE}
    weights = {name: 0.3 * rng.standard_normal(shape) for name, shape in shapes.items()}
    weights["bias"][:] = 0.0
    data = {name: rng.standard_normal((NUM_STEPS, *shape)) for name, shape in SHAPES.items()}
    data["factors"] = rng.standard_normal((NUM_STEPS, NUM_ROWS, TABLE_SHAPE[1]))
    for name, values in data.items():
        lengths = 10.0 ** rng.uniform(-1.5, -0.3, (NUM_STEPS, *[1] * (values.ndim - 1)))
        data[name] = np.clip(lengths * values, -1.5, 1.5)
    data["rows"] = np.array([[3, 9, 3, 3, 20], [1, 1, 1, 1, 1], [0, 39, 0, 5, 39], [7, 8, 9, 9, 8]])
    return weights, data


def make_model(sparse, weights):
    names = list(SHAPES)
    inputs = {name: keras.Input(SHAPES[name], name=name) for name in names}
    terms = [Weight(name=f"weight_{name}")(inputs[name]) for name in names]
    if sparse:
        inputs["rows"] = keras.Input((NUM_ROWS,), dtype="int32", name="rows")
        inputs["factors"] = keras.Input((NUM_ROWS, TABLE_SHAPE[1]), name="factors")
        terms.append(LookedUp(name="looked_up")(inputs["rows"], inputs["factors"]))
    model = keras.Model(inputs, keras.layers.Add(dtype="float32")(terms))
    model.set_weights([weights[name] for name in [*names, *["table"] * sparse]])
    return model


def make_gradients(data, sparse, dtype):
    """The gradients of each step, rounded to the type in which the model computes."""

    def rounded(values):
        return keras.ops.convert_to_numpy(ops.cast(ops.cast(values.astype("float32"), dtype), "float64"))

    steps = []
    for step in range(NUM_STEPS):
        gradients = {name: rounded(data[name][step]) for name in SHAPES}
        if sparse:
            gradients["table"] = np.zeros(TABLE_SHAPE)
            np.add.at(gradients["table"], data["rows"][step], rounded(data["factors"][step]))
        steps.append(gradients)
    return steps
