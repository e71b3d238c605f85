"""Which optimizers belong to a model, wherever its author has put them."""

import functools
import types

import keras
import pytest
import tensorflow as tf

from tfopt.callbacks._optimizers_of import optimizers_of
from tfopt.distributed import DistributedOptimizer

SGD = keras.optimizers.SGD
GLOBAL, optimizer = SGD(), SGD()  # the second has the name of an attribute, and no method uses it


def make(**attributes):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)
            for name, value in attributes.items():
                setattr(self, name, value)

        def call(self, x):
            return self.dense(x)

    return Own()


def compiled(optimizer):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizer, "mse")
    return model


class Holder:
    def __init__(self, inner):
        self.inner = inner


class ReadsAGlobal(keras.Model):
    def train_step(self, data):
        return [self.helper() for _ in range(1)]

    def helper(self):
        return [GLOBAL.apply for _ in range(1)], self.optimizer


A, B = SGD(), SGD()
PLACES = {
    "an attribute": (lambda: {"own": A, "_hidden": B}, {"own": A, "_hidden": B}),
    "a list": (lambda: {"all": [A, B]}, {"all[0]": A, "all[1]": B}),
    "nested": (lambda: {"all": {"g": (A,), "d": [{1: B}]}}, {"all['g'][0]": A, "all['d'][0][1]": B}),
    "one twice": (lambda: {"first": A, "second": [A]}, {"first": A}),
    "a compiled part": (lambda: {"part": compiled(A)}, {"part.optimizer": A}),
    "a list of parts": (
        lambda: {"parts": [compiled(A), compiled(B)]},
        {"parts[0].optimizer": A, "parts[1].optimizer": B},
    ),
    "an object": (lambda: {"holder": Holder([A])}, {"holder.inner[0]": A}),
    "a namespace": (lambda: {"both": types.SimpleNamespace(g=A, d=B)}, {"both.g": A, "both.d": B}),
    "a closure": (lambda: {"step": lambda: A}, {"A in step": A}),
    "a compiled function": (lambda: {"step": tf.function(lambda: A)}, {"A in step": A}),
    "a partial function": (lambda: {"step": functools.partial(print, A)}, {"step[0]": A}),
}


@pytest.mark.parametrize("place", PLACES)
def test_places(place):
    make_attributes, expected = PLACES[place]
    model = make(**make_attributes())
    assert dict(optimizers_of(model)) == expected
    model.compile(compiled_with := SGD(), "mse")
    found = optimizers_of(model)
    assert found[0] == ("optimizer", compiled_with)
    assert dict(found[1:]) == expected


def test_optimizers_that_methods_use_from_outside():
    assert [optimizer for _, optimizer in optimizers_of(ReadsAGlobal())] == [GLOBAL]


def test_of_sequential_and_functional_models():
    inner = make(own=A)
    inputs = keras.Input((2,))
    for model in (keras.Sequential([keras.Input((2,)), inner]), keras.Model(inputs, inner(inputs))):
        assert [optimizer for _, optimizer in optimizers_of(model)] == [A]


class Lookahead(keras.optimizers.Optimizer):
    def __init__(self, base):
        super().__init__(0.1)
        self.base = base


WRAPPERS = {
    "loss scale": keras.optimizers.LossScaleOptimizer,
    "distributed": DistributedOptimizer,
    "several": lambda inner: keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(inner)),
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_wrapper_stands_for_what_is_inside(kind):
    inner = SGD()
    wrapper = WRAPPERS[kind](inner)
    model = make(inner=inner)
    model.compile(wrapper, "mse")
    assert optimizers_of(model) == [("optimizer", wrapper)]
    assert len(optimizers_of(make(inner=inner, wrapper=wrapper))) == 1


def test_what_a_wrapper_does_not_hold_the_variables_of_is_named_too():
    inner = SGD()
    model = make()
    model.compile(wrapper := Lookahead(inner), "mse")
    assert optimizers_of(model) == [("optimizer", wrapper), ("optimizer.base", inner)]


def test_none():
    model = make()
    model.compile(None, "mse")
    assert optimizers_of(model) == []
