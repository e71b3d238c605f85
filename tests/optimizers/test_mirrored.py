"""Two devices under `tf.distribute.MirroredStrategy` give what one device gives."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from run_mirrored import CASES, MEASUREMENTS

SCRIPT = Path(__file__).resolve().parents[1] / "support" / "run_mirrored.py"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("mirrored") / "results.npz"
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent)}
    done = subprocess.run([sys.executable, str(SCRIPT), str(path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.mark.parametrize(("name", "feature"), CASES)
def test_two_devices_equal_one(results, name, feature):
    for index in range(5):
        one, two = (results[f"{name}/{feature}/{count}/{index}"] for count in ("one", "two"))
        assert np.linalg.norm(one - two) <= 1e-9 * np.linalg.norm(one)


@pytest.mark.parametrize("name", ["sgd", "fromage", "lars"])
def test_every_replica_may_exclude_the_same_variables(results, name):
    np.testing.assert_allclose(results[f"excluded/{name}"].ravel(), [2.0 * 0.95, 3.0], rtol=1e-6)


@pytest.mark.parametrize("kind", MEASUREMENTS)
def test_measurements_say_that_they_need_one_device(results, kind):
    message = str(results[f"refused/{kind.__name__}"])
    assert "`model` must not be spread over devices by tf.distribute" in message
    assert "MirroredStrategy of 2 replicas" in message
