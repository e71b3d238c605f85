"""Searches, plans, figures, and the methods of what was computed: one argument at a time replaced by nonsense."""

import math
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from nonsense import Entry, Later, assert_named_or_works, assert_right, cases

from tfopt import bregman, curvature, datasets, models, nqm, planning, relative_trust

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(12, 3)).astype("float32"), RNG.normal(size=(12, 1)).astype("float32")
PROBLEM = nqm.NoisyQuadratic(curvature=[1.0, 0.1], noise_variance=[1.0, 0.1])
SIZES = 4.0 ** np.arange(-2, 8)
CURVE = Later(lambda: nqm.optimize(PROBLEM, "sgd", SIZES, 0.01))
SCHEDULE = Later(lambda: nqm.optimal_schedule(PROBLEM, 1.0, num_steps=20, num_pieces=3))
TRAJECTORIES = Later(lambda: nqm.monte_carlo(PROBLEM, nqm.Algorithm(0.1), 4, num_steps=3, num_trajectories=4))
CERTIFICATE = curvature.ConvexityCertificate(0.1, 0.2, 1.0, 1.0, 2, 1)


def make_model():
    model = models.mlp(3, (2,), 1, use_bias=False, weight_decay=0.1, seed=0)
    model.compile("sgd", "mse", jit_compile=False)
    return model


MODEL = Later(make_model)
OBJECTIVE = Later(lambda: curvature.Objective(MODEL(), "mse", (X, Y)))
OPERATOR = Later(lambda: curvature.HessianOperator(OBJECTIVE()))
DENSITY = Later(lambda: curvature.spectral_density(OPERATOR(), num_vectors=2, num_matvecs=3))
TRIDIAGONAL = Later(lambda: curvature.lanczos(OPERATOR(), 3))
NOISE = Later(lambda: curvature.gradient_noise(OBJECTIVE(), group_size=2))
METER = Later(lambda: relative_trust.StepMeter(OBJECTIVE()))
WEIGHTS = Later(lambda: MODEL().get_weights())
MOVED = Later(lambda: [weights + np.float32(0.1) for weights in MODEL().get_weights()])
SHARED_OPTIONS = ("linear_penalty", "activation_penalty", "weight_decay", "ridge", "state_dtype", "chunk_rows")
PROFILE = Later(lambda: relative_trust.breakdown_profile(OBJECTIVE(), [0.1]))


def make_fit():
    rows = np.random.default_rng(1).standard_normal((1024, 2)).astype("float32")
    data = (rows, np.zeros((len(rows), 1), "float32"))
    model = models.noisy_quadratic(PROBLEM, seed=0)
    objective = curvature.Objective(model, models.output_as_loss, data)
    return planning.fit_noisy_quadratic(objective, None, matrix="hessian", num_runs=4, num_examples=math.inf)


FIT = Later(make_fit)
PLAN = Later(
    lambda: planning.plan_from_fit(FIT(), batch_sizes=[2**k for k in range(12)], families=["sgd"], num_draws=20)
)


def save(path):
    PLAN().save(Path(tempfile.mkdtemp()) / path if isinstance(path, str) and path else path)
    return True


def start_at(epoch):
    batches = datasets.EpochBatches(X, Y, batch_size=2)
    batches.start_at(epoch)
    return batches


ENTRIES = {
    "optimize": Entry(
        nqm.optimize,
        {"problem": PROBLEM, "family": "sgd", "batch_sizes": [4, 64], "target_loss": 0.1},
        ("preconditioner_power", "largest_momentum", "progress"),
    ),
    "optimal_schedule": Entry(
        nqm.optimal_schedule,
        {"problem": PROBLEM, "batch_size": 4.0, "target_loss": 0.1},
        ("num_steps", "preconditioner_power", "progress"),
        {"num_pieces": 2},
    ),
    "optimal_schedule, of some steps": Entry(
        nqm.optimal_schedule, {"problem": PROBLEM, "batch_size": 4.0, "num_steps": 5, "num_pieces": 2}
    ),
    "critical_batch_size": Entry(nqm.critical_batch_size, {"curve": CURVE, "definition": "examples"}),
    "NoisyQuadratic.binned": Entry(PROBLEM.binned, {"num_bins": 2}),
    "NoisyQuadratic.plot": Entry(PROBLEM.plot, {"ax": None, "label": None}),
    "Algorithm.take": Entry(nqm.Algorithm([0.1, 0.2]).take, {"indices": [0]}),
    "OptimalSettings.plot": Entry(CURVE.plot, {"ax": None, "label": "name"}),
    "Schedule.plot": Entry(SCHEDULE.plot, {"ax": None, "label": "name"}),
    "Trajectories.plot": Entry(TRAJECTORIES.plot, {"ax": None, "label": "name"}),
    "plot_learning_rates": Entry(nqm.plot_learning_rates, {"curves": {"a": CURVE}, "effective": True, "ax": None}),
    "plot_schedule": Entry(nqm.plot_schedule, {"schedules": {"a": SCHEDULE}, "ax": None}),
    "plot_steps_to_target": Entry(
        nqm.plot_steps_to_target, {"curves": {"a": CURVE, "b": ([1, 2], [2, 1])}, "bound": ([1, 2], [2, 1]), "ax": None}
    ),
    "plot_training_curves": Entry(
        nqm.plot_training_curves,
        {"curves": {"a": TRAJECTORIES, "b": ([1, 2], [2, 1])}, "target_loss": 0.1, "ax": None},
    ),
    "ConvexityCertificate.modulus": Entry(CERTIFICATE.modulus, {"kind": "sharp", "norm_bound": 2.0}),
    "ConvexityCertificate.contains": Entry(CERTIFICATE.contains, {"theta": 0.0, "kind": "sharp", "norm_bound": 2.0}),
    "ConvexityCertificate.largest_mean_squared_error": Entry(
        CERTIFICATE.largest_mean_squared_error, {"theta": 0.0, "kind": "sharp", "norm_bound": 2.0}
    ),
    "convexity_certificate": Entry(curvature.convexity_certificate, {"objective": OBJECTIVE}),
    "SpectralDensity.cumulative": Entry(DENSITY.cumulative, {"points": [0.0, 1.0]}),
    "SpectralDensity.density": Entry(DENSITY.density, {"points": [0.0, 1.0], "width": 0.1}),
    "SpectralDensity.moment": Entry(DENSITY.moment, {"power": 2}),
    "SpectralDensity.plot": Entry(DENSITY.plot, {"ax": None, "label": None, "width": 0.1}),
    "Tridiagonal.eigenvector": Entry(TRIDIAGONAL.eigenvector, {"index": 0}),
    "Probe.first": Entry(curvature.Probe(X, Y).first, {"num_rows": 2}),
    "GradientNoise.batch_variance": Entry(NOISE.batch_variance, {"batch_size": 2, "num_rows": 12}),
    "StepMeter": Entry(
        relative_trust.StepMeter,
        {"objective": OBJECTIVE},
        ("num_points",),
    ),
    "StepMeter.measure": Entry(METER.measure, {"before": WEIGHTS, "after": MOVED}),
    "StepMeter.loss_and_gradient": Entry(METER.loss_and_gradient, {"weights": MOVED}),
    "BreakdownProfile.plot": Entry(PROFILE.plot, {"ax": None, "label": "name"}),
    "EpochBatches.order": Entry(datasets.EpochBatches(X, Y, batch_size=2).order, {"epoch": 1}),
    "EpochBatches.start_at": Entry(start_at, {"epoch": 1}),
    "bregman.RestartedSettings": Entry(
        bregman.RestartedSettings,
        {"num_blocks": "auto"},
        (*SHARED_OPTIONS, "step", "relaxation_growth", "max_relaxation"),
    ),
    "bregman.SplittingSettings": Entry(
        bregman.SplittingSettings,
        {"seed": 0},
        (
            *(*SHARED_OPTIONS, "multiplier", "multiplier_step", "num_warm_start_iterations"),
            *("num_sweeps_per_multiplier_update", "penalty_growth", "max_penalty"),
            *("order", "last_layer_order", "update", "initialization"),
        ),
    ),
    "plan_batch_size": Entry(
        planning.plan_batch_size,
        {"objective": "none"},
        (
            *("target_loss", "budget_seconds", "batch_sizes", "families", "largest_momentum"),
            *("confidence", "num_draws"),
            *("progress", "seed", "initial_weights", "num_examples", "num_runs"),
        ),
        blamed="objective",
    ),
    "plan_from_fit": Entry(
        planning.plan_from_fit,
        {"fit": FIT, "target_loss": None, "batch_sizes": [1, 2, 4], "families": ["sgd"], "num_draws": 20},
        ("largest_momentum", "confidence", "seed", "progress"),
    ),
    "BatchSizePlan.suggest": Entry(PLAN.suggest, {"batch_size": 64, "family": "sgd"}),
    "BatchSizePlan.make_optimizer": Entry(PLAN.make_optimizer, {"batch_size": 64, "family": "sgd"}),
    "BatchSizePlan.make_schedule": Entry(PLAN.make_schedule, {"batch_size": 64, "num_pieces": 2}),
    "BatchSizePlan.save": Entry(save, {"path": "plan.json"}),
    "BatchSizePlan.plot": Entry(PLAN.plot, {"ax": None, "label": None}),
    "NoisyQuadraticFit.take": Entry(FIT.take, {"runs": [0, 1]}),
    "NoisyQuadraticFit.interval": Entry(
        FIT.interval, {"function": lambda part: part.floor, "confidence": 0.9, "num_draws": 20, "seed": 0}
    ),
    "NoisyQuadraticFit.effective_batch_size": Entry(FIT.effective_batch_size, {"batch_size": 64}),
    "NoisyQuadraticFit.to_dataframe": Entry(FIT.to_dataframe, {"confidence": 0.9}),
    "NoisyQuadraticFit.plot": Entry(FIT.plot, {"ax": None}),
}


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    plt.close("all")


@pytest.mark.parametrize("name", ENTRIES)
def test_the_arguments_are_right_before_they_are_replaced(name):
    assert_right(ENTRIES[name])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "argument"), cases(ENTRIES))
def test_nonsense_is_named_or_works(name, argument):
    assert_named_or_works(ENTRIES[name], argument)
