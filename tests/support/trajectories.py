"""Runs an optimizer on a fixed sequence of gradients, and the oracle with the same gradients."""

import keras
import numpy as np

# A kernel large enough for TensorFlow's fused kernels, one too small, a bias that starts at zero, a normalisation
# scale, a convolution, and a variable whose gradient is always zero.
SHAPES = {"large": (130, 128), "kernel": (7, 5), "bias": (5,), "scale": (12,), "conv": (3, 3, 2, 4), "still": (6, 2)}
NUM_STEPS = 12


def make_problem(seed=0, num_steps=NUM_STEPS):
    """Initial weights and the gradients of each step, float64, equal for every optimizer."""
    rng = np.random.default_rng(seed)
    weights = [0.3 * rng.standard_normal(shape) for shape in SHAPES.values()]
    names = list(SHAPES)
    weights[names.index("bias")][:] = 0.0
    gradients = []
    for step in range(num_steps):
        # Lengths differ between variables and steps, so that the error of a wrong norm cannot cancel.
        scales = 10.0 ** rng.uniform(-3, 2, len(names))
        gradients.append([scale * rng.standard_normal(w.shape) for scale, w in zip(scales, weights, strict=True)])
        gradients[step][names.index("still")][:] = 0.0
    return weights, gradients


def make_variables(weights, dtype):
    return [keras.Variable(w, dtype=dtype, name=name) for w, name in zip(weights, SHAPES, strict=True)]


def values(variable):
    """A copy of a Keras variable's values as an array."""
    return np.array(keras.ops.convert_to_numpy(variable.value))


def run(optimizer, weights, gradients, dtype="float32", execution="graph"):
    """Final weights as float64 arrays. `execution` is "eager", "graph" or "xla"."""
    variables = make_variables(weights, dtype)
    optimizer.build(variables)
    apply = compiled(optimizer, execution)
    for step in gradients:
        apply([keras.ops.convert_to_tensor(g, dtype=dtype) for g in step])
    return [values(v).astype("float64") for v in variables]


def compiled(optimizer, execution):
    if execution == "eager":
        return optimizer.apply
    import tensorflow as tf

    return tf.function(optimizer.apply, jit_compile=execution == "xla", autograph=False)


def run_oracle(oracle, weights, gradients, learning_rate, dtype="float32"):
    """Run the oracle with the optimizer's real inputs: the same numbers, first rounded to the optimizer's type."""
    learning_rates = learning_rate if callable(learning_rate) else lambda step: learning_rate

    def rounded(arrays):
        tensors = [keras.ops.cast(keras.ops.convert_to_tensor(array), dtype) for array in arrays]
        return [np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(t, "float64"))) for t in tensors]

    weights = rounded(weights)
    for step, grads in enumerate(gradients):
        weights = oracle.step(weights, rounded(grads), learning_rates(step))
        if dtype in ("float16", "bfloat16"):
            weights = rounded(weights)
    return weights


def relative_errors(actual, expected):
    """|actual - expected| / |expected| for each variable."""
    return [
        np.linalg.norm((a - e).ravel()) / max(np.linalg.norm(e.ravel()), 1e-300)
        for a, e in zip(actual, expected, strict=True)
    ]
