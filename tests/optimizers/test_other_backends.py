"""The same numbers on the JAX backend, in a process of its own, which never imports TensorFlow."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from optimizer_table import TABLE
from trajectories import make_problem, relative_errors, run_oracle

SCRIPT = Path(__file__).resolve().parents[1] / "support" / "run_on_backend.py"


@pytest.fixture(scope="module")
def on_jax(tmp_path_factory):
    path = tmp_path_factory.mktemp("jax") / "results.npz"
    environment = {**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": str(SCRIPT.parent)}
    subprocess.run([sys.executable, str(SCRIPT), str(path)], check=True, env=environment)
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", TABLE)
def test_follows_its_equations(on_jax, name, dtype):
    weights, gradients = make_problem()
    expected = run_oracle(TABLE[name].make_oracle(), weights, gradients, TABLE[name].learning_rate, dtype)
    actual = [on_jax[f"{name}/{dtype}/{index}"] for index in range(len(expected))]
    assert max(relative_errors(actual, expected)) < {"float32": 3e-6, "bfloat16": 5e-2}[dtype]


def test_trains_a_model_through_fit(on_jax):
    for name in TABLE:
        losses = on_jax[f"{name}/losses"]
        assert np.isfinite(losses).all()
        assert losses[-1] < losses[0], name


def test_extreme_gradients_take_ordinary_steps(on_jax):
    np.testing.assert_allclose(on_jax["tiny gradient"], on_jax["ordinary gradient"], rtol=1e-5)
