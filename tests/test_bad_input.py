"""Every public entry, one argument at a time replaced by nonsense: it names the argument, or it works.

A call may return, or raise a ValueError or TypeError whose message has the argument's name; nothing else. Arguments
that say how much is to be computed are not made huge: such a call is right, and takes as long as it takes.
"""

import tempfile

import keras
import numpy as np
import pytest
from nonsense import Entry, assert_named_or_works, assert_right, cases

from tfopt import callbacks, curvature, datasets, distributed, models, nqm, planning, relative_trust
from tfopt.bregman import BregmanTrainer, activations, losses
from tfopt.optimizers import LARS, Fromage
from tfopt.optimizers.schedules import PolynomialDecayWithWarmup

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(12, 3)).astype("float32"), RNG.normal(size=(12, 2)).astype("float32")


def make_model():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(2)])
    model.compile("sgd", "mse", jit_compile=False)
    return model


MODEL = make_model()
PROBLEM = nqm.NoisyQuadratic(curvature=[1.0, 0.1], noise_variance=[1.0, 0.1])
ALGORITHM = nqm.Algorithm(0.1)
OBJECTIVE = curvature.Objective(MODEL, "mse", (X, Y))
OPERATOR = curvature.HessianOperator(OBJECTIVE)
TRAINER = BregmanTrainer(models.mlp(3, (4,), 2, seed=0), "mse", num_blocks=1)


def fit(**arguments):
    return TRAINER.fit(epochs=3, verbose=0, **arguments)


def folder():
    return tempfile.mkdtemp()


ENTRIES = {
    "Fromage": Entry(Fromage, {"learning_rate": 0.1}, ("p_bound",)),
    "LARS": Entry(
        LARS,
        {"learning_rate": 0.1},
        (
            "momentum",
            "trust_coefficient",
            "weight_decay",
            "epsilon",
            "nesterov",
            "denominator",
            "clip",
            "layer_adaptation_exclude",
            "weight_decay_exclude",
            "norm_floor",
        ),
    ),
    "PolynomialDecayWithWarmup": Entry(
        PolynomialDecayWithWarmup,
        {"learning_rate": 0.1, "decay_steps": 5},
        ("warmup_steps", "power", "initial_learning_rate", "end_learning_rate"),
    ),
    "Convexity": Entry(
        callbacks.Convexity,
        {"data": (X, Y)},
        (
            "every_n_steps",
            "every_n_epochs",
            "eigenvalues",
            "trace",
            "density",
            "num_matvecs",
            "batch_size",
            "batch_norm",
            "log_name",
        ),
    ),
    "GradientBreakdown": Entry(
        callbacks.GradientBreakdown,
        {"data": (X, Y)},
        ("every_n_steps", "every_n_epochs", "num_points", "batch_size", "batch_norm"),
    ),
    "GradientNoiseScale": Entry(
        callbacks.GradientNoiseScale,
        {"data": (X, Y)},
        ("group_size", "every_n_steps", "every_n_epochs", "batch_size", "batch_norm"),
    ),
    "ResumableCheckpoint": Entry(
        callbacks.ResumableCheckpoint, {}, ("every_n_epochs", "stateless", "verbose"), {"folder": "somewhere"}
    ),
    "WarmupLearningRate": Entry(callbacks.WarmupLearningRate, {"epochs": 2}, ("initial_fraction", "steps_per_epoch")),
    "WeightNorms": Entry(callbacks.WeightNorms, {"every_n_epochs": 1}, ("log_name",)),
    "BroadcastVariables": Entry(callbacks.BroadcastVariables, {"root_rank": 0}),
    "Objective": Entry(
        curvature.Objective,
        {"model": MODEL, "loss": "mse"},
        ("batch_size", "batch_norm", "variables", "class_weight", "communicator"),
        {"data": (X, Y)},
    ),
    "HessianOperator": Entry(curvature.HessianOperator, {"objective": OBJECTIVE}, ("self_check", "max_memory")),
    "GaussNewtonOperator": Entry(curvature.GaussNewtonOperator, {"objective": OBJECTIVE}, ("self_check", "max_memory")),
    "Probe": Entry(curvature.Probe, {"x": X, "y": Y}, ("batch_size", "num_batches", "sample_weight")),
    "convexity_modulus": Entry(
        curvature.convexity_modulus,
        {
            "l2": 0.1,
            "mean_squared_error": 0.1,
            "spectral_norm": 1.0,
            "input_radius": 1.0,
            "num_hidden_layers": 1,
            "num_outputs": 1,
            "kind": "sharp",
        },
    ),
    "curvature_along": Entry(
        curvature.curvature_along, {"operator": OPERATOR, "direction": np.ones(OPERATOR.shape[0], "float32")}
    ),
    "extremal_eigenvalues": Entry(
        curvature.extremal_eigenvalues, {"operator": OPERATOR}, ("tolerance", "seed"), {"num_matvecs": 5}
    ),
    "lanczos": Entry(curvature.lanczos, {"operator": OPERATOR, "num_matvecs": 3}, ("seed", "start")),
    "trace": Entry(curvature.trace, {"operator": OPERATOR, "num_matvecs": 3}, ("seed",)),
    "spectral_density": Entry(
        curvature.spectral_density, {"operator": OPERATOR, "num_vectors": 1, "num_matvecs": 3}, ("seed",)
    ),
    "gradient_noise": Entry(
        curvature.gradient_noise,
        {"objective": OBJECTIVE},
        ("group_size", "directions", "num_hessian_groups", "self_check", "seed"),
    ),
    "simple_noise_scale": Entry(
        curvature.simple_noise_scale,
        {"small_squared_norm": 2.0, "big_squared_norm": 1.0, "small_size": 1, "big_size": 4},
    ),
    "breakdown_profile": Entry(
        relative_trust.breakdown_profile,
        {"objective": OBJECTIVE, "relative_steps": [0.1]},
    ),
    "deep_relative_trust": Entry(relative_trust.deep_relative_trust, {"relative_perturbations": [0.1]}),
    "largest_safe_step": Entry(relative_trust.largest_safe_step, {"depth": 3, "angle": 0.1}),
    "relative_gradient_breakdown": Entry(
        relative_trust.relative_gradient_breakdown, {"gradient": [np.ones(3)], "moved_gradient": [np.ones(3)]}
    ),
    "relative_perturbation": Entry(
        relative_trust.relative_perturbation, {"weights": [np.ones(3)], "step": [np.ones(3)]}
    ),
    "Algorithm": Entry(
        nqm.Algorithm, {"learning_rate": 0.1}, ("momentum", "nesterov", "ema_decay", "preconditioner_power")
    ),
    "NoisyQuadratic": Entry(
        nqm.NoisyQuadratic,
        {"curvature": [1.0, 0.5], "noise_variance": [1.0, 0.5]},
        ("multiplicity", "initial_second_moment"),
    ),
    "power_law": Entry(nqm.NoisyQuadratic.power_law, {"dim": 10}, ("num_bins",)),
    "expected_loss": Entry(
        nqm.expected_loss, {"problem": PROBLEM, "algorithm": ALGORITHM, "batch_size": 4, "steps": [1, 2]}
    ),
    "steady_state_loss": Entry(nqm.steady_state_loss, {"problem": PROBLEM, "algorithm": ALGORITHM, "batch_size": 4}),
    "steps_to_target": Entry(
        nqm.steps_to_target, {"problem": PROBLEM, "algorithm": ALGORITHM, "batch_size": 64, "target_loss": 0.3}
    ),
    "convergence_rate": Entry(nqm.convergence_rate, {"problem": PROBLEM, "algorithm": ALGORITHM}),
    "largest_stable_learning_rate": Entry(
        nqm.largest_stable_learning_rate, {"problem": PROBLEM, "momentum": 0.5}, ("nesterov", "preconditioner_power")
    ),
    "information_bound": Entry(nqm.information_bound, {"problem": PROBLEM, "batch_size": 4, "target_loss": 0.1}),
    "monte_carlo": Entry(
        nqm.monte_carlo,
        {"problem": PROBLEM, "algorithm": ALGORITHM, "batch_size": 4},
        ("noise", "seed", "record_every"),
        {"num_steps": 3, "num_trajectories": 4},
    ),
    "noise_batches": Entry(nqm.noise_batches, {"problem": PROBLEM, "batch_size": 4}, ("num_batches", "noise", "seed")),
    "BregmanTrainer": Entry(
        BregmanTrainer,
        {"model": models.mlp(3, (4,), 2, seed=0), "loss": "mse", "preset": "restarted"},
        (
            "measure_every_n_epochs",
            "linear_penalty",
            "activation_penalty",
            "weight_decay",
            "ridge",
            "state_dtype",
            "chunk_rows",
            "num_blocks",
            "step",
            "max_relaxation",
        ),
    ),
    "BregmanTrainer.fit": Entry(fit, {"x": X, "y": Y}, ("validation_split", "validation_data", "initial_epoch")),
    "BregmanTrainer.expected_memory": Entry(TRAINER.expected_memory, {"num_rows": 10}),
    "clip": Entry(activations.clip, {"maximum": 1.0}),
    "leaky_relu": Entry(activations.leaky_relu, {"negative_slope": 0.1}),
    "hinge": Entry(losses.hinge, {"edge": 0.0}),
    "DistributedOptimizer": Entry(
        distributed.DistributedOptimizer, {"optimizer": "sgd", "compression": None}, ("communicator",)
    ),
    "shard": Entry(distributed.shard, {"dataset": (X, Y)}, ("communicator",)),
    "mlp": Entry(
        models.mlp,
        {"input_shape": 3, "hidden_units": (4,), "num_outputs": 2},
        (
            *("activation", "negative_slope", "use_bias", "batch_normalization", "weight_decay", "seed"),
            *("kernel_initializer", "output_activation", "residual"),
        ),
    ),
    "convnet": Entry(
        models.convnet,
        {"input_shape": (8, 8, 1), "filters": (2,), "num_outputs": 2, "hidden_units": 4},
        ("activation", "weight_decay", "seed", "kernel_initializer"),
    ),
    "resnet": Entry(
        models.resnet, {"input_shape": (8, 8, 1), "depth": 8, "num_outputs": 2, "width": 2}, ("weight_decay", "seed")
    ),
    "milne_regression": Entry(models.milne_regression, {"hidden_units": 2}, ("initial_scale", "weight_decay", "seed")),
    "models.get": Entry(models.get, {"name": "mlp"}, (), {"input_shape": 3}),
    "models.noisy_quadratic": Entry(models.noisy_quadratic, {"problem": PROBLEM}, ("seed",)),
    "EpochBatches": Entry(
        datasets.EpochBatches, {"x": X, "y": Y}, ("sample_weight", "batch_size", "seed", "shuffle", "communicator")
    ),
    "datasets.load": Entry(
        datasets.load,
        {"name": "breast_cancer"},
        ("seed", "test_fraction", "validation_fraction", "standardize", "num_rows"),
    ),
    "from_arrays": Entry(
        datasets.from_arrays,
        {"x": X, "y": np.arange(len(X)) % 2},
        ("name", "seed", "test_fraction", "validation_fraction", "standardize", "num_rows"),
    ),
    "make_higgs_like": Entry(datasets.make_higgs_like, {"num_rows": 10, "seed": 0}),
    "fit_noisy_quadratic": Entry(
        planning.fit_noisy_quadratic,
        {"objective": "none"},
        ("budget_seconds", "initial_weights", "num_examples", "matrix", "num_runs", "num_bins", "self_check", "seed"),
        blamed="objective",
    ),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_the_arguments_are_right_before_they_are_replaced(name):
    assert_right(ENTRIES[name])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "argument"), cases(ENTRIES))
def test_nonsense_is_named_or_works(name, argument):
    assert_named_or_works(ENTRIES[name], argument)
