"""Callbacks of one class in one `fit`: each writes names of its own into the logs, and is resumed by its name."""

import keras
import numpy as np
import pytest
from event_files import read_scalars

from tfopt.callbacks import (
    Convexity,
    GradientBreakdown,
    GradientNoiseScale,
    Measurement,
    ResumableCheckpoint,
    WeightNorms,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 3)).astype("float32")
Y = X[:, :1] ** 2
TRAIN, OTHER = (X[:16], Y[:16]), (X[16:], Y[16:])


def make():
    start = keras.initializers.RandomNormal(seed=0)
    layer = keras.layers.Dense(1, kernel_initializer=start, name="dense")
    model = keras.Sequential([keras.Input((3,)), layer], name="model")
    model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=False)
    return model


def fit(callbacks, model=None, epochs=2):
    model = make() if model is None else model
    return model.fit(*TRAIN, batch_size=8, shuffle=False, epochs=epochs, verbose=0, callbacks=callbacks).history


def one_of_each(data, suffix="", **options):
    names = {} if not suffix else {name: f"{name}_{suffix}" for name in ("curvature", "step", "noise", "norms")}
    return [
        Convexity(data, num_matvecs=3, log_name=names.get("curvature"), **options),
        GradientBreakdown(data, num_points=1, log_name=names.get("step"), **options),
        GradientNoiseScale(data, group_size=4, log_name=names.get("noise"), **options),
        WeightNorms(log_name=names.get("norms")),
    ]


def test_names_begin_with_log_name_and_values_are_kept_apart(tmp_path):
    plain, named = one_of_each(TRAIN, log_dir=tmp_path), one_of_each(OTHER, "b", log_dir=tmp_path)
    logs = fit([*plain, *named])
    renamed = {
        "convexity/loss": "curvature_b/loss",
        "convexity/seconds": "curvature_b/seconds",
        "hessian/lambda_max": "curvature_b/hessian/lambda_max",
        "hessian/stability_limit": "curvature_b/hessian/stability_limit",
        "breakdown/cosine": "step_b/cosine",
        "gradient_noise/noise_scale": "noise_b/noise_scale",
        "weight_norms/max": "norms_b/max",
        "weight_norms/min": "norms_b/min",
    }
    assert renamed.keys() | set(renamed.values()) <= logs.keys()
    groups = ("convexity", "hessian", "breakdown", "gradient_noise", "weight_norms")
    logged = [name for name in logs if "/" in name]
    assert len([name for name in logged if name.split("/")[0] in groups]) * 2 == len(logged)
    for callback in (*plain[:3], *named[:3]):
        for name in set(callback.history) & set(logs):
            np.testing.assert_equal(logs[name][-1], callback.history[name][-1])
        assert any(np.isfinite(line.get_ydata()).any() for line in callback.plot().lines)
    alone = one_of_each(OTHER)
    fit(alone)
    for name, other in renamed.items():
        if "seconds" not in name and "norms" not in name:
            (ours,) = [c for c in alone if name in c.history]
            (theirs,) = [c for c in named if other in c.history]
            assert theirs.history[other] == pytest.approx(ours.history[name], rel=1e-4), name
    assert logs["convexity/loss"][-1] != pytest.approx(logs["curvature_b/loss"][-1], rel=1e-3)
    tags = read_scalars(tmp_path).keys()
    assert {"convexity/loss", "curvature_b/loss"} <= tags
    assert {"cosine/model/dense/kernel", "step_b/cosine/model/dense/kernel"} <= tags


class Own(Measurement):
    group = "own"

    def _make_instruments(self):
        return self._make_objective()

    def _measure(self):
        return {"own/loss": self._instruments.loss(), "other": 1.0}, {}


def test_a_measurement_of_the_users_own():
    logs = fit([Own(TRAIN), Own(OTHER, log_name="b")])
    assert {"own/loss", "other", "own/seconds", "b/loss", "b/other", "b/seconds"} <= logs.keys()
    with pytest.raises(ValueError, match="Own and Own, both with log_name='own'"):
        fit([Own(TRAIN), Own(OTHER)])


SAME = WeightNorms()
SHARED = {
    "two probes": (lambda: [Convexity(TRAIN), Convexity(OTHER)], "Convexity and Convexity", "convexity"),
    "given": (
        lambda: [GradientBreakdown(TRAIN, log_name="a"), Convexity(TRAIN), GradientBreakdown(OTHER, log_name="a")],
        "GradientBreakdown and GradientBreakdown",
        "a",
    ),
    "another group": (
        lambda: [Convexity(TRAIN, log_name="breakdown"), GradientBreakdown(TRAIN)],
        "Convexity and GradientBreakdown",
        "breakdown",
    ),
    "noise": (
        lambda: [GradientNoiseScale(TRAIN), GradientNoiseScale(OTHER)],
        "GradientNoiseScale and GradientNoiseScale",
        "gradient_noise",
    ),
    "norms": (lambda: [WeightNorms(), WeightNorms(2)], "WeightNorms and WeightNorms", "weight_norms"),
    "norms and loss": (
        lambda: [WeightNorms(), Convexity(TRAIN, log_name="weight_norms")],
        "WeightNorms and Convexity",
        "weight_norms",
    ),
    "twice the same": (lambda: [SAME, SAME], "WeightNorms and WeightNorms", "weight_norms"),
}


@pytest.mark.parametrize("name", SHARED)
def test_a_shared_log_name_is_refused_before_any_work(name, tmp_path):
    make_callbacks, classes, log_name = SHARED[name]
    model = make()
    before = model.get_weights()
    with pytest.raises(ValueError, match=f"needs a `log_name` of its own.* {classes}, both with log_name='{log_name}'"):
        fit([ResumableCheckpoint(tmp_path), *make_callbacks()], model)
    assert not list(tmp_path.iterdir())
    for ours, theirs in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("log_name", ["", " ", "a/b", "/"])
@pytest.mark.parametrize("make_one", [lambda name: Convexity(TRAIN, log_name=name), lambda name: WeightNorms(1, name)])
def test_log_names_that_are_no_first_parts(make_one, log_name):
    with pytest.raises(ValueError, match="`log_name` must be a string without '/', and not empty. Received"):
        make_one(log_name)


class Interrupt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def test_resumed_callbacks_of_one_class_are_told_apart_by_their_names(tmp_path):
    """Also in another order, where the first of the class is not the first of the checkpoint."""

    def train(folder, order=1, interrupts=False):
        curvature = [Convexity(data, eigenvalues=False, log_name=n) for data, n in ((TRAIN, None), (OTHER, "other"))]
        norms = [WeightNorms(), WeightNorms(3, "rare")]
        others = [Interrupt()] * interrupts
        checkpoint = ResumableCheckpoint(folder, verbose=0, stateless=[Interrupt])
        keras.utils.set_random_seed(0)
        logs = fit([*curvature[::order], *norms[::order], checkpoint, *others], epochs=4)
        return logs, [callback.history for callback in (*curvature, *norms)]

    logs, whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", interrupts=True)
    resumed_logs, resumed = train(tmp_path / "parts", order=-1)
    for ours, theirs in zip(whole, resumed, strict=True):
        for name in set(ours) - {"seconds", "setup_seconds"}:
            np.testing.assert_equal(theirs[name], ours[name])
    for name in (name for name in logs if "seconds" not in name):
        np.testing.assert_equal(resumed_logs[name], logs[name])


def test_a_resumed_callback_of_another_name_is_refused(tmp_path):
    def train(log_name, epochs):
        keras.utils.set_random_seed(0)
        norms = WeightNorms(log_name=log_name)
        fit([norms, ResumableCheckpoint(tmp_path, verbose=0)], epochs=epochs)

    train("a", 1)
    with pytest.raises(ValueError, match=r"holds the state of the callbacks .*WeightNorms 'a'.* has .*WeightNorms 'b'"):
        train("b", 2)
