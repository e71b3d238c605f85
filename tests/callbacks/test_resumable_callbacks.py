"""Callbacks beside the checkpoint: wherever they stand, a resumed training has their numbers, and stays stopped."""

import csv
import functools
import gc
import shutil
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tensorboard.backend.event_processing import event_accumulator

from tfopt.callbacks import Convexity, ResumableCheckpoint
from tfopt.datasets import EpochBatches

pytestmark = pytest.mark.usefixtures("each_fit_in_its_own_process")

X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
Y = X.sum(axis=1, keepdims=True)
EPOCHS = 6


class Interrupt(keras.callbacks.Callback):
    """Stands for a machine that fails."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


class Stop(keras.callbacks.Callback):
    """Stops training in one of the ways that Keras knows."""

    def __init__(self, where):
        super().__init__()
        setattr(self, where, self._stop)

    def _stop(self, number, logs=None):
        if self.model.optimizer.iterations.numpy() >= 5:
            self.model.stop_training = True


def plain(optimizer=None):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, "tanh"), layers.Dropout(0.2), layers.Dense(1)])
    optimizer = optimizer or keras.optimizers.SGD(0.01, momentum=0.9)
    model.compile(optimizer, "mse", run_eagerly=True)  # which is faster than to trace a few steps
    return model


def train(folder, make_callbacks, is_first=False, epochs=EPOCHS, interrupt=None, make=plain, **options):
    keras.utils.set_random_seed(0)
    model = make()
    checkpoint = ResumableCheckpoint(folder, stateless=[Interrupt, Stop], verbose=0)
    callbacks = [*make_callbacks(), Interrupt(interrupt)]
    callbacks = [checkpoint, *callbacks] if is_first else [*callbacks, checkpoint]
    batches = EpochBatches(X, Y, batch_size=8)
    try:
        model.fit(batches, shuffle=False, epochs=epochs, verbose=0, callbacks=callbacks, **options)
    except KeyboardInterrupt:
        return None
    bits = [np.asarray(variable).tobytes() for variable in [*model.variables, *model.optimizer.variables]]
    return bits, model.history.epoch, model.history.history, model.stop_training


def plateau():
    return [keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=2, min_delta=10.0, cooldown=1)]


def stopping():
    return [keras.callbacks.EarlyStopping("loss", patience=2, min_delta=100.0, restore_best_weights=True)]


def stopping_late():
    return [*plateau(), keras.callbacks.EarlyStopping("loss", patience=4, min_delta=100.0)]


def following(epoch, rate):
    return rate * 0.9


@pytest.mark.parametrize(
    "make",
    [
        stopping,
        stopping_late,
        lambda: [keras.callbacks.LearningRateScheduler(following)],
        lambda: [Stop("on_epoch_end")],
        lambda: [Stop("on_train_batch_end")],
        lambda: [Stop("on_epoch_begin")],
    ],
    ids=["stopping", "stopping_late", "rate", "epoch_end", "batch_end", "epoch_begin"],
)
def test_the_place_in_the_list_does_not_matter(make, tmp_path):
    whole = train(tmp_path / "whole", make)
    assert whole[3] == (len(whole[1]) < EPOCHS)
    assert train(tmp_path / "parts", make, is_first=True, interrupt=2) is None
    assert train(tmp_path / "parts", make) == whole
    epochs = EPOCHS + 2 if whole[3] else EPOCHS  # what was stopped stays so
    assert train(tmp_path / "parts", make, is_first=True, epochs=epochs) == whole


def test_a_training_that_nan_has_stopped_stays_stopped(tmp_path):
    def make():
        return [keras.callbacks.TerminateOnNaN()]

    first, again = (
        train(tmp_path, make, is_first=True, make=lambda: plain(keras.optimizers.SGD(1e19))) for _ in range(2)
    )
    assert first[1] == [0]
    assert (again[0], again[1], again[3]) == (first[0], [0], True)


def test_the_order_of_other_callbacks_can_change(tmp_path):
    whole = train(tmp_path / "whole", stopping_late)
    train(tmp_path / "parts", stopping_late, interrupt=2)
    assert train(tmp_path / "parts", lambda: stopping_late()[::-1]) == whole
    train(tmp_path / "other", stopping, interrupt=2)
    other = keras.callbacks.EarlyStopping("val_loss")
    with pytest.raises(ValueError, match="'EarlyStopping of loss'.* has .*'EarlyStopping of val_loss'"):
        train(tmp_path / "other", lambda: [other], validation_data=(X, Y))


def test_a_column_that_another_callback_adds_is_kept(tmp_path):
    adding = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(extra=float(epoch)))
    train(tmp_path, lambda: [adding], is_first=True, interrupt=2)
    assert train(tmp_path, lambda: [adding], is_first=True)[2]["extra"] == list(range(EPOCHS))


@pytest.mark.parametrize("is_first", [True, False])
def test_loggers_go_on(is_first, tmp_path):
    def make(name):
        rates = keras.callbacks.LearningRateScheduler(following)
        board = keras.callbacks.TensorBoard(tmp_path / name, update_freq=2, write_graph=False)
        now = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: tf.summary.scalar("now", 1.0))
        loggers.append(keras.callbacks.CSVLogger(tmp_path / f"{name}.csv", append=True))
        return [board, rates, now, loggers[-1]]

    loggers = []

    options = {"validation_data": (X, Y), "validation_freq": 3, "validation_batch_size": 4}
    train(tmp_path / "a", lambda: make("whole"), is_first, **options)
    train(tmp_path / "b", lambda: make("parts"), is_first, interrupt=2, **options)
    train(tmp_path / "b", lambda: make("parts"), is_first, **options)
    for logger in loggers:
        logger.csv_file.close()
    for kind in ("train", "validation"):
        steps = [
            {tag: {e.step for e in log.Tensors(tag)} for tag in log.Tags()["tensors"] if "keras" not in tag}
            for log in (read_events(tmp_path / name / kind) for name in ("whole", "parts"))
        ]
        assert steps[0] == steps[1]
    assert read_csv(tmp_path / "whole.csv") == read_csv(tmp_path / "parts.csv")


def read_events(folder):
    return event_accumulator.EventAccumulator(str(folder)).Reload()


def read_csv(path):
    with path.open() as file:
        return list(csv.reader(file))


def test_loggers_can_come_and_go(tmp_path):
    whole = train(tmp_path / "whole", stopping_late)
    log = tmp_path / "log.csv"
    for epochs, make in ((2, lambda: []), (4, lambda: [keras.callbacks.CSVLogger(log, append=True)]), (6, list)):
        last = train(tmp_path / "parts", lambda make=make: [*make(), *stopping_late()], epochs=epochs)
    assert last == whole
    assert [row[0] for row in read_csv(log)] == ["epoch", "2", "3"]


def test_a_checkpoint_inside_of_another_callback_is_refused(tmp_path):
    checkpoint = ResumableCheckpoint(tmp_path / "folder", verbose=0)

    class Wrapping(keras.callbacks.Callback):
        def set_model(self, model):
            checkpoint.set_model(model)

        def on_train_begin(self, logs=None):
            checkpoint.on_train_begin(logs)

    for outer in (Wrapping(), keras.callbacks.CallbackList([checkpoint])):
        with pytest.raises(ValueError, match=r"inside of another callback.*fit\(callbacks=...\)"):
            plain().fit(X, Y, shuffle=False, verbose=0, callbacks=[*stopping(), outer])
    assert not (tmp_path / "folder").exists()


class Holding(keras.callbacks.Callback):
    """Has a state of some kind."""

    def __init__(self, state):
        super().__init__()
        self.state = state

    def get_state(self):
        return {"state": self.state}

    def set_state(self, state):
        self.state = state["state"]


def test_states_of_any_kind_come_back(tmp_path):
    state = {0: 1.5, (1, 2): {"a"}, None: [b"x", np.array(["text"])], "tensor": tf.constant([1.0])}
    train(tmp_path, lambda: [Holding(state)], epochs=1)
    after = Holding(None)
    train(tmp_path, lambda: [after], epochs=2)
    assert repr(dict(after.state, tensor=0)) == repr(dict(state, tensor=0))
    assert after.state["tensor"].tolist() == [1.0]


def test_a_state_that_cannot_be_saved_is_named_before_the_first_step(tmp_path):
    with pytest.raises(TypeError, match="state of the callback Holding cannot be saved: .*<object.*under 'state'.*get"):
        train(tmp_path / "folder", lambda: [Holding({0: object()})], epochs=1)
    assert not (tmp_path / "folder").exists()


class Saying(keras.Model):
    """Its training step returns more than numbers."""

    def __init__(self, said):
        super().__init__()
        self.dense, self.said = layers.Dense(1), said

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        return {**super().train_step(data), **self.said()}


def saying(said, **options):
    model = Saying(said)
    model.compile("sgd", "mse", jit_compile=False, **options)
    model(X[:1])
    return model


@pytest.mark.parametrize("is_eager", [True, False])
def test_logs_of_any_kind_come_back(is_eager, tmp_path):
    def said():
        more = {"text": tf.constant("a"), "texts": tf.constant(["b", "c"]), "none": None, "array": tf.ones((2, 2))}
        return {**more, **({"python": "d"} if is_eager else {})}

    histories = []
    for stops in ((2,), (1, 2)):
        for epochs in stops:
            make = functools.partial(saying, said, run_eagerly=is_eager)
            history = train(tmp_path / str(stops), list, is_first=True, epochs=epochs, make=make)[2]
        histories.append(history)
    assert histories[0].keys() == histories[1].keys()
    for name, values in histories[0].items():
        assert list(map(str, values)) == list(map(str, histories[1][name])), name


def test_logs_that_cannot_be_saved_are_named(tmp_path):
    adding = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(thing=object()))
    with pytest.raises(TypeError, match="History cannot be saved: .*<object .*under 'thing'.*into `logs`"):
        train(tmp_path, lambda: [adding], epochs=1)


def test_a_folder_that_is_deleted_during_training_is_made_anew(tmp_path):
    folder = tmp_path / "folder"

    def deleting():
        return [keras.callbacks.LambdaCallback(on_epoch_begin=lambda e, logs: e == 3 and shutil.rmtree(folder))]

    whole = train(tmp_path / "whole", list)
    with pytest.warns(UserWarning, match="was deleted during training"):
        train(folder, deleting, interrupt=5)
    assert train(folder, list) == whole


# ---- An exception ends a `fit` without a word


def in_thread(function):
    found = []

    def call():
        try:
            found.append(function())
        except Exception as error:
            found.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return found[0]


def test_after_an_exception_any_thread_can_go_on(tmp_path):
    whole = train(tmp_path / "whole", list)
    gone_on, done = threading.Event(), []

    def fail_and_live():
        done.append(train(tmp_path / "a", list, interrupt=2))
        gone_on.wait(60)

    thread = threading.Thread(target=fail_and_live)
    thread.start()
    while not done:
        thread.join(0.01)
    try:
        assert train(tmp_path / "a", list) == whole  # while that thread lives
    finally:
        gone_on.set()
        thread.join()
    train(tmp_path / "b", list, interrupt=2)
    assert in_thread(lambda: train(tmp_path / "b", list)) == whole


def test_the_same_callback_can_go_on_after_an_exception(tmp_path):
    checkpoint = ResumableCheckpoint(tmp_path, stateless=[Interrupt], verbose=0)
    for interrupt in (1, 2, None):
        model = plain()
        options = {"shuffle": False, "epochs": 3, "verbose": 0, "callbacks": [checkpoint, Interrupt(interrupt)]}
        try:
            model.fit(X, Y, **options)
        except KeyboardInterrupt:
            assert (tmp_path / "training.lock").exists()
            assert model._initial_epoch is None  # else a `fit` without the callback would leave out epochs
    assert model.history.epoch == [0, 1, 2]
    assert [path.name[:12] for path in sorted(tmp_path.iterdir())] == ["epoch-000002", "epoch-000003"]


def test_the_lock_goes_with_the_callback(tmp_path):
    train(tmp_path, list, interrupt=2)
    gc.collect()
    assert not (tmp_path / "training.lock").exists()


class Nested(keras.callbacks.Callback):
    """Trains something else in the middle of a training."""

    def __init__(self, train):
        super().__init__()
        self.train, self.said = train, None

    def on_epoch_end(self, epoch, logs=None):
        try:
            self.train()
        except ValueError as error:
            self.said = str(error)


@pytest.mark.parametrize("is_in_thread", [True, False])
@pytest.mark.parametrize("is_same", [True, False], ids=["same_callback", "same_folder"])
def test_two_trainings_at_once_are_refused(is_same, is_in_thread, tmp_path):
    outer = ResumableCheckpoint(tmp_path, verbose=0, stateless=[Nested])
    inner = outer if is_same else ResumableCheckpoint(tmp_path, verbose=0, stateless=[Nested])

    def run():
        plain().fit(X, Y, shuffle=False, verbose=0, callbacks=[inner])

    nested = Nested(lambda: threading_run(run) if is_in_thread else run())

    def threading_run(function):
        if (said := in_thread(function)) is not None:
            raise ValueError(said)

    for epochs in (1, 2):
        nested.said = None
        plain().fit(X, Y, shuffle=False, verbose=0, epochs=epochs, callbacks=[nested, outer])
        assert ("used in another `fit`" if is_same else "Another training") in nested.said
    assert sorted(path.name[:12] for path in tmp_path.iterdir()) == ["epoch-000001", "epoch-000002"]


def test_eigenvalues_keep_their_interval_after_a_restart(tmp_path):
    data = np.ones((8, 2), "float32"), np.ones((8, 1), "float32")

    def measured(*epochs):
        for number in epochs:
            model = keras.Sequential([keras.Input((2,)), layers.Dense(1, kernel_initializer="ones")])
            model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=False)
            convexity = Convexity(data, spectrum_every_n_epochs=10, certificate=False, self_check=False)
            folder = tmp_path / str(epochs)
            callbacks = [convexity, ResumableCheckpoint(folder, verbose=0)]
            model.fit(*data, epochs=number, verbose=0, callbacks=callbacks)
        return convexity.history["epoch"], np.isfinite(convexity.history["hessian/lambda_max"]).tolist()

    epochs, is_known = measured(12)
    resumed = dict(zip(*measured(3, 12), strict=True))
    assert {epoch for epoch, known in resumed.items() if known} - {3} == {
        epoch for epoch, known in zip(epochs, is_known, strict=True) if known
    }  # the first of both trainings also ended with epoch 3
