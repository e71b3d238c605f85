"""Training that is interrupted and started again ends as if it had not been; what cannot be resumed is refused.

Several ranks are in `tests/distributed/test_ranks.py`.
"""

import functools
import random
import shutil

import keras
import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf

from tfopt.callbacks import ResumableCheckpoint, WarmupLearningRate, WeightNorms
from tfopt.datasets import EpochBatches
from tfopt.optimizers import Fromage

pytestmark = pytest.mark.usefixtures("each_fit_in_its_own_process")

EPOCHS = 7


class Interrupt(keras.callbacks.Callback):
    """Stand in for a machine that fails in the middle of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.is_near = epoch == self.epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.is_near and batch == 1:
            raise KeyboardInterrupt


def make_data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 4)).astype("float32")
    return x, x.sum(axis=1, keepdims=True)


def make_sgd():
    """It has state, and is traced in a third of the time of Adam."""
    return keras.optimizers.SGD(0.05, momentum=0.9)


def make_model(optimizer=None, deferred=False):
    layers = [
        keras.layers.Dense(5),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(1),
    ]
    model = keras.Sequential(layers if deferred else [keras.Input((4,)), *layers])
    model.compile(optimizer or make_sgd(), "mse", jit_compile=False)
    return model


def make_callbacks(has_plateau=True):
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.7, patience=2, min_delta=10.0)
    return [
        WeightNorms(),
        *[plateau] * has_plateau,
        keras.callbacks.EarlyStopping("loss", patience=EPOCHS, restore_best_weights=True),
    ]


def train(folder, interrupt_at=None, make_optimizer=make_sgd, epochs=EPOCHS, more=make_callbacks, is_built=True):
    """Train in a process that starts anew: other names, other random states."""
    keras.utils.set_random_seed(3)
    model = make_model(make_optimizer())
    if is_built:  # else `fit` builds the optimizer, and traces its step twice
        model.optimizer.build(model.trainable_variables)
    callbacks = [*more(), ResumableCheckpoint(folder, stateless=[Interrupt], verbose=0), Interrupt(interrupt_at)]
    batches = EpochBatches(*make_data(), batch_size=8, seed=5)
    try:
        model.fit(batches, shuffle=False, epochs=epochs, verbose=0, callbacks=callbacks)
    except KeyboardInterrupt:
        return None
    return {
        "variables": [np.asarray(v).tobytes() for v in [*model.variables, *model.optimizer.variables]],
        "history": model.history.history,
        "epochs": model.history.epoch,
        "norms": callbacks[0].history["epoch"] if isinstance(callbacks[0], WeightNorms) else None,
        "draws": (random.random(), np.random.rand(), float(keras.random.uniform(()))),  # noqa: NPY002
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Training that nothing interrupts."""
    return train(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda: keras.optimizers.Adam(0.05),
        lambda: Fromage(0.02, use_ema=True, ema_momentum=0.9),
        lambda: keras.optimizers.SGD(0.05, momentum=0.9, gradient_accumulation_steps=2),
        lambda: keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 4, 0.5)),
    ],
    ids=["adam", "fromage_ema", "sgd_accumulation", "schedule"],
)
def test_resumed_training_ends_in_the_same_bits(tmp_path, make_optimizer):
    is_schedule = isinstance(make_optimizer().get_config()["learning_rate"], dict)
    more = functools.partial(make_callbacks, has_plateau=not is_schedule)
    options = {"make_optimizer": make_optimizer, "more": more, "is_built": False}
    whole = train(tmp_path / "whole", **options)
    for epoch in (0, 5) if is_schedule else (5,):  # 0: before there is a checkpoint
        assert train(tmp_path / "broken", interrupt_at=epoch, **options) is None
    names = sorted(path.name for path in (tmp_path / "broken").glob("epoch-*"))
    assert names == ["epoch-000004.rank-0-of-1.npz", "epoch-000005.rank-0-of-1.npz"]
    assert train(tmp_path / "broken", **options) == whole


def test_longer_training_goes_on_from_the_last_epoch(tmp_path, whole):
    train(tmp_path / "longer", epochs=4)
    assert train(tmp_path / "longer") == whole


def test_finished_training_returns_at_once(tmp_path, whole):
    train(tmp_path)
    again = train(tmp_path)
    assert again["variables"] == whole["variables"]
    assert again["history"] == whole["history"]


def test_training_that_was_stopped_stays_stopped(tmp_path):
    def stopping():
        return [keras.callbacks.EarlyStopping("loss", patience=1, min_delta=100.0, restore_best_weights=True)]

    first = train(tmp_path, more=stopping)
    assert len(first["epochs"]) < EPOCHS
    again = train(tmp_path, more=stopping)
    assert again["variables"] == first["variables"]
    assert again["epochs"] == first["epochs"]


def test_warm_up_keeps_its_target(tmp_path):
    def warming():
        return [WarmupLearningRate(epochs=5, initial_fraction=0.1)]

    whole = train(tmp_path / "whole", more=warming)
    train(tmp_path / "broken", interrupt_at=3, more=warming)
    assert train(tmp_path / "broken", more=warming) == whole


@pytest.mark.parametrize("damage", ["truncated", "empty", "changed"])
def test_a_damaged_file_is_passed_over_for_the_older_one(tmp_path, whole, damage):
    train(tmp_path / "broken", interrupt_at=5)
    newest = max((tmp_path / "broken").glob("epoch-*"))
    content = newest.read_bytes()
    middle = len(content) // 2
    newest.write_bytes(
        {
            "truncated": content[:middle],
            "empty": b"",
            "changed": content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :],
        }[damage]
    )
    with pytest.warns(UserWarning, match="Ignoring a damaged checkpoint: .*epoch-000005"):
        again = train(tmp_path / "broken")
    assert again == whole


def test_every_n_epochs_and_the_last(tmp_path):
    model = make_model()
    checkpoint = ResumableCheckpoint(tmp_path, every_n_epochs=3)
    model.fit(*make_data(), shuffle=False, epochs=7, verbose=0, callbacks=[checkpoint])
    assert sorted(path.name[:12] for path in tmp_path.iterdir()) == ["epoch-000006", "epoch-000007"]


def test_a_fit_without_the_callback_starts_from_its_own_epoch(tmp_path):
    train(tmp_path, epochs=3)
    model = make_model()
    batches = EpochBatches(*make_data(), batch_size=8)
    model.fit(batches, shuffle=False, epochs=4, verbose=0, callbacks=[ResumableCheckpoint(tmp_path / "other")])
    history = model.fit(batches, epochs=2, verbose=0)
    assert history.epoch == [0, 1]


def test_resuming_says_so(tmp_path, capsys):
    model = make_model()
    for epochs in (1, 2):
        checkpoint = ResumableCheckpoint(tmp_path)
        model.fit(*make_data(), shuffle=False, epochs=epochs, verbose=0, callbacks=[checkpoint])
    assert capsys.readouterr().out == f"Resuming after epoch 1 from {tmp_path}\n"


def test_a_model_that_waits_for_its_first_batch_is_built(tmp_path):
    results = []
    for folder, epochs in (("whole", 3), ("broken", 1), ("broken", 3)):
        keras.utils.set_random_seed(0)
        model = make_model(deferred=True)
        batches = EpochBatches(*make_data(), batch_size=8)
        checkpoint = ResumableCheckpoint(tmp_path / folder, verbose=0)
        model.fit(batches, shuffle=False, epochs=epochs, verbose=0, callbacks=[checkpoint])
        results.append([np.asarray(v).tobytes() for v in model.variables])
    assert results[0] == results[2]


def test_another_models_checkpoint_is_refused(tmp_path):
    train(tmp_path, epochs=1, more=list)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=False)
    with pytest.raises(ValueError, match="belongs to another model or optimizer: it has .* the first that differs"):
        model.fit(*make_data(), shuffle=False, verbose=0, callbacks=[ResumableCheckpoint(tmp_path)])


def test_another_list_of_callbacks_is_refused(tmp_path):
    train(tmp_path, epochs=1)
    with pytest.raises(ValueError, match=r"the state of the callbacks \[.*'WeightNorms', .*, but `fit` has \[\]"):
        train(tmp_path, more=list)


def test_another_number_of_ranks_is_refused(tmp_path):
    train(tmp_path, epochs=1)
    for path in tmp_path.iterdir():
        shutil.copy(path, path.with_name(path.name.replace("-of-1", "-of-3")))
        path.unlink()
    with pytest.raises(ValueError, match="written by a job of 3 ranks. Received: a job of 1 ranks"):
        train(tmp_path)


class Counter(keras.callbacks.Callback):
    """Somebody's own callback, with a state."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def on_epoch_end(self, epoch, logs=None):
        self.count += 1


class SavedCounter(Counter):
    def get_state(self):
        return {"count": self.count}

    def set_state(self, state):
        self.count = state["count"]


def test_callbacks_of_users_can_bring_their_state(tmp_path):
    for epochs in (2, 5):
        counter = SavedCounter()
        callbacks = [counter, ResumableCheckpoint(tmp_path, verbose=0)]
        make_model().fit(*make_data(), shuffle=False, epochs=epochs, verbose=0, callbacks=callbacks)
    assert counter.count == 5


class EmptyAtFirst(SavedCounter):
    """Has nothing to keep before the first epoch."""

    def get_state(self):
        return {"count": self.count} if self.count else {}

    def set_state(self, state):
        self.count = state.get("count", 0)


class CountingStopping(keras.callbacks.EarlyStopping):
    """Has a state of Keras's, and one of its own."""

    count = 0

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        self.count += 1

    def get_state(self):
        return {"count": self.count}

    def set_state(self, state):
        self.count = state["count"]


@pytest.mark.parametrize("make", [EmptyAtFirst, lambda: CountingStopping("loss", patience=9)])
def test_states_come_back_whenever_they_begin_and_whoever_has_them(tmp_path, make):
    for epochs in (2, 5):
        callback = make()
        callbacks = [callback, ResumableCheckpoint(tmp_path, verbose=0)]
        fit(callbacks, epochs=epochs)
    assert callback.count == 5
    if isinstance(callback, keras.callbacks.EarlyStopping):
        assert callback.best == min(callbacks[0].model.history.history["loss"])


def fit(callbacks, *data, **options):
    model = make_model(keras.optimizers.SGD(0.05))  # which is traced in a third of the time of Adam
    model.fit(*(data or make_data()), **{"verbose": 0, "shuffle": False, **options}, callbacks=callbacks)


def test_callbacks_that_are_not_known_are_named(tmp_path):
    with pytest.warns(UserWarning, match="does not know the callback Counter"):
        fit([Counter(), ResumableCheckpoint(tmp_path / "a")])
    fit([Counter(), ResumableCheckpoint(tmp_path / "b", stateless=[Counter])])  # a warning would be an error here
    assert [len(list((tmp_path / name).iterdir())) for name in "ab"] == [1, 1]


@pytest.mark.parametrize(
    ("base", "arguments"),
    [
        (keras.callbacks.LearningRateScheduler, (lambda epoch, rate: rate,)),
        (keras.callbacks.EarlyStopping, ("loss",)),
        (keras.callbacks.History, ()),
    ],
)
def test_subclasses_of_known_callbacks_are_named(base, arguments, tmp_path):
    class Own(base):
        count = 0

        def on_epoch_end(self, epoch, logs=None):
            super().on_epoch_end(epoch, logs)
            self.count += 1

    with pytest.warns(UserWarning, match="does not know the callback Own"):
        fit([Own(*arguments), ResumableCheckpoint(tmp_path / "a")])
    fit([Own(*arguments), ResumableCheckpoint(tmp_path / "b", stateless=[Own])])
    fit([base(*arguments), ResumableCheckpoint(tmp_path / "c")])


def test_callbacks_that_cannot_be_resumed_are_refused(tmp_path):
    with pytest.raises(ValueError, match="does not work together with BackupAndRestore"):
        fit([keras.callbacks.BackupAndRestore(tmp_path), ResumableCheckpoint(tmp_path)])
    logger = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    with pytest.raises(ValueError, match=r"CSVLogger would empty its file.*append=True"):
        fit([logger, ResumableCheckpoint(tmp_path)])
    logger.csv_file.close()


def test_the_log_of_an_interrupted_training_is_whole(tmp_path):
    for stop in (3, EPOCHS):
        logger = keras.callbacks.CSVLogger(tmp_path / "log.csv", append=True)
        train(tmp_path / "kept", interrupt_at=stop, more=lambda *_, logger=logger: [logger])
        logger.csv_file.close()
    rows = (tmp_path / "log.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", *map(str, range(EPOCHS))]


def test_other_arguments_are_refused(tmp_path):
    def run(batch_size=5, rate=0.1, seed=0, folder="a", data=None, loss="mse", **options):
        model = make_model(keras.optimizers.SGD(rate))
        model.compile(model.optimizer, loss, jit_compile=False)
        batches = EpochBatches(*(data or make_data()), batch_size=batch_size, seed=seed)
        checkpoint = ResumableCheckpoint(tmp_path / folder, verbose=0)
        model.fit(batches, shuffle=False, verbose=0, callbacks=[checkpoint], **options)
        return model, batches, checkpoint

    model, batches, checkpoint = run(epochs=1)
    for changed, message in (
        ({"batch_size": 4}, "batch_size was 5, is 4"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"rate": 0.2}, "optimizer's learning_rate was 0.1.*, is 0.2"),
    ):
        with pytest.raises(ValueError, match=f"written with other arguments.*{message}"):
            run(epochs=2, **changed)
    x, y = make_data()
    with pytest.raises(ValueError, match="checksum of x was [0-9]+, is [0-9]+"):
        run(epochs=2, data=(x + 1.0, y))
    with pytest.raises(ValueError, match=r"loss was mse, is MeanSquaredError .*sum"):
        run(epochs=2, loss=keras.losses.MeanSquaredError(reduction="sum"))
    # A learning rate that training itself has changed is no other argument.
    halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    with pytest.warns(UserWarning, match="LearningRateScheduler's schedule was None, is "):
        model.fit(batches, shuffle=False, epochs=3, verbose=0, callbacks=[halve, checkpoint])
    model.fit(batches, shuffle=False, epochs=4, verbose=0, callbacks=[checkpoint])
    assert model.history.epoch == [0, 1, 2, 3]


def test_another_number_of_batches_is_refused(tmp_path):
    x, y = make_data()
    fit([ResumableCheckpoint(tmp_path, verbose=0)], x, y, batch_size=5)
    with pytest.raises(ValueError, match="number of batches was [0-9]+, is 1"):
        fit([ResumableCheckpoint(tmp_path, verbose=0)], x[:5], y[:5], batch_size=5, epochs=2)


def test_a_folder_that_cannot_be_made_is_named():
    with pytest.raises(
        ValueError, match="`folder` must be a folder that can be created. Received: folder='/proc/nothing'"
    ):
        fit([ResumableCheckpoint("/proc/nothing")])


class EveryOther(keras.utils.PyDataset):
    """Somebody's own data: other rows in each epoch."""

    epoch = 0

    def __len__(self):
        return 2

    def __getitem__(self, index):
        x, y = make_data()
        return x[(index + self.epoch) % 5 :: 5], y[(index + self.epoch) % 5 :: 5]


class EveryOtherFromAnyEpoch(EveryOther):
    def start_at(self, epoch):
        self.epoch = epoch


def test_data_of_ones_own_bring_their_start(tmp_path):
    with pytest.raises(ValueError, match=r"in which order EveryOther serves.*start_at.*stateless=\[EveryOther\]"):
        fit([ResumableCheckpoint(tmp_path / "a")], EveryOther())
    fit([ResumableCheckpoint(tmp_path / "a", stateless=[EveryOther])], EveryOther())
    weights = []
    for stops in ((4,), (2, 4)):
        keras.utils.set_random_seed(0)
        for epochs in stops:
            model = make_model()
            checkpoint = ResumableCheckpoint(tmp_path / str(len(stops)), verbose=0)
            model.fit(EveryOtherFromAnyEpoch(), shuffle=False, epochs=epochs, verbose=0, callbacks=[checkpoint])
        weights.append([np.asarray(weight).tobytes() for weight in model.get_weights()])
    assert weights[0] == weights[1]


def test_files_that_are_all_damaged_are_an_error(tmp_path):
    train(tmp_path, epochs=2)
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(
            ValueError,
            match=r"No epoch in .* has a whole .*Damaged: .*epoch-000001.*epoch-000002.*delete the folder",
        ),
    ):
        train(tmp_path)


def sparse_data():
    x, y = make_data()
    return scipy.sparse.csr_matrix(x), y


def generator():
    while True:
        yield make_data()


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
def test_data_that_cannot_be_resumed_are_refused(tmp_path):
    tf.random.set_seed(None)  # which other tests may have set
    rows = tf.data.Dataset.from_tensor_slices(make_data())
    shuffled = rows.shuffle(20, seed=1)
    for data, options, message in (
        (
            make_data(),
            {"shuffle": "batch"},
            "`fit` shuffles these arrays.*mixes the rows within each batch.*EpochBatches",
        ),
        (sparse_data(), {"shuffle": 1}, "`fit` shuffles these arrays.*they are sparse or ragged.*EpochBatches"),
        (
            (shuffled.batch(4).cache().take(2),),
            {"shuffle": None},
            "CacheDataset comes.*a TakeDataset may stop",
        ),
        (
            (rows.shuffle(20, reshuffle_each_iteration=False).batch(4),),
            {"shuffle": None},
            "no seed is set.*seed=",
        ),
        ((generator(),), {"steps_per_epoch": 2}, "reads from a generator"),
        (make_data(), {"steps_per_epoch": 2, "batch_size": 4, "shuffle": True}, "With `steps_per_epoch` an epoch goes"),
    ):
        with pytest.raises(ValueError, match=message):
            fit([ResumableCheckpoint(tmp_path)], *data, **options)
    assert not list(tmp_path.iterdir())
    once = rows.shuffle(20, seed=1, reshuffle_each_iteration=False).batch(4)
    fit([ResumableCheckpoint(tmp_path)], once)


def test_a_loop_of_ones_own_can_call_it(tmp_path):
    """Where no `fit` is running there are no other callbacks to save."""
    results = []
    for start, stop in ((0, 2), (2, 3)):
        model = make_model()
        checkpoint = ResumableCheckpoint(tmp_path, verbose=0)
        checkpoint.set_model(model)
        checkpoint.set_params({"epochs": stop})
        checkpoint.on_train_begin()
        assert (model._initial_epoch or 0) == start
        results.append([np.asarray(v).tobytes() for v in model.variables])
        for epoch in range(start, stop):
            checkpoint.on_epoch_begin(epoch)
            model.train_on_batch(*make_data())
            checkpoint.on_epoch_end(epoch, {"loss": 1.0})
        results.append([np.asarray(v).tobytes() for v in model.variables])
        checkpoint.on_train_end()
    assert results[1] == results[2]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"folder": 3}, TypeError, "`folder` must be a path. Received: folder=3"),
        ({"folder": "x", "every_n_epochs": 0}, ValueError, "`every_n_epochs` must be an integer >= 1"),
        ({"folder": "x", "stateless": Counter}, TypeError, "`stateless` must hold classes"),
        ({"folder": "x", "stateless": [Counter()]}, TypeError, "`stateless` must hold classes"),
        ({"folder": "x", "verbose": 2}, ValueError, "`verbose` must be an integer >= 0 and <= 1"),
    ],
)
def test_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        ResumableCheckpoint(**arguments)


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="`folder` must be a folder"):
        ResumableCheckpoint(tmp_path / "file")


def test_a_model_without_data_to_build_it_from_is_refused(tmp_path):
    checkpoint = ResumableCheckpoint(tmp_path)
    checkpoint.set_model(make_model(deferred=True))
    with pytest.raises(ValueError, match="The model has no variables yet: give it a keras.Input"):
        checkpoint.on_train_begin()
