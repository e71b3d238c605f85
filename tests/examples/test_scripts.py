"""Each example runs for real, in a small setting."""

import importlib.util
from pathlib import Path

import pytest
from event_files import read_scalars
from image_files import write_small_image_set

from tfopt import datasets
from tfopt.planning import BatchSizePlan

pytestmark = pytest.mark.slow_by_nature

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PARTS = ("diagnostics", "example_data", "report")  # Of other examples.
WITHOUT_DATA = ("nqm_batch_size",)  # It makes its own problem.


@pytest.fixture(autouse=True)
def folder_of_examples(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_fromage_vs_adam(tmp_path, capsys):
    example = load("fromage_vs_adam")
    results = example.main(["--smoke", "--depth", "1", "--output", str(tmp_path)])
    assert set(results) == {"Adam", "Fromage"}
    assert all(len(accuracies) == len(example.RATES) for accuracies in results.values())
    assert max(results["Fromage"]) > 0.7  # one epoch at the best rate
    assert (tmp_path / "accuracy.png").stat().st_size > 5_000
    assert f"{max(results['Fromage']):.3f}" in capsys.readouterr().out


def test_why_did_it_diverge(tmp_path, capsys):
    products = load("why_did_it_diverge").main(["--smoke", "--output", str(tmp_path)])
    assert products[0.02] < 3.8 < products[0.1] < products[0.5]
    assert products[0.5] == pytest.approx(25 * products[0.02], rel=1e-5)  # the same curvature before the first step
    assert (tmp_path / "diagnosis.png").stat().st_size > 5_000
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].endswith("nan")
    assert "nan" not in "".join(printed[:-1])


def test_large_batch_lars(tmp_path, capsys):
    example = load("large_batch_lars")
    results = example.main(["--smoke", "--output", str(tmp_path)])
    assert set(results) == set(example.FAMILIES)
    assert all(0 <= accuracy <= 1 for found in results.values() for _, accuracy in found)
    assert max(accuracy for _, accuracy in results["SGD with momentum"]) > 0.2  # four steps
    assert (tmp_path / "accuracy.png").stat().st_size > 5_000
    assert "1024" in capsys.readouterr().out


def test_callbacks_tensorboard(tmp_path, capsys):
    history = load("callbacks_tensorboard").main(["--smoke", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    for name in ("hessian/lambda_max", "breakdown/descent_bound", "gradient_noise/noise_scale", "weight_norms/max"):
        assert len(history[name]) == 2
        assert name in printed
        assert name in (tmp_path / "log.csv").read_text()
    exact, by_epoch = read_scalars(tmp_path / "measurements"), read_scalars(tmp_path / "fit")
    assert sorted(exact["hessian/lambda_max"]) == [0, 22, 44]
    assert sorted(exact["relative_perturbation/hidden_1/kernel"]) == [1, 22, 44]
    assert "epoch_convexity/loss" in by_epoch


def test_nqm_batch_size(tmp_path, capsys):
    best = load("nqm_batch_size").main(["--smoke", "--output", str(tmp_path)])
    assert set(best) == {"SGD", "momentum", "averaged SGD"}
    assert best["averaged SGD"].steps[0] < 0.5 * best["SGD"].steps[0]
    assert best["momentum"].steps[-1] < 0.1 * best["SGD"].steps[-1]
    printed = capsys.readouterr().out
    assert "steps at batch size 64" in printed
    assert f"{best['SGD'].steps[0]:.0f}" in printed
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_plan_my_model(tmp_path, capsys):
    plan = load("plan_my_model").main(["--smoke", "--budget", "12", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert repr(plan) in printed
    assert "steps to a loss of" in printed
    assert repr(BatchSizePlan.load(tmp_path / "plan.json")) == repr(plan)
    assert (tmp_path / "figure.png").stat().st_size > 10_000


class LoadedError(Exception):
    """Ends an example at the place where it has chosen its data."""


@pytest.mark.parametrize("name", sorted({path.stem for path in EXAMPLES.glob("*.py")} - {*PARTS, *WITHOUT_DATA}))
def test_every_example_takes_the_data_of_the_user(name, tmp_path, monkeypatch):
    def load_nothing(chosen, **options):
        raise LoadedError(chosen, options["data_dir"], options["num_rows"])

    monkeypatch.setattr(datasets, "load", load_nothing)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LoadedError) as caught:
        load(name).main(["--smoke", "--data", "fashion_mnist", "--data-dir", "somewhere", "--rows", "30"])
    assert caught.value.args == ("fashion_mnist", Path("somewhere"), 30)


def test_an_example_on_image_files(tmp_path, monkeypatch):
    write_small_image_set("fashion_mnist", tmp_path, monkeypatch)
    arguments = ["--data", "fashion_mnist", "--data-dir", str(tmp_path), "--rows", "200"]
    history = load("keras_horovod").main(["--smoke", "--checkpoints", str(tmp_path / "checkpoints"), *arguments])
    assert len(history["val_accuracy"]) == 2


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_every_example_is_tested(path):
    tests = "".join(test.read_text() for test in Path(__file__).parent.glob("test_*.py"))
    assert path.stem in PARTS or f'"{path.stem}"' in tests or f"import {path.stem}" in tests
