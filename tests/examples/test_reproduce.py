"""Each reproduction runs for real, in its smallest setting."""

import contextlib
import functools
import io
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from image_files import write_small_image_set

pytestmark = pytest.mark.slow_by_nature
FOLDER = Path(__file__).resolve().parents[2] / "examples" / "reproduce"
HELPERS = {
    "finished_cells",
    "page",
    "published_networks",
    "real_training",
    "reproduction",
    "run_all",
    "training_traces",
}
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in HELPERS)


@pytest.fixture(scope="module")
def load():
    sys.path.insert(0, str(FOLDER))
    try:
        yield __import__
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def run(load, tmp_path_factory):
    """Runs a script in its smallest setting, once; gives what came of it, what it printed, and its folder."""

    @functools.cache
    def run_once(script):
        folder = tmp_path_factory.mktemp(script)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            found = load(script).main(["--smoke", "--output", str(folder)])
        return found, printed.getvalue(), folder

    return run_once


@pytest.mark.parametrize("script", SCRIPTS)
def test_writes_and_prints_published_beside_measured(run, script):
    found, printed, folder = run(script)
    content = json.loads((folder / "results.json").read_text())
    assert content["size"] == "smoke"
    assert content["results"]
    assert len(content["claims"]) == len(found.claims) > 0
    for claim in content["claims"]:
        assert claim["verdict"] in ("held", "partly", "did not hold")
        assert claim["published"]
        assert claim["measured"]
    assert "published" in printed
    assert "verdict" in printed
    assert (folder / "figure.png").stat().st_size > 10_000


def test_the_page_takes_over_what_was_measured(load, run, tmp_path):
    shutil.copytree(run("norms_to_overflow")[2], tmp_path / "runs" / "norms_to_overflow")
    page = tmp_path / "page.md"
    page.write_text(
        "a\n<!-- begin norms_to_overflow -->\nold\n<!-- end norms_to_overflow -->\nb\n<!-- begin other -->\nc"
    )
    arguments = ["--runs", str(tmp_path / "runs"), "--page", str(page)]
    with pytest.raises(SystemExit, match="No quick results"):
        load("page").main(arguments)
    load("page").main([*arguments, "--size", "smoke"])
    lines = page.read_text().splitlines()
    assert lines[:3] == ["a", "<!-- begin norms_to_overflow -->", "| | published | measured | verdict |"]
    assert sum(line.endswith("| held |") for line in lines) == 3
    assert lines[-4:] == ["<!-- end norms_to_overflow -->", "b", "<!-- begin other -->", "c"]


def write_results(folder, size, *claims):
    folder.mkdir(parents=True, exist_ok=True)
    found = [dict(zip(("statement", "published", "measured", "verdict"), claim, strict=True)) for claim in claims]
    content = {
        "size": size,
        "data": "fashion_mnist",
        "num_rows": None,
        "seed": 7,
        "machine": "2 cores",
        "unfinished": 4,
    }
    (folder / "figure.png").write_bytes(b"figure")
    (folder / "results.json").write_text(json.dumps({**content, "date": "2026-11-28", "claims": found}))
    return folder


def test_the_page_shows_the_published_size_beside_the_quick_results(load, tmp_path):
    page, runs = tmp_path / "page.md", tmp_path / "runs"
    page.write_text("a\n<!-- begin b -->\n<!-- end b -->\nc")
    full = write_results(tmp_path / "full" / "b", "full", ("|W|", "3", "2.9", "held"), ("z", "1", "0", "did not hold"))
    write_results(runs / "b", "quick", ("|W|", "3", "2", "partly"), ("y", "5", "5", "held"))
    expected = [
        "a",
        "<!-- begin b -->",
        "| | published | measured | verdict | published size, fashion_mnist | verdict |",
        "| --- | --- | --- | --- | --- | --- |",
        "| \\|W\\| | 3 | 2 | partly | 2.9 | held |",
        "| y | 5 | 5 | held | | |",
        "| z | 1 | | | 0 | did not hold |",
        "",
        "Published size: 2026-11-28, seed 7, 2 cores. 4 of its trainings and measurements are not finished.",
        "",
        "![Published size](figures/b_published_size.png)",
        "<!-- end b -->",
        "c",
    ]
    arguments = ["--page", str(page), "--runs", str(runs)]
    load("page").main([*arguments, "--keep", str(full)])
    assert page.read_text().splitlines() == expected
    assert json.loads((tmp_path / "results" / "b.json").read_text())["seed"] == 7
    assert (tmp_path / "figures" / "b_published_size.png").read_bytes() == b"figure"
    (runs / "b" / "results.json").unlink()  # The first columns stay as they are.
    load("page").main(arguments)
    assert page.read_text().splitlines() == expected
    with pytest.raises(SystemExit, match="must hold the results.json of a --full run"):
        load("page").main([*arguments, "--keep", str(runs / "b")])


def test_the_page_and_the_one_command_know_every_script(load):
    named = set(re.findall(r"<!-- begin (\w+) -->", (FOLDER.parents[1] / "docs" / "reproductions.md").read_text()))
    listed = (*load("run_all").WITH_CLOCKS, *load("run_all").OTHERS)
    assert len(listed) == len(named)
    assert named == set(listed)
    assert named | {"bregman_defaults"} == set(SCRIPTS)  # whose page is docs/bregman-defaults.md


# What a script does here: leaves when it began and ended, how many threads it had, and two claims. "a" and "b"
# each wait until the other one has begun.
CHEAP = """
import json, os, pathlib, sys, time
begin, folder = time.monotonic(), pathlib.Path(sys.argv[3])
(folder / "begun").touch()
other = folder.with_name({"a": "b", "b": "a"}.get(folder.name, folder.name)) / "begun"
while not other.exists() and time.monotonic() < begin + 300:
    time.sleep(0.01)
print("from", sys.argv[1])
if folder.name == "bad":
    sys.exit("no such thing")
claims = [{"verdict": "held"}, {"verdict": "partly"}]
found = {"claims": claims, "when": [begin, time.monotonic()], "threads": os.environ["TF_NUM_INTRAOP_THREADS"]}
found["data"] = sys.argv[4:]
(folder / "results.json").write_text(json.dumps(found))
"""


def test_all_run_side_by_side_but_for_those_with_clocks(load, tmp_path, monkeypatch, capsys):
    run_all, names = load("run_all"), {"WITH_CLOCKS": ("c", "d"), "OTHERS": ("a", "b", "bad")}
    monkeypatch.setattr(run_all, "FOLDER", tmp_path)
    monkeypatch.setattr(run_all.os, "cpu_count", lambda: 6)
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    for kind, members in names.items():
        monkeypatch.setattr(run_all, kind, members)
        for name in members:
            (tmp_path / f"{name}.py").write_text(CHEAP)
    monkeypatch.setattr(run_all, "WITHOUT_DATA", ("d",))
    data = ["--data", "fashion_mnist", "--data-dir", "somewhere", "--rows", "30"]
    arguments = ["--size", "smoke", "--jobs", "3", "--output", str(tmp_path / "runs"), *data]
    with pytest.raises(SystemExit, match="1 of 5 failed"):
        run_all.main(arguments)
    printed = capsys.readouterr().out
    assert re.search(r"a: [0-9.]+ min; 1 held, 1 partly", printed)
    assert re.search(r"bad ended with 1; .*log.txt ends with:\s+from --smoke\s+no such thing", printed, re.DOTALL)
    found = {name: json.loads((tmp_path / "runs" / name / "results.json").read_text()) for name in "abcd"}
    assert [found[name]["threads"] for name in "abcd"] == ["2", "2", "6", "6"]
    assert [found[name]["data"] for name in "abcd"] == [data, data, data, []]
    assert found["a"]["when"][0] < found["b"]["when"][1]
    assert found["b"]["when"][0] < found["a"]["when"][1]
    assert found["c"]["when"][1] <= found["d"]["when"][0]
    assert found["d"]["when"][1] <= min(found["a"]["when"][0], found["b"]["when"][0])
    run_all.main([*arguments, "a"])
    assert capsys.readouterr().out.count("min;") == 1
    for wrong, message in ((["x"], "there is no x"), (["--jobs", "0"], "at least 1")):
        with pytest.raises(SystemExit):
            run_all.main(wrong)
        assert message in capsys.readouterr().err


def test_finished_cells_are_not_computed_again(load, tmp_path, capsys):
    finished_cells = load("finished_cells").FinishedCells
    calls = []

    def compute(rate, seed):
        calls.append((rate, seed))
        return {"loss": float("inf"), "accuracies": [rate, seed]}

    cells = finished_cells(tmp_path / "cells.json", {"epochs": 3, "data": "digits"})
    expected = {"loss": None, "accuracies": [0.1, 0]}
    assert cells.get(compute, rate=0.1, seed=0) == expected
    assert (
        finished_cells(tmp_path / "cells.json", {"epochs": 3, "data": "digits"}).get(compute, rate=0.1, seed=0)
        == expected
    )
    assert calls == [(0.1, 0)]
    other = finished_cells(tmp_path / "cells.json", {"epochs": 3, "data": "digits"}, only_finished=True)
    assert other.get(compute, rate=0.1, seed=1) is None
    assert other.unfinished == {"rate=0.1, seed=1"}
    cells.get(compute, rate=0.1, seed=1)
    assert calls == [(0.1, 0), (0.1, 1)]
    content = json.loads((tmp_path / "cells.json").read_text())
    assert set(content["cells"]) == {"rate=0.1, seed=0", "rate=0.1, seed=1"}
    assert set(content["cells"]["rate=0.1, seed=0"]) == {"result", "seconds", "date", "machine", "versions"}
    content["cells"]["rate=0.1, seed=0"]["date"] = "2025-01-02 03:04 UTC"
    content["cells"]["rate=0.1, seed=0"]["machine"] = "another one"
    (tmp_path / "cells.json").write_text(json.dumps(content))
    last = content["cells"]["rate=0.1, seed=1"]
    made = other.when_and_where()
    assert made["date"] == f"2025-01-02 to {last['date'][:10]}"
    assert set(made["machine"].split("; ")) == {"another one", last["machine"]}
    with pytest.raises(SystemExit, match=r"cells.json holds cells with epochs=3, and this run has epochs=4"):
        finished_cells(tmp_path / "cells.json", {"epochs": 4, "data": "digits"})
    assert "rate=0.1, seed=1" in capsys.readouterr().out


def test_a_cell_that_is_interrupted_while_it_is_written_leaves_the_others(load, tmp_path, monkeypatch):
    module = load("finished_cells")
    cells = module.FinishedCells(tmp_path / "cells.json", {})
    assert cells.get(lambda seed: seed, seed=0) == 0

    def interrupt(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            cells.get(lambda seed: seed, seed=1)
    assert module.FinishedCells(tmp_path / "cells.json", {}, only_finished=True).get(None, seed=0) == 0
    assert module.FinishedCells(tmp_path / "cells.json", {}, only_finished=True).get(None, seed=1) is None


def test_a_training_goes_on_from_its_last_checkpoint_with_the_same_bits(load, tmp_path):
    from tfopt import datasets

    data = datasets.load("digits", num_rows=600).flattened()
    for folder in ("once", "interrupted"):
        (tmp_path / folder).mkdir()
    checkpoints = load("breakdown_profiles").Checkpoints
    expected = checkpoints(data, 16, 0, tmp_path / "once").network("2 layers", 2).get_weights()
    first = checkpoints(data, 16, 0, tmp_path / "interrupted").network("2 layers", 1).get_weights()
    resumed = checkpoints(data, 16, 0, tmp_path / "interrupted").network("2 layers", 2).get_weights()
    assert not np.array_equal(first[0], resumed[0])
    for ours, theirs in zip(resumed, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_networks_are_those_of_the_authors(load):
    """PyTorch draws weights and biases from +-1 / sqrt(fan_in), and every hidden layer of 784 units has a skip."""
    from tfopt import datasets

    data = datasets.load("digits").flattened()
    build = load("published_networks").published_network
    model = build(data, width=64, num_hidden=2, residual=True, seed=3)
    x = data.x_test[:5]
    w = [np.asarray(value, np.float64) for value in model.get_weights()]
    h = x + np.maximum(x @ w[0] + w[1], 0)
    h = h + np.maximum(h @ w[2] + w[3], 0)
    np.testing.assert_allclose(model(x).numpy(), h @ w[4] + w[5], rtol=1e-4, atol=1e-5)
    for value in w:
        assert 0.1 < np.abs(value).max() <= 1 / 8
    assert not np.array_equal(w[0], w[2])
    w = build(data, width=50, num_hidden=1, seed=3).get_weights()
    np.testing.assert_allclose(
        build(data, width=50, num_hidden=1, residual=True, seed=3)(x).numpy(),
        np.maximum(x @ w[0] + w[1], 0) @ w[2] + w[3],
        rtol=1e-4,
        atol=1e-5,
    )


def test_the_regression_in_numpy_is_that_in_keras(run):
    one_trial = run("milne_regression")[0].results["one_trial"]
    assert one_trial["keras"] == pytest.approx(one_trial["numpy"], abs=0.01)
    assert 0.1 < one_trial["numpy"][0] < 0.9  # certified on part of the way


def test_norms_overflow_when_they_should(run):
    assert [claim.verdict for claim in run("norms_to_overflow")[0].claims] == ["held"] * 3


def test_findings_of_the_noisy_quadratic_model_hold(run):
    found = run("nqm_figures")[0]
    # Twenty bins need a little more than the bound on all 10,000 directions.
    # At small batches the best schedule does not begin at the largest stable rate.
    assert [claim.verdict for claim in found.claims[:-1]] == ["held"] * 5 + ["partly", "held"]


def test_entry_into_the_convex_regime(load):
    entry_step = load("convexity_along_paths").entry_step
    assert entry_step([0, 4, 8], [1.0, 2.0, 3.0]) == 0
    assert entry_step([0, 4, 8, 12], [1.0, -2.0, 3.0, 1.0]) == 8
    assert entry_step([0, 4, 8], [1.0, 2.0, -3.0]) == 8


class LoadedError(Exception):
    """Ends a script at the place where it has chosen its data."""


def test_every_script_takes_the_data_of_the_user(load, tmp_path, monkeypatch):
    def load_nothing(chosen, **options):
        raise LoadedError(chosen, options["data_dir"], options["num_rows"])

    monkeypatch.setattr(load("reproduction").datasets, "load", load_nothing)
    arguments = ["--smoke", "--output", str(tmp_path)]
    arguments += ["--data", "fashion_mnist", "--data-dir", "somewhere", "--rows", "30"]
    for script in set(SCRIPTS) - {*load("run_all").WITHOUT_DATA, "bregman_defaults"}:
        with pytest.raises(LoadedError) as caught:
            load(script).main(arguments)
        assert caught.value.args == ("fashion_mnist", Path("somewhere"), 30), script


@pytest.mark.parametrize(
    ("data", "script", "shape"),
    [("fashion_mnist", "breakdown_profiles", (28, 28, 1)), ("cifar10", "large_batches", (32, 32, 3))],
)
def test_a_reproduction_on_image_files(data, script, shape, load, tmp_path, monkeypatch):
    write_small_image_set(data, tmp_path, monkeypatch)
    found = load(script).main(["--smoke", "--data", data, "--data-dir", str(tmp_path), "--output", str(tmp_path)])
    assert found.load().input_shape == shape
    content = json.loads((tmp_path / "results.json").read_text())
    assert (content["data"], content["num_rows"], content["seed"]) == (data, None, 0)
    assert {"date", "machine", "versions"} < set(content)


def test_only_full_runs_resume(load, tmp_path):
    start = load("reproduction").start
    for size, expected in (("--full", [1, 1]), ("--quick", [1, 2])):
        made = []
        for _ in range(2):
            cells = start("x", "title", [size, "--output", str(tmp_path)], None).finished_cells(epochs=3)
            made.append(cells.get(lambda seed, made=made: len(made) + 1, seed=0))
        assert made == expected
    again = start("x", "title", ["--full", "--output", str(tmp_path)], None).finished_cells(epochs=3)
    assert again.get(None, seed=0) == 1  # Quick runs leave the cells of full ones.
    with pytest.raises(SystemExit, match="data='digits'.*data='breast_cancer'"):
        start("x", "title", ["--full", "--output", str(tmp_path), "--data", "breast_cancer"], None).finished_cells()


def test_mnist_is_used_when_it_is_on_disk(load, tmp_path, monkeypatch):
    reproduction = load("reproduction")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert reproduction.default_data() == "digits"
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "mnist.npz").touch()
    assert reproduction.default_data() == "mnist"


def test_sizes(load):
    run = load("reproduction").start("x", "title", ["--full", "--seed", "3"], None)
    assert (run.choose(1, 2, 3), run.seed, run.data) == (3, 3, load("reproduction").default_data())
    assert load("reproduction").start("x", "title", [], None).choose(1, 2, 3) == 2
