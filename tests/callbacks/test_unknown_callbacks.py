"""Callbacks that cannot say what to keep are named if training changes something in them, and only then."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt.callbacks import ResumableCheckpoint

pytestmark = pytest.mark.usefixtures("each_fit_in_its_own_process")

X = np.ones((8, 2), "float32")
Y = np.ones((8, 1), "float32")
COUNTS = {"epochs": 0}


class Monitor(keras.callbacks.Callback):
    """As the GAN examples of Keras have it: numbers that say what to show, and nothing that changes."""

    def __init__(self, num_img=3, latent_dim=2):
        super().__init__()
        self.num_img, self.latent_dim = num_img, latent_dim
        self.noise = np.zeros((num_img, latent_dim))
        self.probe = keras.layers.Dense(1)

    def on_train_begin(self, logs=None):
        self.shown = []

    def on_epoch_end(self, epoch, logs=None):
        self.probe(np.zeros((1, 2)))
        self.model.predict(self.noise, verbose=0)


class Counting(Monitor):
    def on_epoch_end(self, epoch, logs=None):
        self.num_img += 1


class Gathering(Monitor):
    def on_epoch_end(self, epoch, logs=None):
        self.shown.append(object())


class Drawing(Monitor):
    def __init__(self):
        super().__init__()
        self.generator = np.random.default_rng(0)

    def on_epoch_end(self, epoch, logs=None):
        self.generator.random()


class DrawingByKeras(Monitor):
    def __init__(self):
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(42)

    def on_epoch_end(self, epoch, logs=None):
        keras.random.normal((1,), seed=self.seed_generator)


class DrawingByTensorFlow(Monitor):
    def __init__(self):
        super().__init__()
        self.random = tf.random.Generator.from_seed(42)

    def on_epoch_end(self, epoch, logs=None):
        self.random.normal((1,))


class Averaging(Monitor):
    def __init__(self):
        super().__init__()
        self.metric, self.variable = keras.metrics.Mean(), keras.Variable(0.0)
        self.metric.update_state(0.0)

    def on_epoch_end(self, epoch, logs=None):
        self.metric.update_state(1.0)
        self.variable.assign_add(1.0)


class Held:
    steps = 0


class Holding(Monitor):
    def __init__(self):
        super().__init__()
        self.held = Held()

    def on_epoch_end(self, epoch, logs=None):
        self.held.steps += 1


class Global(Monitor):
    def on_epoch_end(self, epoch, logs=None):
        COUNTS["epochs"] += 1


class Meter:
    def __init__(self):
        self.total, self.rows = 0, []

    def update(self):
        self.total += 1
        self.rows.append(object())

    __call__ = update


METER, METERS, BOX = Meter(), {"loss": Meter()}, Meter()


def change_counts():
    COUNTS["epochs"] += 1


def change_box():
    BOX.total += 1


class OfAnObject(Monitor):
    def on_epoch_end(self, epoch, logs=None):
        METER.update()


class OfObjects(Monitor):
    def on_epoch_end(self, epoch, logs=None):
        METERS["loss"]()


class OfAFunction(Monitor):
    def on_epoch_end(self, epoch, logs=None):
        change_counts()


class OfItsFunction(Monitor):
    def __init__(self):
        super().__init__()
        self.function = change_box

    def on_epoch_end(self, epoch, logs=None):
        self.function()


class Calling(Monitor):
    def __init__(self):
        super().__init__()
        self.meter = Meter()

    def on_epoch_end(self, epoch, logs=None):
        self.meter()


class Stopping(keras.callbacks.EarlyStopping):
    def __init__(self):
        super().__init__("loss")
        self.probe, self.shown = keras.layers.Dense(1), 0

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        self.shown += 1


class OfTheClass(Monitor):
    best = 0

    def on_epoch_end(self, epoch, logs=None):
        type(self).best += 1


class Later(Monitor):
    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1:
            self.num_img = 0


def fit(folder, callback):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=False)
    callbacks = [callback, ResumableCheckpoint(folder, verbose=0)]
    model.fit(X, Y, shuffle=False, epochs=3, verbose=0, callbacks=callbacks)


def test_callbacks_in_which_nothing_changes_are_accepted_in_silence(tmp_path):
    callback = Monitor()
    callback.probe.build((1, 2))
    fit(tmp_path, callback)  # a warning would be an error here
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (Counting, "num_img"),
        (Gathering, "shown"),
        (Drawing, "generator"),
        (DrawingByKeras, "seed_generator"),
        (DrawingByTensorFlow, "random"),
        (Averaging, "metric, variable"),
        (Holding, "held"),
        (Global, "COUNTS in .*test_unknown_callbacks"),
        (OfAnObject, "METER in OfAnObject.on_epoch_end.total, METER in OfAnObject.on_epoch_end.rows"),
        (OfObjects, r".*METERS in OfObjects.on_epoch_end\['loss'\].total"),
        (OfAFunction, "COUNTS in .*test_unknown_callbacks"),
        (OfItsFunction, "BOX in OfItsFunction.function.total"),
        (Calling, "meter"),
        (Stopping, "shown(?= there)"),
        (OfTheClass, "best in OfTheClass"),
        (Later, "num_img"),
    ],
)
def test_what_training_changes_is_named(make, what, tmp_path):
    callback = make()
    callback.probe.build((1, 2))
    message = f"callback {make.__name__}: training has changed {what}.* there.*stateless="
    with pytest.warns(UserWarning, match=message):
        fit(tmp_path, callback)
