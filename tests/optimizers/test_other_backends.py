"""The same numbers on other backends: JAX always, torch where it is installed; each in a process of its own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from optimizer_table import TABLE, WAYS_TO_STEP
from trajectories import make_problem, relative_errors, run_oracle

SCRIPT = Path(__file__).resolve().parents[1] / "support" / "run_on_backend.py"


# torch is large and not among the requirements of the tests.
BACKENDS = ["jax"] + ["torch"] * (importlib.util.find_spec("torch") is not None)


@pytest.fixture(scope="module", params=BACKENDS)
def elsewhere(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "results.npz"
    environment = {**os.environ, "KERAS_BACKEND": request.param, "PYTHONPATH": str(SCRIPT.parent)}
    command = [sys.executable, "-W", "error::UserWarning", str(SCRIPT), str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", TABLE)
def test_follows_its_equations(elsewhere, name, dtype):
    weights, gradients = make_problem()
    expected = run_oracle(TABLE[name].make_oracle(), weights, gradients, TABLE[name].learning_rate, dtype)
    actual = [elsewhere[f"{name}/{dtype}/{index}"] for index in range(len(expected))]
    assert max(relative_errors(actual, expected)) < {"float32": 3e-6, "bfloat16": 1e-3}[dtype]


def test_trains_a_model_through_fit(elsewhere):
    for name in WAYS_TO_STEP:
        losses = elsewhere[f"{name}/losses"]
        assert np.isfinite(losses).all()
        assert losses[-1] < losses[0], name


def test_extreme_gradients_take_ordinary_steps(elsewhere):
    np.testing.assert_allclose(elsewhere["tiny gradient"], elsewhere["ordinary gradient"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["Fromage", "LARS"])
def test_late_exclusions_are_refused_unless_they_change_nothing(elsewhere, name):
    assert elsewhere[f"exclusions of {name}"].tolist() == ["accepted", "accepted", "refused"]
