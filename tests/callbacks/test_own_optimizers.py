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
        self.sums = [tf.Variable(tf.zeros((3, 2)), trainable=False)]

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


def by_hand_every_second(model, gradients):
    for variable, gradient in zip(model.trainable_variables, gradients(), strict=True):
        variable.assign_sub(tf.where(model.clock % 2 == 1, 0.02, 0.0) * gradient)


def accumulating_by_hand(model, gradients):
    variables = model.trainable_variables
    for kept, gradient in zip(model.sums, gradients(), strict=True):
        kept.assign_add(gradient / 3)

    def step():
        model.optimizer.apply([tf.identity(kept) for kept in model.sums], variables)
        for kept in model.sums:
            kept.assign(tf.zeros_like(kept))
        return tf.constant(0)

    tf.cond(model.clock % 3 == 2, step, lambda: tf.constant(0))


def skipping(model, gradients):
    """As if the gradients of all batches but each third were not finite; a temperature moves in each batch."""
    bad = tf.where(model.clock % 3 == 2, 0.0, np.inf)
    found = [gradient + bad for gradient in gradients()]
    is_finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in found])
    variables = model.trainable_variables
    tf.cond(is_finite, lambda: [model.optimizer.apply(found, variables), tf.constant(0)][1], lambda: tf.constant(0))
    model.own[0].apply([tf.ones_like(model.sums[0])], model.sums)


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
    "accumulating by hand": (accumulating_by_hand, list, lambda: SGD(0.02), 1 / 3),
    "skipping": (skipping, lambda: [SGD(0.1)], lambda: SGD(0.02), 1 / 3),
}


def make(kind, optimizer=None):
    take, own, make_compiled, _ = KINDS[kind]
    model = Linear(take, own())
    model(X[:1])
    for each in [*(model.own if kind != "skipping" else []), *([OUTSIDE] if kind == "from outside" else [])]:
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
    by_epochs, by_steps = curvature(), curvature("by steps", every_n_steps=1)
    noise, norms = GradientNoiseScale((X, Y), every_n_epochs=1, group_size=4), WeightNorms()
    last, every = GradientBreakdown((X, Y), num_points=1), every_step()
    fit(make(kind), [by_epochs, by_steps, noise, norms, last, every])
    all_steps = sorted({int(a_batch * batches) for batches in range(13)})
    epochs = [int(a_batch * batches) for batches in (0, 4, 8, 12)]
    assert [c.history["step"] for c in (by_epochs, noise, norms)] == [epochs] * 3
    assert by_steps.history["step"] == all_steps
    assert every.history["step"] == all_steps[1:]
    assert last.history["step"] == sorted({all_steps[1], *epochs[1:]})
    losses = np.array(by_steps.history["by steps/loss"])
    np.testing.assert_allclose(every.history["every/loss_change"], np.diff(losses), rtol=1e-3, atol=1e-6)
    assert set(by_epochs.history["convexity/loss"]) <= set(losses)
    assert (np.diff(losses) != 0).all()
    assert min(every.history["every/relative_perturbation"]) > 0


def curvature(log_name=None, **options):
    return Convexity((X, Y), eigenvalues=False, log_name=log_name, **options)


def every_step():
    return GradientBreakdown((X, Y), num_points=1, every_n_steps=1, log_name="every")


def test_gradients_accumulated_by_hand_are_measured_as_those_that_keras_accumulates():
    found = []
    for model in (make("accumulating by hand"), keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])):
        if not isinstance(model, Linear):
            start = keras.initializers.RandomNormal(seed=0)
            layer = keras.layers.Dense(2, use_bias=False, kernel_initializer=start)
            model = keras.Sequential([keras.Input((3,)), layer])
            model.compile(SGD(0.02, gradient_accumulation_steps=3), "mse", jit_compile=False)
        callbacks = [curvature(), GradientBreakdown((X, Y), num_points=1), every_step(), WeightNorms()]
        fit(model, callbacks)
        found.append([callback.history for callback in callbacks])
    for by_hand, by_keras in zip(*found, strict=True):
        assert by_hand.keys() == by_keras.keys()
        for name, values in by_hand.items():
            if "seconds" not in name and not isinstance(values[0], dict):
                assert values == pytest.approx(by_keras[name], rel=1e-4, abs=1e-6, nan_ok=True), name


def test_batches_that_move_no_weights_are_no_steps_of_a_breakdown():
    model = Linear(by_hand_every_second)
    model(X[:1])
    model.compile(None, "mse", jit_compile=False)
    every = every_step()
    fit(model, [every])
    assert every.history["step"] == [2, 4, 6, 8, 10, 12]
    assert every.history["every/steps_spanned"] == [2] * 6
    assert min(every.history["every/relative_perturbation"]) > 0


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

LIMIT = ("hessian/learning_rate_times_lambda_max", "hessian/stability_limit")


def clipping(model, gradients):
    clipped, _ = tf.clip_by_global_norm(gradients(), 0.01)
    model.optimizer.apply(clipped, model.trainable_variables)


def sharpness_aware(model, gradients):
    variables, ascent = model.trainable_variables, [0.05 * gradient for gradient in gradients()]
    for variable, by in zip(variables, ascent, strict=True):
        variable.assign_add(by)
    found = gradients()
    for variable, by in zip(variables, ascent, strict=True):
        variable.assign_sub(by)
    model.optimizer.apply(found, variables)


@pytest.mark.parametrize("take", [compiled, clipping, sharpness_aware, by_hand])
def test_there_is_no_limit_where_a_train_step_may_change_gradients(take):
    model = Linear(take)
    model(X[:1])
    model.compile(SGD(0.02), "mse", jit_compile=False)
    convexity = Convexity((X, Y), num_matvecs=4)
    history = fit(model, [convexity], epochs=1)
    assert "hessian/lambda_max" in history
    assert not {*LIMIT} & {*history, *convexity.history}


class Loss(keras.Model):
    """Trained by Keras, with a loss of its own."""

    def __init__(self, compute):
        super().__init__()
        start = keras.initializers.RandomNormal(seed=0)
        self.dense, self.compute = keras.layers.Dense(2, use_bias=False, kernel_initializer=start), compute

    def call(self, x):
        y = self.dense(x)
        if self.compute == "added":
            self.add_loss(tf.reduce_sum(tf.square(y)))
        return y

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if self.compute == "computed":
            return tf.reduce_sum(tf.square(y - y_pred))
        return super().compute_loss(x, y, y_pred, sample_weight, training)


def summed(y, y_pred):
    return tf.reduce_sum(tf.square(y - y_pred))


LOSSES = {  # The loss of a model, what it is compiled with, and whether a batch of another size has the same loss.
    "mean": ("", "mse", True),
    "sum": ("", keras.losses.MeanSquaredError(reduction="sum"), False),
    "a function that sums": ("", summed, False),
    "computed": ("computed", None, False),
    "added": ("added", "mse", False),
}


@pytest.mark.parametrize("name", LOSSES)
def test_there_is_no_limit_where_a_loss_depends_on_the_size_of_the_batch(name):
    compute, loss, has_limit = LOSSES[name]
    model = Loss(compute)
    model(X[:1])
    model.compile(SGD(0.002), loss, jit_compile=False)
    convexity = Convexity((X, Y), num_matvecs=4)
    history = fit(model, [convexity], epochs=1)
    assert "hessian/lambda_max" in history
    for names in (history, convexity.history):
        assert {*LIMIT} & {*names} == ({*LIMIT} if has_limit else set())


def test_there_is_no_limit_where_a_constraint_moves_the_weights():
    layer = keras.layers.Dense(2, kernel_constraint=keras.constraints.UnitNorm())
    model = keras.Sequential([keras.Input((3,)), layer])
    model.compile(SGD(0.02), "mse", jit_compile=False)
    assert not {*LIMIT} & {*fit(model, [Convexity((X, Y), num_matvecs=4)], epochs=1)}


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
    norms = WeightNorms()
    fit(model, [norms])
    assert norms.history["step"] == [0, 4, 8, 12]


def test_keras_own_step_is_known_to_use_the_compiled_optimizer():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, use_bias=False)])
    model.own = SGD(7.0)
    model.compile(SGD(0.02), "mse", jit_compile=False)
    convexity = Convexity((X, Y))
    fit(model, [convexity], epochs=1)
    assert convexity.history[LIMIT[0]][0] == pytest.approx(0.02 * LAMBDA_MAX, rel=1e-4)
    assert convexity.history[LIMIT[1]] == [2.0, 2.0]


# --- warm-up, and models that cannot be called


def test_the_warm_up_of_an_optimizer_that_does_not_step_is_refused():
    with pytest.raises(ValueError, match="the training of Linear has taken no step with it in this epoch"):
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
