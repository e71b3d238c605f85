"""What else Keras promises of an optimizer, beside what `test_contract.py` covers through compile and fit."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from optimizer_table import CLASSES, TABLE
from trajectories import compiled, make_problem, make_variables, relative_errors, run, values

ALL = pytest.mark.parametrize("name", TABLE)
# Tests that train a model compile it, which takes a second or two: one row for each piece of code.
SOME = pytest.mark.parametrize("name", ["fromage", "fromage_p_bound", "lars_nesterov", "lars_norm", "larc"])
EXECUTIONS = pytest.mark.parametrize("execution", ["eager", "graph", "xla"])
TOLERANCE = 3e-6


def make_data(num_rows=64):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((num_rows, 6)).astype("float32")
    return x, (x[:, :1] * x[:, 1:2] + x[:, 2:3] > 0).astype("float32")


def make_model(optimizer, execution):
    model = keras.Sequential([
        keras.Input((6,)),
        keras.layers.Dense(16, activation="relu", name="first"),
        keras.layers.BatchNormalization(name="normalization"),
        keras.layers.Dense(1, name="last"),
    ])
    model.compile(
        optimizer,
        keras.losses.BinaryCrossentropy(from_logits=True),
        jit_compile=execution == "xla",
    )
    model.optimizer.build(model.trainable_variables)  # else `fit` does, and traces its step twice
    return model


def weights_of(model):
    return [np.array(w) for w in model.get_weights()]


@ALL
def test_loss_scaling_is_undone(name):
    weights, gradients = make_problem(num_steps=3)
    scaled = [[1024.0 * g for g in step] for step in gradients]
    actual = run(TABLE[name].make(loss_scale_factor=1024.0), weights, scaled)
    assert max(relative_errors(actual, run(TABLE[name].make(), weights, gradients, execution="eager"))) < 1e-6


@pytest.mark.parametrize(
    ("name", "execution"),
    [(name, "graph") for name in ("fromage", "lars_nesterov", "larc")]
    + [(name, "xla") for name in ("fromage", "larc")],
)
def test_mixed_float16_trains_and_skips_overflowing_steps(name, execution):
    keras.config.set_dtype_policy("mixed_float16")
    model = make_model(TABLE[name].make(), execution)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    x, y = make_data()
    model.fit(x, y, batch_size=64, epochs=4, verbose=0)
    assert all(v.dtype == "float32" for v in model.trainable_variables)
    before, steps = weights_of(model), int(model.optimizer.inner_optimizer.iterations)
    scale = float(model.optimizer.dynamic_scale)
    model.optimizer.dynamic_scale.assign(1e30)  # the scaled loss overflows float16
    model.fit(x, y, batch_size=64, epochs=1, verbose=0)
    trainable = [i for i, v in enumerate(model.variables[: len(before)]) if v.trainable]
    for index in trainable:
        np.testing.assert_array_equal(weights_of(model)[index], before[index])
    assert int(model.optimizer.inner_optimizer.iterations) == steps
    model.optimizer.dynamic_scale.assign(scale)
    model.fit(x, y, batch_size=64, epochs=1, verbose=0)
    assert all(np.isfinite(w).all() for w in weights_of(model))
    assert any((weights_of(model)[i] != before[i]).any() for i in trainable)


# For every row a way that clips and one that does not; for the first row of each class all six.
SPARSE = [("eager", {}), ("graph", {"global_clipnorm": 2.0})]
SPARSE_OF_CLASSES = [("graph", {}), ("xla", {}), ("eager", {"clipnorm": 2.0}), ("xla", {"clipvalue": 1.5})]


@pytest.mark.parametrize(
    ("name", "execution", "clipping"),
    [(name, *way) for name in TABLE for way in SPARSE + SPARSE_OF_CLASSES * (name in CLASSES)],
)
def test_sparse_gradients_with_repeated_rows_equal_dense_ones(name, execution, clipping):
    table = np.random.default_rng(0).standard_normal((2000, 9)).astype("float32")
    rows = np.array([3, 7, 3, 3, 1999, 7])
    entries = np.random.default_rng(1).standard_normal((6, 9)).astype("float32")
    dense = np.zeros_like(table)
    np.add.at(dense, rows, entries)
    results = []
    for sparse in (True, False):
        optimizer, variable = TABLE[name].make(**clipping), keras.Variable(table, name="table")
        optimizer.build([variable])

        def step(optimizer=optimizer, sparse=sparse):
            gradient = tf.IndexedSlices(tf.constant(entries), tf.constant(rows), tf.constant(table.shape))
            optimizer.apply([gradient if sparse else tf.constant(dense)])

        if execution != "eager":
            step = tf.function(step, jit_compile=execution == "xla", autograph=False)
        for _ in range(3):
            step()
        results.append(values(variable))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-6, atol=1e-9)


@ALL
def test_missing_gradients_are_passed_over(name):
    optimizer = TABLE[name].make()
    variables = [keras.Variable([1.0, 2.0]), keras.Variable([3.0, 4.0])]
    optimizer.build(variables)
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([tf.constant([1.0, -1.0]), None])
    np.testing.assert_array_equal(values(variables[1]), [3.0, 4.0])
    assert (values(variables[0]) != [1.0, 2.0]).all()


@ALL
def test_no_gradients_at_all_is_an_error_and_an_empty_list_nothing(name):
    optimizer = TABLE[name].make()
    variable = keras.Variable([1.0])
    optimizer.build([variable])
    optimizer.apply([])
    assert int(optimizer.iterations) == 0
    with pytest.raises(ValueError, match="No gradients"):
        optimizer.apply([None])


@ALL
def test_unknown_variables_are_refused(name):
    optimizer = TABLE[name].make()
    optimizer.build([keras.Variable([1.0])])
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply([tf.constant([1.0])], [keras.Variable([2.0])])


@ALL
def test_constraints_apply_after_the_step(name):
    variable = keras.Variable([[3.0, 4.0]])
    variable.constraint = keras.constraints.MaxNorm(1.0, axis=1)
    optimizer = TABLE[name].make()
    optimizer.apply([tf.constant([[0.1, -0.1]])], [variable])
    assert np.linalg.norm(values(variable)) <= 1.0 + 1e-6


@ALL
def test_variables_that_their_gradient_overwrites_get_no_state(name):
    """Keras keeps the scales of float8 layers this way."""
    scale, kernel = keras.Variable([5.0]), keras.Variable([1.0, 2.0])
    scale.overwrite_with_gradient = True
    optimizer = TABLE[name].make()
    optimizer.build([scale, kernel])
    optimizer.apply([tf.constant([7.0]), tf.constant([1.0, 0.5])])
    np.testing.assert_array_equal(values(scale), [7.0])
    assert (values(kernel) != [1.0, 2.0]).all()
    assert not any(v.shape == (1,) for v in optimizer.variables)


@EXECUTIONS
@SOME
def test_a_non_finite_gradient_shows(name, execution):
    """One bad entry makes every adapted variable that it belongs to NaN, and no other; never a silent zero step."""
    weights, gradients = make_problem(num_steps=1)
    optimizer, variables = TABLE[name].make(), make_variables(weights, "float32")
    optimizer.build(variables)
    starts = [values(variable) for variable in (*variables, *optimizer.variables)]
    step = compiled(optimizer, execution)
    for bad in (np.nan, np.inf, -np.inf):
        for variable, start in zip((*variables, *optimizer.variables), starts, strict=True):
            variable.assign(start)
        gradients[0][0][3, 4] = gradients[0][1][2, 2] = bad
        step([tf.constant(gradient, tf.float32) for gradient in gradients[0]])
        actual = [values(variable) for variable in variables]
        assert not np.isfinite(actual[0]).any(), bad
        assert not np.isfinite(actual[1]).any(), bad
        assert all(np.isfinite(a).all() for a in actual[2:]), bad


@pytest.mark.parametrize("name", ["fromage", "fromage_p_bound"])
def test_keras_weight_decay_is_decoupled(name):
    weights, gradients = make_problem()
    rate = TABLE[name].learning_rate
    actual = run(TABLE[name].make(weight_decay=0.1), weights, gradients)
    oracle = TABLE[name].make_oracle()
    oracle.step(weights, gradients[0], rate)  # remembers the initial norms
    for grads in gradients:
        weights = oracle.step([w - 0.1 * rate * w for w in weights], grads, rate)
    assert max(relative_errors(actual, weights)) < TOLERANCE


@pytest.mark.parametrize("name", ["fromage", "lars_decay"])
def test_exclude_from_weight_decay_works_before_build(name):
    excluded = {"var_names": ["kernel"]}
    weights, gradients = make_problem()
    results = {}
    for key in ("with", "excluded", "without"):
        optimizer = TABLE[name].make(weight_decay=0.0 if key == "without" else 0.3)
        if key == "excluded":
            optimizer.exclude_from_weight_decay(**excluded)
        results[key] = run(optimizer, weights, gradients)
    kernel, conv = 1, 4
    np.testing.assert_array_equal(results["excluded"][kernel], results["without"][kernel])
    np.testing.assert_array_equal(results["excluded"][conv], results["with"][conv])
    assert (results["with"][kernel] != results["without"][kernel]).any()


@ALL
def test_tensorflow_variables_are_taken_too(name):
    """A `tf.Variable` has a name but no path, and steps like a Keras variable."""
    weights, gradients = make_problem(num_steps=2)
    for dtype in ("float32", "float16"):
        expected = run(TABLE[name].make(), weights, gradients, dtype, "eager")
        variables = [tf.Variable(w, dtype=dtype, name=f"v{i}") for i, w in enumerate(weights)]
        optimizer = TABLE[name].make()
        for grads in gradients:
            optimizer.apply_gradients(zip([tf.cast(g, dtype) for g in grads], variables, strict=True))
        for variable, wanted in zip(variables, expected, strict=True):
            np.testing.assert_allclose(variable.numpy().astype("float64"), wanted, rtol=1e-6)


@ALL
def test_gradients_of_unknown_shape(name):
    start = np.arange(10, dtype="float32").reshape(5, 2) - 3
    results = []
    for signature in (tf.TensorSpec((5, 2)), tf.TensorSpec((None, 2)), tf.TensorSpec(None)):
        variable, optimizer = keras.Variable(start), TABLE[name].make()
        optimizer.build([variable])
        tf.function(lambda g, o=optimizer: o.apply([g]), input_signature=[signature], autograph=False)(tf.ones((5, 2)))
        results.append(values(variable))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@ALL
def test_sparse_gradients_that_do_not_know_their_shape(name):
    results = []
    for shape in (None, tf.constant([5, 2])):
        variable, optimizer = keras.Variable(np.ones((5, 2), "float32")), TABLE[name].make()
        optimizer.apply([tf.IndexedSlices(tf.ones((2, 2)), tf.constant([1, 1]), shape)], [variable])
        results.append(values(variable))
    np.testing.assert_array_equal(results[0], results[1])
    assert (results[0][1] < results[0][0]).all()


@EXECUTIONS
@pytest.mark.parametrize("name", ["fromage", "lars", "larc"])
def test_a_non_finite_gradient_shows_in_a_variable_of_zeros_too(name, execution):
    weights, gradients = make_problem(num_steps=1)
    gradients[0][0][0, 0] = gradients[0][2][1] = np.inf
    actual = run(TABLE[name].make(), [np.zeros_like(w) for w in weights], gradients, execution=execution)
    assert np.isnan(actual[0]).all()
    assert np.isnan(actual[2]).all()
    assert np.isfinite(actual[1]).all()


def test_weight_decay_of_lars_can_change_between_steps():
    variable = keras.Variable([1.0, 2.0])
    optimizer = TABLE["lars_no_momentum"].make(weight_decay=0.0)
    optimizer.apply([tf.zeros(2)], [variable])
    np.testing.assert_array_equal(values(variable), [1.0, 2.0])
    optimizer.weight_decay = 0.5
    optimizer.apply([tf.zeros(2)], [variable])
    np.testing.assert_allclose(values(variable), [0.5, 1.0])
