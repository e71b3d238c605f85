"""Sampled trajectories, also by real Keras optimizers, against the exact dynamics."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfopt import models
from tfopt.nqm import Algorithm, NoisyQuadratic, expected_loss, monte_carlo, noise_batches

tfd = tfp.distributions
PROBLEM = NoisyQuadratic([1.0, 0.3, 0.05], [1.0, 0.5, 0.1], [1, 2, 4], [1.0, 2.0, 0.5])
NOISES = {
    "normal": None,
    "student t": tfd.StudentT(np.float64(5.0), np.float64(0.0), np.float64(3.0)),
    "laplace": tfd.Laplace(0.0, 2.0),
    "mixture": tfd.MixtureSameFamily(
        tfd.Categorical(probs=np.array([0.2, 0.8])), tfd.Normal(np.array([4.0, -1.0]), np.array([1.0, 0.5]))
    ),
}


def assert_agrees(found, expected):
    error = np.abs(found.mean - expected)
    assert (error[1:] <= 4 * found.standard_error[1:]).all(), (error / found.standard_error).max()


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_mean_does_not_depend_on_the_noises_shape(noise, momentum):
    algorithm = Algorithm(0.3, momentum)
    found = monte_carlo(PROBLEM, algorithm, 8, 60, num_trajectories=4000, record_every=6, noise=noise, seed=1)
    assert found.losses.shape == (11, 4000)
    assert found.mean[0] == pytest.approx(PROBLEM.initial_loss, rel=1e-12)
    assert_agrees(found, expected_loss(PROBLEM, algorithm, 8, found.steps))


@pytest.mark.parametrize(
    "algorithm",
    [
        Algorithm(0.3, 0.9, nesterov=True),
        Algorithm(0.3, ema_decay=0.9),
        Algorithm(0.3, 0.8, ema_decay=0.9, preconditioner_power=0.5),
    ],
    ids=["nesterov", "average", "everything"],
)
def test_other_algorithms(algorithm):
    found = monte_carlo(PROBLEM, algorithm, 2, 40, num_trajectories=4000, seed=2)
    assert_agrees(found, expected_loss(PROBLEM, algorithm, 2, found.steps))


class SignDescent:
    """Moves by the sign of the gradient: what it reaches depends on the noise's shape."""

    def initial_state(self, theta):
        return tf.zeros((), tf.int32)

    def update(self, theta, state, gradient):
        return theta - 0.05 * tf.sign(gradient), state + 1


def test_any_update_rule():
    quiet = NoisyQuadratic([1.0], [0.0])
    found = monte_carlo(quiet, SignDescent(), 1, 10, num_trajectories=2)
    np.testing.assert_allclose(found.mean, 0.5 * (1 - 0.05 * np.arange(11)) ** 2)
    one = NoisyQuadratic([1.0], [4.0])
    ends = {
        name: monte_carlo(one, SignDescent(), 1, 200, record_every=200, num_trajectories=4000, noise=NOISES[name])
        for name in ("normal", "mixture")
    }
    difference = abs(ends["normal"].mean[-1] - ends["mixture"].mean[-1])
    assert difference > 8 * (ends["normal"].standard_error[-1] + ends["mixture"].standard_error[-1])


def test_what_diverges_is_infinite():
    found = monte_carlo(PROBLEM, Algorithm(50.0), 4, 600, num_trajectories=5, record_every=600)
    assert found.mean[0] == pytest.approx(PROBLEM.initial_loss)
    assert found.mean[1] == np.inf
    assert np.isnan(found.standard_error[1])


def test_seeds_make_trajectories_reproducible():
    first, again, other = (
        monte_carlo(PROBLEM, Algorithm(0.3), 8, 5, num_trajectories=3, seed=seed).losses for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first[1:] != other[1:]).all()


KERAS = {
    "sgd": (lambda: keras.optimizers.SGD(0.3), Algorithm(0.3)),
    "momentum": (lambda: keras.optimizers.SGD(0.1, momentum=0.9), Algorithm(0.1, 0.9)),
    "nesterov": (lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True), Algorithm(0.1, 0.9, nesterov=True)),
    "average": (
        lambda: keras.optimizers.SGD(0.3, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=None),
        Algorithm(0.3, ema_decay=0.9),
    ),
}


@pytest.mark.parametrize("name", KERAS)
def test_keras_optimizers_follow_the_theory(name):
    # 3,000 copies of each direction are 3,000 trajectories in one training.
    copies, num_steps, size = 3000, 30, 4
    curvature, noise, start = np.array([1.0, 0.3, 0.05]), np.array([1.0, 0.5, 0.1]), np.array([1.0, 2.0, 0.5])
    make_optimizer, algorithm = KERAS[name]
    problem = NoisyQuadratic(curvature, noise, copies, start)
    model = models.noisy_quadratic(problem, seed=0)
    model.compile(make_optimizer(), loss=models.output_as_loss)
    model.fit(noise_batches(problem, size, num_steps, seed=3), shuffle=False, verbose=0)
    theta = model.optimizer._model_variables_moving_average[0] if name == "average" else model.trainable_variables[0]
    moments = np.asarray(theta, np.float64).reshape(3, copies) ** 2
    for direction in range(3):
        one = NoisyQuadratic(curvature[[direction]], noise[[direction]], 1.0, start[[direction]])
        expected = float(expected_loss(one, algorithm, size, num_steps)) / (0.5 * curvature[direction])
        error = moments[direction].std(ddof=1) / np.sqrt(copies)
        assert abs(moments[direction].mean() - expected) < 4 * error


def test_the_keras_models_loss_and_gradient():
    model = models.noisy_quadratic(PROBLEM, seed=1)
    (theta,) = model.trainable_variables
    curvature, scale = PROBLEM.expanded().curvature, np.sqrt(PROBLEM.expanded().noise_variance)
    noise = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    values = np.asarray(theta, np.float64)
    np.testing.assert_allclose(np.abs(values), np.sqrt(PROBLEM.expanded().initial_second_moment), rtol=1e-6)
    expected = 0.5 * np.sum(curvature * values**2) + noise @ (scale * values)
    np.testing.assert_allclose(model(noise)[:, 0], expected, rtol=1e-5)
    assert float(model(np.zeros((1, 7)))[0, 0]) == pytest.approx(PROBLEM.initial_loss, rel=1e-6)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(models.output_as_loss(None, model(noise)))
    gradient = tape.gradient(loss, theta.value)
    np.testing.assert_allclose(gradient, curvature * values + scale * noise.mean(axis=0), rtol=1e-5)


def test_noise_batches():
    first, again = (list(noise_batches(PROBLEM, 500, 4, seed=seed, noise=NOISES["mixture"])) for seed in (5, 5))
    assert len(first) == 4
    x, y = first[0]
    assert x.shape == (500, 7)
    assert y.shape == (500, 1)
    np.testing.assert_array_equal(x, again[0][0])
    everything = np.concatenate([np.asarray(one[0]) for one in first]).ravel()
    assert everything.mean() == pytest.approx(0.0, abs=4 / np.sqrt(everything.size))
    assert everything.std() == pytest.approx(1.0, abs=0.03)
    assert not np.array_equal(first[0][0], first[1][0])
    assert len(list(noise_batches(PROBLEM, 2).take(7))) == 7  # without an end


class Named:
    """Not a distribution."""


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"algorithm": Algorithm([0.1, 0.2])}, ValueError, "`algorithm` must be one setting, not a grid"),
        ({"algorithm": "sgd"}, TypeError, "`algorithm` must be an Algorithm, or an object with the methods"),
        ({"algorithm": SignDescent}, TypeError, "`algorithm` must be an Algorithm"),
        ({"batch_size": 0}, ValueError, "`batch_size`"),
        ({"batch_size": [1, 2]}, TypeError, "`batch_size`"),
        ({"num_steps": 0}, ValueError, "`num_steps`"),
        ({"num_trajectories": 1}, ValueError, "`num_trajectories`"),
        ({"record_every": 0}, ValueError, "`record_every`"),
        ({"record_every": 2}, ValueError, "`record_every` must be an integer >= 1 and <= 1"),
        ({"seed": 2**31}, ValueError, "`seed`"),
        ({"problem": 5}, TypeError, "`problem` must be a tfopt.nqm.NoisyQuadratic"),
        ({"noise": tfd.Normal}, TypeError, "`noise` must be a distribution"),
        ({"seed": -1}, ValueError, "`seed`"),
        ({"noise": Named()}, TypeError, "`noise` must be a distribution"),
        ({"noise": tfd.Normal(1.0, 1.0)}, ValueError, "`noise` must have mean 0"),
        ({"noise": tfd.Cauchy(0.0, 1.0)}, ValueError, "`noise` must have a finite variance > 0"),
        ({"noise": tfd.StudentT(1.5, 0.0, 1.0)}, ValueError, "`noise` must have a finite variance"),
        ({"noise": tfd.Normal([0.0, 0.0], 1.0)}, ValueError, "`noise` must be one scalar distribution"),
    ],
)
def test_bad_arguments(arguments, error, message):
    call = {"problem": PROBLEM, "algorithm": Algorithm(0.1), "batch_size": 1, "num_steps": 1, **arguments}
    with pytest.raises(error, match=message):
        monte_carlo(**call)


def test_bad_models_and_batches():
    with pytest.raises(TypeError, match="`problem` must be a tfopt.nqm.NoisyQuadratic"):
        models.noisy_quadratic("problem")
    with pytest.raises(ValueError, match="`multiplicity` must hold whole numbers"):
        models.noisy_quadratic(NoisyQuadratic([1.0], [1.0], 0.5))
    with pytest.raises(ValueError, match="`seed`"):
        models.noisy_quadratic(PROBLEM, seed=-1)
    with pytest.raises(ValueError, match="`seed`"):
        noise_batches(PROBLEM, 1, seed=2**31)
    for arguments, name in (((0,), "batch_size"), ((1, 0), "num_batches")):
        with pytest.raises(ValueError, match=f"`{name}`"):
            noise_batches(PROBLEM, *arguments)
