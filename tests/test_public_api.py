"""What users can import, and what an import costs them."""

import doctest
import importlib
import inspect
import subprocess
import sys

import keras
import pytest

PUBLIC = {
    "tfopt": {
        "__version__",
        "bregman",
        "callbacks",
        "communicator",
        "curvature",
        "datasets",
        "distributed",
        "models",
        "nqm",
        "numerics",
        "optimizers",
        "planning",
        "relative_trust",
    },
    "tfopt.callbacks": {
        "AverageMetrics",
        "BroadcastVariables",
        "Convexity",
        "GradientBreakdown",
        "GradientNoiseScale",
        "MeasurementHistory",
        "ResumableCheckpoint",
        "WarmupLearningRate",
        "WeightNorms",
    },
    "tfopt.communicator": {"Communicator", "SerialCommunicator", "current"},
    "tfopt.curvature": {
        "ConvexityCertificate",
        "Estimate",
        "ExtremalEigenvalues",
        "GaussNewtonOperator",
        "GradientNoise",
        "HessianOperator",
        "NotCoveredError",
        "Probe",
        "SpectralDensity",
        "Tridiagonal",
        "convexity_certificate",
        "convexity_modulus",
        "curvature_along",
        "extremal_eigenvalues",
        "gradient_noise",
        "lanczos",
        "simple_noise_scale",
        "spectral_density",
        "trace",
    },
    "tfopt.datasets": {"NAMES", "Dataset", "EpochBatches", "load", "make_higgs_like"},
    "tfopt.distributed": {"DistributedOptimizer", "shard"},
    "tfopt.models": {
        "convnet",
        "get",
        "list_models",
        "milne_regression",
        "mlp",
        "noisy_quadratic",
        "output_as_loss",
        "resnet",
    },
    "tfopt.nqm": {
        "Algorithm",
        "CriticalBatchSize",
        "NoisyQuadratic",
        "OptimalSettings",
        "Schedule",
        "Trajectories",
        "UpdateRule",
        "convergence_rate",
        "critical_batch_size",
        "expected_loss",
        "information_bound",
        "largest_stable_learning_rate",
        "monte_carlo",
        "noise_batches",
        "optimal_schedule",
        "optimize",
        "plot_learning_rates",
        "plot_schedule",
        "plot_steps_to_target",
        "plot_training_curves",
        "steady_state_loss",
        "steps_to_target",
    },
    "tfopt.bregman": {
        "PRESETS",
        "BregmanTrainer",
        "RestartedSettings",
        "Settings",
        "SplittingSettings",
        "activations",
        "losses",
        "updates",
    },
    "tfopt.optimizers": {"Fromage", "LARS", "schedules"},
    "tfopt.planning": {
        "BatchSizePlan",
        "Interval",
        "NoisyQuadraticFit",
        "Suggestion",
        "fit_noisy_quadratic",
        "plan_batch_size",
        "plan_from_fit",
    },
    "tfopt.relative_trust": {
        "BreakdownProfile",
        "StepBreakdown",
        "StepMeter",
        "breakdown_profile",
        "deep_relative_trust",
        "largest_safe_step",
        "relative_gradient_breakdown",
        "relative_perturbation",
    },
}
DOCUMENTED = [
    getattr(importlib.import_module(module), name)
    for module, names in PUBLIC.items()
    for name in sorted(names)
    if callable(getattr(importlib.import_module(module), name, None))
]


@pytest.mark.parametrize("module", PUBLIC)
def test_names(module):
    assert set(importlib.import_module(module).__all__) == PUBLIC[module]
    for name in PUBLIC[module]:
        assert hasattr(importlib.import_module(module), name)


def test_an_unknown_name_is_answered_with_those_there_are():
    import tfopt

    with pytest.raises(
        AttributeError,
        match="it has bregman, callbacks, communicator, curvature, datasets, distributed, models, nqm, numerics",
    ):
        tfopt.optimisers  # noqa: B018
    assert set(dir(tfopt)) == PUBLIC["tfopt"]


@pytest.mark.parametrize("item", DOCUMENTED, ids=lambda item: item.__name__)
def test_docstrings_explain_every_argument(item):
    text = inspect.getdoc(item)
    function = item.__init__ if inspect.isclass(item) else item
    for name in inspect.signature(function).parameters:
        if name not in ("self", "args", "kwargs", "fit_options"):
            assert f"{name}:" in text or hasattr(item, "__dataclass_fields__"), name


@pytest.mark.parametrize(
    "module",
    [
        "tfopt.optimizers.fromage",
        "tfopt.optimizers.lars",
        "tfopt.optimizers.schedules",
        "tfopt.optimizers.trust_ratio",
        "tfopt.datasets.loading",
        "tfopt.callbacks.convexity",
        "tfopt.callbacks.distributed",
        "tfopt.callbacks.gradient_breakdown",
        "tfopt.callbacks.gradient_noise_scale",
        "tfopt.callbacks.resumable_checkpoint",
        "tfopt.callbacks.weight_norms",
        "tfopt.communicator",
        "tfopt.communicator.serial",
        "tfopt.curvature.certificate",
        "tfopt.curvature.density",
        "tfopt.curvature.gauss_newton",
        "tfopt.curvature.gradient_noise",
        "tfopt.curvature.hessian",
        "tfopt.curvature.lanczos",
        "tfopt.curvature.linear_map",
        "tfopt.curvature.modulus",
        "tfopt.curvature.probe",
        "tfopt.curvature.trace",
        "tfopt.datasets.epoch_batches",
        "tfopt.distributed.optimizer",
        "tfopt.distributed.sharding",
        "tfopt.models.convnet",
        "tfopt.models.milne_regression",
        "tfopt.models.mlp",
        "tfopt.models.noisy_quadratic",
        "tfopt.models.registry",
        "tfopt.models.resnet",
        "tfopt.nqm.algorithm",
        "tfopt.nqm.batch_size",
        "tfopt.nqm.dynamics",
        "tfopt.nqm.information_bound",
        "tfopt.nqm.monte_carlo",
        "tfopt.nqm.problem",
        "tfopt.nqm.schedules",
        "tfopt.nqm.search",
        "tfopt.nqm.steps_to_target",
        "tfopt.bregman.trainer",
        "tfopt.planning.fit",
        "tfopt.planning.planner",
        "tfopt.relative_trust.breakdown",
        "tfopt.relative_trust.profile",
        "tfopt.relative_trust.step",
    ],
)
def test_examples_in_docstrings_run(module):
    results = doctest.testmod(importlib.import_module(module), extraglobs={"keras": keras})
    assert results.attempted > 0
    assert results.failed == 0


def test_importing_tfopt_imports_no_framework():
    code = (
        "import sys, tfopt; assert tfopt.__version__;"
        "loaded = {'tensorflow', 'keras', 'horovod', 'jax', 'torch', 'numpy'} & set(sys.modules);"
        "assert not loaded, loaded;"
        "import tfopt.communicator.agreement; assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
