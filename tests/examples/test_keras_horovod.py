"""The examples under `horovodrun`: on two ranks they give what they give in one process."""

import importlib.util
import re
from pathlib import Path

import pytest
from launch_ranks import horovodrun

pytestmark = pytest.mark.slow_by_nature
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(autouse=True)
def folder_of_examples(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def on_two_ranks(name, *arguments):
    done = horovodrun(2, EXAMPLES / f"{name}.py", *arguments)
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def test_keras_horovod(tmp_path, capsys):
    history = load("keras_horovod").main(["--epochs", "4", "--checkpoints", str(tmp_path / "alone")])
    assert history["val_accuracy"][-1] > 0.7
    alone = re.findall(r"test accuracy ([0-9.]+)", capsys.readouterr().out)
    interrupted = on_two_ranks("keras_horovod", "--epochs", 2, "--checkpoints", tmp_path / "ranks")
    assert "2 rank(s): test accuracy" in interrupted
    resumed = on_two_ranks("keras_horovod", "--epochs", 4, "--checkpoints", tmp_path / "ranks")
    assert "Resuming after epoch 2" in resumed
    (accuracy,) = re.findall(r"test accuracy ([0-9.]+)", resumed)  # rank 0 alone prints
    assert float(accuracy) == pytest.approx(float(alone[0]), abs=0.005)


def test_bregman_horovod(tmp_path, capsys):
    history = load("bregman_horovod").main(["--smoke", "--checkpoints", str(tmp_path / "alone")])
    (alone,) = re.findall(r"test accuracy ([0-9.]+)", capsys.readouterr().out)
    assert history["val_accuracy"][-1] > 0.6
    (together,) = re.findall(
        r"2 rank.s.: test accuracy ([0-9.]+)",
        on_two_ranks("bregman_horovod", "--smoke", "--checkpoints", tmp_path / "ranks"),
    )
    assert float(together) == pytest.approx(float(alone), abs=0.005)


def test_quickstart_on_two_ranks(tmp_path):
    output = on_two_ranks("quickstart", "--smoke", "--output", tmp_path)
    assert output.count("Fromage (0.01, default)") == 2  # its progress and its row, of rank 0
    assert "data:image/png;base64," in (tmp_path / "report.html").read_text()
    rows = (tmp_path / "results.csv").read_text().splitlines()
    assert len(rows) == 6
