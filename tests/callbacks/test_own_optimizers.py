"""What is measured in models whose `train_step` has optimizers of its own, several, or none."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt.callbacks import (
    Convexity,
    GradientBreakdown,
    GradientNoiseScale,
    WarmupLearningRate,
    WeightNorms,
)

SGD = keras.optimizers.SGD
X = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
Y = np.random.default_rng(1).normal(size=(16, 2)).astype("float32")
LAMBDA_MAX = np.linalg.eigvalsh(X.T.astype("float64") @ X / 16).max()  # of the mean over 16 rows and 2 outputs, doubled
OUTSIDE = SGD(0.02)


class Linear(keras.Model):
    """A linear model that trains as `take(model, gradients)` says, where `gradients()` computes them."""

    def __init__(self, take, own=(), use_bias=False, pretrained=None):
        super().__init__()
        start = keras.initializers.RandomNormal(seed=0)
        self.dense = keras.layers.Dense(2, use_bias=use_bias, kernel_initializer=start)
        self.pretrained = pretrained
        self.take, self.own = take, list(own)
        self.clock = tf.Variable(0, trainable=False)

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        x, y = data

        def gradients():
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
            return tape.gradient(loss, self.trainable_variables)

        self.take(self, gradients)
        self.clock.assign_add(1)
        return {"loss": self.compute_loss(x, y, self(x, training=True))}


def one(model, gradients):
    model.own[0].apply(gradients(), model.trainable_variables)


def two(model, gradients):
    for optimizer in model.own:
        optimizer.apply(gradients(), model.trainable_variables)


def compiled(model, gradients):
    model.optimizer.apply(gradients(), model.trainable_variables)


def compiled_twice(model, gradients):
    compiled(model, gradients)
    compiled(model, gradients)


def compiled_and_own(model, gradients):
    compiled(model, gradients)
    one(model, gradients)


def three_to_one(model, gradients):
    for number in (0, 0, 0, 1):
        model.own[number].apply(gradients(), model.trainable_variables)


def by_turns(model, gradients):
    first, second = model.own
    variables = model.trainable_variables
    tf.cond(
        model.clock % 2 == 0,
        lambda: [first.apply(gradients(), variables), tf.constant(0)][1],
        lambda: [second.apply(gradients(), variables), tf.constant(0)][1],
    )


def rarely_compiled(model, gradients):
    one(model, gradients)
    tf.cond(model.clock % 4 == 3, lambda: [compiled(model, gradients), tf.constant(0)][1], lambda: tf.constant(0))


def by_hand(model, gradients):
    for variable, gradient in zip(model.trainable_variables, gradients(), strict=True):
        variable.assign_sub(0.02 * gradient)


def from_outside(model, gradients):
    OUTSIDE.apply(gradients(), model.trainable_variables)


def made_late(model, gradients):
    if not model.own:
        model.own.append(SGD(0.02))
    one(model, gradients)


def accumulating():
    return [SGD(0.02, gradient_accumulation_steps=2)]


# name -> how it trains, its own optimizers, the compiled one, and steps of a batch
KINDS = {
    "one of its own": (one, lambda: [SGD(0.02)], SGD, 1),
    "one of its own, None compiled": (one, lambda: [SGD(0.02)], lambda: None, 1),
    "two": (two, lambda: [SGD(0.02), SGD(0.01)], SGD, 1),
    "the compiled one": (compiled, list, lambda: SGD(0.02), 1),
    "the compiled one twice": (compiled_twice, list, lambda: SGD(0.01), 2),
    "the compiled one and another": (compiled_and_own, lambda: [SGD(0.01)], lambda: SGD(0.01), 1),
    "three to one": (three_to_one, lambda: [SGD(0.01), SGD(0.01)], SGD, 3),
    "by turns": (by_turns, lambda: [SGD(0.02), SGD(0.01)], SGD, 1),
    "the compiled one rarely": (rarely_compiled, lambda: [SGD(0.02)], lambda: SGD(0.01), 1),
    "by hand": (by_hand, list, SGD, 1),
    "by hand, None compiled": (by_hand, list, lambda: None, 1),
    "from outside": (from_outside, list, SGD, 1),
    "made late": (made_late, list, SGD, 1),
    "accumulating": (one, accumulating, SGD, 0.5),
}


def make(kind, optimizer=None):
    take, own, make_compiled, _ = KINDS[kind]
    model = Linear(take, own())
    model(X[:1])
    for each in [*model.own, *([OUTSIDE] if kind == "from outside" else [])]:
        each.built = False
        each.build(model.trainable_variables)
    model.compile(make_compiled() if optimizer is None else optimizer, "mse", jit_compile=False)
    if model.optimizer is not None:
        model.optimizer.build(model.trainable_variables)
    return model


def fit(model, callbacks, **options):
    options = {"batch_size": 4, "epochs": 3, "verbose": 0, "shuffle": False, **options}
    return model.fit(X, Y, callbacks=callbacks, **options).history


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_those_that_were_taken(kind):
    a_batch = KINDS[kind][-1]
    by_epochs, by_steps = Convexity((X, Y), eigenvalues=False), Convexity((X, Y), eigenvalues=False, every_n_steps=1)
    noise, norms = GradientNoiseScale((X, Y), every_n_epochs=1, group_size=4), WeightNorms()
    last, every = GradientBreakdown((X, Y), num_points=1), GradientBreakdown((X, Y), num_points=1, every_n_steps=1)
    fit(make(kind), [by_epochs, by_steps, noise, norms, last, every])
    all_steps = sorted({int(a_batch * batches) for batches in range(13)})
    epochs = [int(a_batch * batches) for batches in (0, 4, 8, 12)]
    assert [c.history["step"] for c in (by_epochs, noise, norms)] == [epochs] * 3
    assert by_steps.history["step"] == all_steps
    assert every.history["step"] == all_steps[1:]
    assert last.history["step"] == [all_steps[1], *epochs[1:]]
    losses = np.array(by_steps.history["convexity/loss"])
    np.testing.assert_allclose(every.history["breakdown/loss_change"], np.diff(losses), rtol=1e-3, atol=1e-6)
    assert set(by_epochs.history["convexity/loss"]) <= set(losses)
    assert (np.diff(losses) != 0).all()
    assert min(every.history["breakdown/relative_perturbation"]) > 0


def test_a_second_training_counts_on():
    for kind, steps in {"one of its own": [12, 16], "two": [12, 16], "the compiled one": [12, 16]}.items():
        model = make(kind)
        fit(model, [])
        norms = WeightNorms()
        fit(model, [norms], epochs=1)
        assert norms.history["step"] == steps, kind


def test_steps_of_a_part_that_was_trained_before_are_not_those_of_the_model():
    part = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    part.compile(SGD(0.1), "mse", jit_compile=False)
    part.fit(X, Y[:, :1], verbose=0)

    def rest(model, gradients):
        model.own[0].apply(gradients()[:1], model.dense.trainable_variables)

    model, norms = Linear(rest, [SGD(0.02)], pretrained=part), WeightNorms()
    model(X[:1])
    model.compile(SGD(), "mse", jit_compile=False)
    fit(model, [norms])
    assert norms.history["step"] == [0, 4, 8, 12]


@pytest.mark.parametrize("every", [{}, {"every_n_steps": 2}])
@pytest.mark.filterwarnings("ignore:With steps_per_execution=3")
def test_several_steps_in_one_execution(every):
    model = make("two")
    model.compile(SGD(), "mse", steps_per_execution=3, jit_compile=False)
    convexity, breakdown = Convexity((X, Y), eigenvalues=False, **every), GradientBreakdown((X, Y), **every)
    fit(model, [convexity, breakdown], epochs=2)
    assert convexity.history["step"] == ([0, 3, 4, 7, 8] if every else [0, 4, 8])
    assert breakdown.history["step"] == ([3, 4, 7, 8] if every else [3, 4, 8])


class Interrupt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["one of its own", "two", "by hand, None compiled", "the compiled one"])
def test_a_resumed_training_counts_on(kind):
    """With the states of callbacks alone: what a checkpoint keeps of the model is tested elsewhere."""
    model, callbacks = make(kind), [WeightNorms(), Convexity((X, Y), eigenvalues=False)]
    with pytest.raises(KeyboardInterrupt):
        fit(model, [*callbacks, Interrupt()])
    states = [callback.get_state() for callback in callbacks]

    class Restore(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            for callback, state in zip(resumed, states, strict=True):
                callback.set_state(state)

    resumed = [WeightNorms(), Convexity((X, Y), eigenvalues=False)]
    fit(model, [*resumed, Restore()], initial_epoch=2)
    assert [callback.history["step"] for callback in resumed] == [[0, 4, 8, 12]] * 2


# --- the stability limit


def stability(kind, optimizer=None):
    convexity = Convexity((X, Y), spectrum_every_n_epochs=1)
    history = fit(make(kind, optimizer), [convexity])
    names = ("hessian/learning_rate_times_lambda_max", "hessian/stability_limit")
    return [convexity.history.get(name) for name in names], [history.get(name) for name in names]


@pytest.mark.parametrize(("kind", "rate"), [("one of its own", 0.02), ("the compiled one", 0.02), ("made late", 0.02)])
def test_the_rate_is_that_of_the_optimizer_that_steps(kind, rate):
    (products, limits), (logged, _) = stability(kind)
    assert np.isnan([products[0], limits[0]]).all()  # nobody knows before the first step
    assert products[2:] == pytest.approx([rate * LAMBDA_MAX] * 2, rel=1e-4)
    assert limits[2:] == [2.0] * 2
    assert len(logged) == 3


@pytest.mark.parametrize("kind", ["two", "by hand", "the compiled one and another", "by turns"])
def test_there_is_no_limit_where_no_optimizer_trains_alone(kind):
    (products, limits), (logged, _) = stability(kind, SGD(0.5))
    assert np.isnan([*products, *limits, *logged]).all()


def test_there_is_no_limit_of_an_optimizer_that_trains_a_part():
    def head_only(model, gradients):
        model.own[0].apply(gradients()[1:], model.trainable_variables[1:])

    model = Linear(head_only, [SGD(0.02)], use_bias=True)
    model(X[:1])
    model.compile(SGD(), "mse", jit_compile=False)
    convexity = Convexity((X, Y), spectrum_every_n_epochs=1)
    fit(model, [convexity])
    assert np.isnan(convexity.history["hessian/stability_limit"]).all()


def test_an_optimizer_of_variables_that_are_not_the_models_does_not_count():
    def with_temperature(model, gradients):
        compiled(model, gradients)
        for _ in range(2):
            model.own[0].apply([tf.constant(1.0)], [temperature])

    temperature = tf.Variable(1.0)
    model = Linear(with_temperature, [SGD(0.1)])
    model(X[:1])
    model.own[0].build([temperature])
    model.compile(SGD(0.02), "mse", jit_compile=False)
    convexity = Convexity((X, Y), spectrum_every_n_epochs=1)
    fit(model, [convexity])
    assert convexity.history["step"] == [0, 4, 8, 12]
    product = convexity.history["hessian/learning_rate_times_lambda_max"][-1]
    assert product == pytest.approx(0.02 * LAMBDA_MAX, rel=1e-4)


def test_keras_own_step_is_known_to_use_the_compiled_optimizer():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, use_bias=False)])
    model.own = SGD(7.0)
    model.compile(SGD(0.02), "mse", jit_compile=False)
    convexity = Convexity((X, Y))
    fit(model, [convexity], epochs=1)
    assert convexity.history["hessian/learning_rate_times_lambda_max"][0] == pytest.approx(0.02 * LAMBDA_MAX, rel=1e-4)


# --- warm-up, and models that cannot be called


def test_the_warm_up_of_an_optimizer_that_does_not_step_is_refused():
    with pytest.raises(ValueError, match="the train_step of Linear has taken no step with it in this epoch"):
        fit(make("one of its own"), [WarmupLearningRate(2)])
    for kind in ("the compiled one", "the compiled one rarely"):
        assert len(fit(make(kind), [WarmupLearningRate(2, 0.5)])["learning_rate"]) == 3
    with pytest.raises(ValueError, match="needs an optimizer with a number as its learning rate. Received: .*None"):
        fit(make("by hand, None compiled"), [WarmupLearningRate(2)])


class Parts(keras.Model):
    """Without a call()."""

    def __init__(self):
        super().__init__()
        self.coder = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        self.decoder = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])

    def train_step(self, x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self.decoder(self.coder(x)) - x))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}


@pytest.mark.parametrize("measurement", [Convexity, GradientBreakdown, GradientNoiseScale])
def test_a_model_without_a_call_is_refused_by_name(measurement):
    model = Parts()
    model.compile("sgd", "mse", jit_compile=False)
    with pytest.raises(
        ValueError, match=rf"{measurement.__name__} cannot measure Parts, .* no call\(\).*call\(inputs\)"
    ):
        model.fit(X, verbose=0, callbacks=[measurement((X, X))])
    assert int(model.optimizer.iterations) == 0


def test_what_needs_no_call_works_without():
    model, norms = Parts(), WeightNorms()
    model.compile("sgd", "mse", jit_compile=False)
    model.fit(X, batch_size=4, epochs=2, verbose=0, callbacks=[norms])
    assert (norms.history["epoch"], norms.history["step"]) == ([0, 1, 2], [0, 4, 8])
    assert len(norms.history["norms"][0]) == 4


def test_a_model_with_a_call_of_an_instance_or_a_functional_base_is_measured():
    inputs = keras.Input((3,))
    functional = type("Own", (keras.Model,), {})(inputs, keras.layers.Dense(2)(inputs))
    functional.compile("sgd", "mse", jit_compile=False)
    convexity = Convexity((X, Y), eigenvalues=False)
    fit(functional, [convexity], epochs=1)
    assert convexity.history["convexity/loss"][-1] == pytest.approx(functional.evaluate(X, Y, verbose=0), rel=1e-4)
