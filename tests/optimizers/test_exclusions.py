"""Exclusions from weight decay: they count before the first step; later ones are refused unless they change nothing."""

import inspect
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from trajectories import values

from tfopt._weight_decay import takes_weight_decay
from tfopt.distributed import DistributedOptimizer
from tfopt.optimizers import LARS, Fromage

# How an optimizer is made, and which part of it is asked to exclude variables.
MAKERS = {
    "fromage": lambda: Fromage(weight_decay=0.1),
    "lars": lambda: LARS(weight_decay=0.1),
    "lars_by_pattern": lambda: LARS(weight_decay=0.1, weight_decay_exclude=["never"]),
    "distributed_fromage": lambda: DistributedOptimizer(Fromage(weight_decay=0.1)),
    "distributed_lars": lambda: DistributedOptimizer(LARS(weight_decay=0.1)),
    "distributed_adam": lambda: DistributedOptimizer(keras.optimizers.Adam(weight_decay=0.1)),
    "distributed_scaled_adam": lambda: DistributedOptimizer(
        keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(weight_decay=0.1))
    ),
    "distributed_scaled_lars": lambda: DistributedOptimizer(
        keras.optimizers.LossScaleOptimizer(LARS(weight_decay=0.1))
    ),
}
ALL = pytest.mark.parametrize("name", MAKERS)


def make_variables():
    return [keras.Variable([1.0, 2.0], name=name) for name in ("kernel", "bias", "gamma")]


def step(optimizer, variables):
    scale = float(getattr(optimizer, "initial_scale", 1.0))  # loss scaling divides by it
    optimizer.apply([tf.constant([0.5 * scale, -0.1 * scale])] * 3, variables)


@ALL
def test_exclusions_before_the_first_step_count(name):
    variables, untouched = make_variables(), make_variables()
    optimizer, other = MAKERS[name](), MAKERS[name]()
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    step(optimizer, variables)
    step(other, untouched)
    assert (values(variables[1]) != values(untouched[1])).any()
    np.testing.assert_array_equal(values(variables[0]), values(untouched[0]))
    np.testing.assert_array_equal(values(variables[2]), values(untouched[2]))


CHANGING = {
    "another name": lambda variables: {"var_names": ["gamma"]},
    "another variable": lambda variables: {"var_list": [variables[0]]},
    "one more name": lambda variables: {"var_names": ["bias", "kernel"]},
    "one more variable": lambda variables: {"var_list": variables[:2], "var_names": ["bias"]},
}
IDLE = {
    "the same": lambda variables: {"var_names": ["bias"]},
    "the same by variable": lambda variables: {"var_list": [variables[1]]},
    "nothing": lambda variables: {},
    "none that it has": lambda variables: {"var_names": ["embedding"], "var_list": [keras.Variable([1.0])]},
}


@pytest.mark.parametrize("is_traced", [False, True])
@ALL
def test_later_ones_are_refused_unless_they_change_nothing(name, is_traced):
    variables, expected = make_variables(), make_variables()
    optimizer, other = MAKERS[name](), MAKERS[name]()
    for one in (optimizer, other):
        one.exclude_from_weight_decay(var_names=["bias"])
    take = tf.function(lambda: step(optimizer, variables), autograph=False) if is_traced else None
    for _ in range(2):
        (take or (lambda: step(optimizer, variables)))()
        step(other, expected)
        for arguments in CHANGING.values():
            with pytest.raises(ValueError, match=r"must be called before the first step.*(kernel|gamma)"):
                optimizer.exclude_from_weight_decay(**arguments(variables))
        for arguments in IDLE.values():
            optimizer.exclude_from_weight_decay(**arguments(variables))
    for one, two in zip(variables, expected, strict=True):
        np.testing.assert_allclose(values(one), values(two), rtol=1e-6)


NONSENSE = [
    ({"var_names": "bias"}, TypeError, "`var_names` must be a list of"),  # Keras takes its letters one by one
    ({"var_names": ["bias", 3]}, TypeError, "`var_names` must be a list of .* Received an element 3"),
    ({"var_names": ["bias", "("]}, ValueError, r"`var_names` holds '\(', which is not a regular expression"),
    ({"var_list": keras.Variable([1.0])}, TypeError, "`var_list` must be a list of"),
    ({"var_list": [3]}, TypeError, "`var_list` must be a list of variables. Received an element 3"),
    ({"var_list": [np.ones(2)]}, TypeError, "`var_list` must be a list of variables. Received an element array"),
    ({"var_list": ["bias"]}, TypeError, "`var_list` must be a list of variables. Received an element 'bias'"),
]


@ALL
def test_exclusions_must_be_lists_of_variables_or_patterns(name):
    optimizer = MAKERS[name]()
    for when in ("early", "late"):
        for arguments, kind, message in NONSENSE:
            with pytest.raises(kind, match=message):
                optimizer.exclude_from_weight_decay(**arguments)
        if when == "early":
            optimizer.build(make_variables())


# Patterns, and which of "Kernel", "bias", "aa_bb" they exclude. Joined by "|", most of them match something else.
PATTERNS = [
    (["bias", "(?i)kernel"], ["Kernel", "bias"]),
    (["(?i)KERNEL", "BIAS"], ["Kernel"]),
    (["(?x) b i a s  # of layers", "Kernel"], ["Kernel", "bias"]),
    ([r"(z)", r"(a)\1"], ["aa_bb"]),
    ([r"(?P<n>b)\1", r"(?P<n>K)er"], ["Kernel", "aa_bb"]),
    (["x|bias$", "^Ker"], ["Kernel", "bias"]),
    (["", "never"], ["Kernel", "bias", "aa_bb"]),
    ([], []),
]


@pytest.mark.parametrize(("patterns", "excluded"), PATTERNS)
@ALL
def test_each_pattern_is_searched_for_by_itself(name, patterns, excluded):
    variables = [keras.Variable([1.0, 2.0], name=n) for n in ("Kernel", "bias", "aa_bb")]
    optimizer = MAKERS[name]()
    for again in (["Kernel", "bias"], patterns):  # the last call counts
        optimizer.exclude_from_weight_decay(var_names=again)
    step(optimizer, variables)
    inner = optimizer.inner_optimizer if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) else optimizer
    assert [v.name for v in variables if not takes_weight_decay(inner, v)] == excluded
    optimizer.exclude_from_weight_decay(var_names=patterns)  # late, and changes nothing
    if len(excluded) < 3:
        with pytest.raises(ValueError, match="must be called before the first step"):
            optimizer.exclude_from_weight_decay(var_names=[*patterns, ".*"])


def test_the_end_of_a_path_matches_variables_of_keras_and_of_tensorflow():
    for variables in (make_variables(), [tf.Variable([1.0, 2.0], name=n) for n in ("kernel", "bias", "gamma")]):
        by_argument, by_call = LARS(weight_decay=0.1, weight_decay_exclude=["bias$"]), LARS(weight_decay=0.1)
        by_call.exclude_from_weight_decay(var_names=["bias$"])
        for optimizer in (by_argument, by_call):
            optimizer.build(variables)
            assert list(optimizer._is_decayed) == [True, False, True]


@pytest.mark.parametrize("pattern", ["(", "*", "a{99999999999999999999}", "(?P<1>a)", "b(?i)a", r"(a)\2"])
def test_a_wrong_pattern_is_named_at_the_call(pattern):
    for argument in ("layer_adaptation_exclude", "weight_decay_exclude"):
        with pytest.raises(ValueError, match=f"`{argument}` holds {re.escape(repr(pattern))}, which is not a regular"):
            LARS(**{argument: ["bias", pattern]})
    for optimizer in (LARS(), DistributedOptimizer(keras.optimizers.SGD())):
        with pytest.raises(ValueError, match=f"`var_names` holds {re.escape(repr(pattern))}, which is not a regular"):
            optimizer.exclude_from_weight_decay(var_names=["bias", pattern])


def test_exclusions_of_loss_scaling_that_have_no_effect_are_refused():
    for request in ({"var_names": ["bias"]}, {"var_list": make_variables()[:1]}):
        scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(weight_decay=0.1))
        scaled.exclude_from_weight_decay(**request)
        with pytest.raises(ValueError, match="LossScaleOptimizer .* has no effect.* on the inner optimizer"):
            DistributedOptimizer(scaled)
    DistributedOptimizer(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()))


def test_an_optimizer_with_exclusions_of_its_own_is_asked():
    class Own(keras.optimizers.SGD):
        def exclude_from_weight_decay(self, var_list=None, var_names=None):
            self.asked = var_names

    own = Own(weight_decay=0.1)
    DistributedOptimizer(own).exclude_from_weight_decay(var_names=["bias"])
    assert own.asked == ["bias"]


def test_exclusions_may_come_from_iterators():
    variables = make_variables()
    by_name, by_variable = LARS(weight_decay=0.1), LARS(weight_decay=0.1)
    by_name.exclude_from_weight_decay(var_names=iter(["bias"]))
    by_variable.exclude_from_weight_decay(var_list=(v for v in variables[1:2]))
    for optimizer in (by_name, by_variable):
        optimizer.build(variables)
        assert [takes_weight_decay(optimizer, v) for v in variables] == [True, False, True]


@pytest.mark.parametrize("make", [Fromage, LARS, lambda: Fromage(weight_decay=0.0), lambda: keras.optimizers.SGD(0.1)])
def test_where_nothing_decays_every_late_call_changes_nothing(make):
    variables = make_variables()
    optimizer = make()
    optimizer.build(variables)
    for one in (DistributedOptimizer(optimizer), *([optimizer] * isinstance(optimizer, Fromage | LARS))):
        one.exclude_from_weight_decay(var_names=["kernel"], var_list=variables)
    assert all(takes_weight_decay(optimizer, variable) for variable in variables)  # nothing was noted


LAYERS = keras.layers
SEQUENCE, IMAGE, VOLUME = (2, 8, 4), (2, 8, 8, 4), (2, 3, 3, 3, 4)
# Every layer class of Keras with a bias or a normalisation, in the forms that give parameters of rank 2 and more too.
WITH_VECTORS = {
    "Dense": [(lambda: LAYERS.Dense(3), (2, 4))],
    "EinsumDense": [(lambda: LAYERS.EinsumDense("abc,cde->abde", (None, 3, 2), bias_axes="de"), SEQUENCE)],
    **{
        f"Conv{rank}D{way}": [(lambda rank=rank, way=way: getattr(LAYERS, f"Conv{rank}D{way}")(3, 2), shape)]
        for rank, shape in ((1, SEQUENCE), (2, IMAGE), (3, VOLUME))
        for way in ("", "Transpose")
    },
    **{
        f"{way}Conv{rank}D": [(lambda make=make, rank=rank: make(rank), shape)]
        for rank, shape in ((1, SEQUENCE), (2, IMAGE))
        for way, make in (
            ("Depthwise", lambda rank: getattr(LAYERS, f"DepthwiseConv{rank}D")(2)),
            ("Separable", lambda rank: getattr(LAYERS, f"SeparableConv{rank}D")(3, 2)),
        )
    },
    "GRU": [(lambda: LAYERS.GRU(3), SEQUENCE), (lambda: LAYERS.GRU(3, reset_after=False), SEQUENCE)],
    "LSTM": [(lambda: LAYERS.LSTM(3), SEQUENCE)],
    "SimpleRNN": [(lambda: LAYERS.SimpleRNN(3), SEQUENCE)],
    "GRUCell": [(lambda: LAYERS.RNN([LAYERS.GRUCell(3), LAYERS.GRUCell(2)]), SEQUENCE)],
    "LSTMCell": [(lambda: LAYERS.RNN(LAYERS.LSTMCell(3)), SEQUENCE)],
    "SimpleRNNCell": [(lambda: LAYERS.RNN(LAYERS.SimpleRNNCell(3)), SEQUENCE)],
    "Bidirectional": [(lambda: LAYERS.Bidirectional(LAYERS.GRU(3)), SEQUENCE)],
    **{
        f"ConvLSTM{rank}D": [(lambda rank=rank: getattr(LAYERS, f"ConvLSTM{rank}D")(3, 2), (2, 2, *shape[1:]))]
        for rank, shape in ((1, SEQUENCE), (2, IMAGE), (3, VOLUME))
    },
    "MultiHeadAttention": [(lambda: LAYERS.MultiHeadAttention(2, 3), SEQUENCE, SEQUENCE)],
    "GroupQueryAttention": [(lambda: LAYERS.GroupQueryAttention(3, 4, 2), SEQUENCE, SEQUENCE)],
    "BatchNormalization": [(lambda axis=axis: LAYERS.BatchNormalization(axis), IMAGE) for axis in (-1, 1)],
    "LayerNormalization": [(lambda axis=axis: LAYERS.LayerNormalization(axis), SEQUENCE) for axis in (-1, (1, 2))],
    "GroupNormalization": [(lambda: LAYERS.GroupNormalization(2), IMAGE)],
    "RMSNormalization": [(lambda axis=axis: LAYERS.RMSNormalization(axis), SEQUENCE) for axis in (-1, (1, 2))],
    "SpectralNormalization": [(lambda: LAYERS.SpectralNormalization(LAYERS.Dense(3)), (2, 4))],
}


def test_the_table_has_every_layer_of_keras_with_a_bias_or_an_offset():
    kinds = {kind for kind in vars(LAYERS).values() if isinstance(kind, type) and issubclass(kind, LAYERS.Layer)}
    found = {k for k in kinds if {"use_bias", "bias_axes", "center"} & {*inspect.signature(k).parameters}}
    assert found
    assert found <= {getattr(LAYERS, name) for name in WITH_VECTORS}


@pytest.mark.parametrize("name", WITH_VECTORS)
def test_vectors_are_all_biases_and_parameters_of_normalisation(name):
    """Excluded variables take the plain step w - rate * g; kernels do not."""
    rng = np.random.default_rng(0)
    for make, *shapes in WITH_VECTORS[name]:
        layer = make()
        layer(*(np.zeros(shape, "float32") for shape in shapes))
        layer.set_weights([1.0 + rng.random(w.shape) for w in layer.weights])
        variables, names = layer.trainable_variables, {v.name for v in layer.trainable_variables}
        assert names & {"bias", "gamma", "beta", "scale"}
        optimizer = LARS(0.5, 0.0, weight_decay=0.1, weight_decay_exclude="vectors", layer_adaptation_exclude="vectors")
        gradients = [rng.standard_normal(v.shape) for v in variables]
        before = [values(v).astype("float64") for v in variables]
        optimizer.apply([tf.constant(g, "float32") for g in gradients], variables)
        for variable, old, gradient in zip(variables, before, gradients, strict=True):
            is_plain = np.allclose(values(variable), old - 0.5 * gradient, rtol=1e-5, atol=1e-6)
            assert is_plain == ("kernel" not in variable.name), variable.path


def test_vectors_by_the_name_of_a_variable_of_tensorflow():
    variables = [tf.Variable(tf.ones((2, 3)), name=n) for n in ("cell/bias", "bias/kernel", "relative_bias")]
    optimizer = LARS(layer_adaptation_exclude="vectors")
    optimizer.build(variables)
    assert list(optimizer._is_adapted) == [False, True, True]


def test_what_a_pattern_of_lars_excludes_may_be_excluded_again():
    variables = make_variables()
    optimizer = LARS(weight_decay=0.1, weight_decay_exclude=["bias"])
    optimizer.build(variables)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    DistributedOptimizer(optimizer).exclude_from_weight_decay(var_list=[variables[1]])
    with pytest.raises(ValueError, match="names 2 variables that decay \\(kernel, gamma\\)"):
        DistributedOptimizer(optimizer).exclude_from_weight_decay(var_names=["kernel", "gamma"])
