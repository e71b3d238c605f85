"""Variables that start at zero under LARS: their steps are short whatever the loss, and long enough to learn."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from optimizer_oracles import LarsOracle, norm
from trajectories import compiled, relative_errors, run_oracle, values

from tfopt.optimizers import LARS

# A matrix large enough for TensorFlow's fused kernels, a small one, a bias and a scalar, all zero; and others beside
# them: of ordinary size, tiny, and one that becomes zero on the way.
SHAPES = ((130, 128), (7, 5), (5,), (), (130, 128), (7, 5))
SETTINGS = {
    "default": {},
    "nesterov": {"nesterov": True, "weight_decay": 0.1, "trust_coefficient": 0.01},
    "norm": {"denominator": "norm", "epsilon": 1e-3, "weight_decay": 0.1, "norm_floor": 0.3},
    "clip": {"clip": True, "trust_coefficient": 0.02},
    "no_momentum": {"momentum": 0.0, "trust_coefficient": 0.3, "norm_floor": 5.0},
    "printed": {"norm_floor": 0.0},
}
TOLERANCES = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 4e-3}


def make_problem(dtype, num_steps=8):
    """Weights, and gradients whose lengths differ by factors of up to 1e6 (100 in float16) between steps."""
    rng = np.random.default_rng(0)
    weights = [np.zeros(shape) for shape in SHAPES[:4]] + [rng.standard_normal(SHAPES[4]), np.full(SHAPES[5], 1e-4)]
    exponents = rng.uniform(-1, 1 if dtype == "float16" else 5, (num_steps, len(SHAPES)))
    return weights, [[10.0**e * rng.standard_normal(s) for e, s in zip(row, SHAPES, strict=True)] for row in exponents]


CASES = [(setting, "graph", "float32") for setting in SETTINGS]
CASES += [("default", execution, "float32") for execution in ("eager", "xla")]
CASES += [("default", "xla", "bfloat16"), ("norm", "graph", "float16")]


@pytest.mark.parametrize(("setting", "execution", "dtype"), CASES)
def test_follows_its_equations_from_zero(setting, execution, dtype):
    arguments, rate = SETTINGS[setting], 0.5
    weights, gradients = make_problem(dtype)
    optimizer, variables = LARS(rate, **arguments), [keras.Variable(w, dtype=dtype) for w in weights]
    optimizer.build(variables)
    apply = compiled(optimizer, execution)
    for step in gradients:
        apply([keras.ops.convert_to_tensor(g, dtype=dtype) for g in step])
    actual = [values(v).astype("float64") for v in variables]
    expected = run_oracle(LarsOracle(**arguments), weights, gradients, rate, dtype)
    assert max(relative_errors(actual, expected)) < TOLERANCES[dtype]


@pytest.mark.parametrize(
    ("shape", "execution"), [(SHAPES[0], "graph"), (SHAPES[0], "xla"), (SHAPES[1], "eager"), (SHAPES[3], "graph")]
)
def test_steps_from_zero_do_not_depend_on_the_gradients_length(shape, execution):
    gradients = np.random.default_rng(0).standard_normal((3, *shape))
    for clip in (False, True):
        ends = []
        for scale in (1.0, 1e-20, 1e20):
            variable, optimizer = keras.Variable(np.zeros(shape)), LARS(1e20 if clip else 2.0, clip=clip)
            optimizer.build([variable])
            apply = compiled(optimizer, execution)
            for gradient in gradients:
                apply([keras.ops.convert_to_tensor(scale * gradient, dtype="float32")])
            ends.append(values(variable))
        first = (1.0 if clip else 2.0) * 0.001  # the length of each step at first, before momentum
        assert 0.5 * first < norm(ends[0]) < 6 * first
        np.testing.assert_allclose(ends[1:], [ends[0]] * 2, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("size", [2, 2**15])  # the larger one takes the fused kernels before and after
def test_a_variable_that_becomes_zero_leaves_zero_with_a_short_step(size):
    def padded(first, second):
        return np.concatenate([[first, second], np.zeros(size - 2)]).astype("float32")

    variable, optimizer = keras.Variable(padded(3.0, 4.0)), LARS(momentum=0.0)
    optimizer.apply([tf.constant(padded(1.0, 0.0))], [variable])
    np.testing.assert_allclose(values(variable), padded(3.0 - 0.005, 4.0), rtol=1e-6)
    variable.assign(padded(0.0, 0.0))
    optimizer.apply([tf.constant(padded(1e5, 0.0))], [variable])
    np.testing.assert_allclose(values(variable), padded(-0.001, 0.0), rtol=1e-6)
    optimizer.apply([tf.constant(padded(1e5, 0.0))], [variable])  # from here on in proportion to its size
    np.testing.assert_allclose(values(variable), padded(-0.001 - 1e-6, 0.0), rtol=1e-6)


def make_autoencoder(optimizer):
    layers = [keras.layers.Dense(n, a) for n, a in ((32, "relu"), (4, None), (32, "relu"), (64, None))]
    for seed, layer in enumerate(layers):
        layer.kernel_initializer = keras.initializers.GlorotUniform(seed)
    model = keras.Sequential([keras.Input((64,)), *layers])

    def summed_over_pixels_and_rows(x, logits):
        return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(x, logits)) * tf.ones(tf.shape(x)[:1])

    model.compile(optimizer, summed_over_pixels_and_rows, jit_compile=False)
    return model


def losses_of_an_autoencoder(optimizer):
    rng = np.random.default_rng(0)
    x = (rng.uniform(size=(1000, 64)) < rng.uniform(size=64) ** 2).astype("float32")
    return make_autoencoder(optimizer).fit(x, x, batch_size=250, epochs=10, verbose=0).history["loss"]


def test_losses_that_are_sums_fall():
    losses = losses_of_an_autoencoder(LARS())
    assert losses[0] > 1e4
    assert all(np.diff(losses) < 0)
    assert losses_of_an_autoencoder(LARS(norm_floor=0.0))[0] > 2 * losses[0]  # the printed rule's


@pytest.mark.parametrize("warmup_steps", [0, 300])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_an_adapter_that_starts_at_zero_learns(scale, warmup_steps):
    """LoRA: x A B with B = 0 learns a product of rank 4, whatever factor the loss has, and after a long warm-up."""
    rng = np.random.default_rng(0)
    wanted = rng.standard_normal((32, 4)) @ rng.standard_normal((4, 32)) / 16
    a, b = (keras.Variable(w, dtype="float32") for w in (rng.standard_normal((32, 4)) / 6, np.zeros((4, 32))))
    rate = keras.optimizers.schedules.PolynomialDecay(1e-9, max(1, warmup_steps), 1.0)  # upwards
    optimizer = LARS(rate)
    optimizer.build([a, b])
    apply = compiled(optimizer, "graph")
    for _ in range(warmup_steps + 400):
        error = scale * (values(a) @ values(b) - wanted)
        apply([tf.constant(g, "float32") for g in (error @ values(b).T, values(a).T @ error)])
    assert norm(values(a) @ values(b) - wanted) < 0.2 * norm(wanted)


def test_a_kernel_that_starts_at_zero_learns_in_a_model_without_an_input():
    """Whether a variable starts at zero is seen when the first step runs: weights have no values while it is traced."""
    x = np.random.default_rng(0).standard_normal((256, 8)).astype("float32")
    model = keras.Sequential([keras.layers.Dense(1, kernel_initializer="zeros")])
    model.compile(LARS(), "mse", jit_compile=False)
    model.fit(x, x.sum(axis=1, keepdims=True), batch_size=8, epochs=12, verbose=0)
    floors = [float(v.numpy()) for v in model.optimizer.variables if "norm_floor" in v.path]
    assert floors == [1.0, 1.0]
    np.testing.assert_allclose(model.get_weights()[0], np.ones((8, 1)), atol=0.2)


def test_a_restored_training_knows_what_started_at_zero():
    """Its optimizer is built when the weights are not zero any more."""
    one, two = (LARS(0.5), LARS(0.5))
    gradients = np.random.default_rng(0).standard_normal((3, 5)).astype("float32")
    first, second = keras.Variable(np.zeros(5)), keras.Variable(np.zeros(5))
    one.apply([tf.constant(gradients[0])], [first])
    second.assign(first)
    two.build([second])
    two.set_weights([v.numpy() for v in one.variables])
    for gradient in gradients[1:]:
        one.apply([tf.constant(gradient)], [first])
        two.apply([tf.constant(gradient)], [second])
    np.testing.assert_array_equal(values(first), values(second))


def test_the_printed_rule_keeps_no_floors():
    optimizer = LARS(norm_floor=0, momentum=0)
    optimizer.build([keras.Variable([0.0, 0.0])])
    assert len(optimizer.variables) == 2  # the number of steps, and the learning rate
