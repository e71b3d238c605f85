import csv
import re
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow_by_nature

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def quickstart():
    sys.path.insert(0, str(EXAMPLES))
    try:
        import quickstart

        yield quickstart
    finally:
        sys.path.remove(str(EXAMPLES))


def test_writes_its_table_figures_and_report(quickstart, tmp_path, capsys):
    runs = quickstart.main(["--smoke", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    names = [*quickstart.OPTIMIZERS, "Without gradients (default)"]
    assert [run.name for run in runs] == names
    for run in runs:
        assert run.name in printed
        assert f"{run.test_accuracy:.4f}" in printed
    rows = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert [row["trained by"] for row in rows] == names
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 6
    for part in (
        "lambda_min",
        "lambda_max",
        "16 layers",
        "certifies strong convexity",
        "Steps against batch size",
        "for this network",
    ):
        assert part in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page), "the page must not need other files"
    for name in (
        "learning_curves.png",
        "weight_norms.png",
        "curvature.png",
        "breakdown.png",
        "batch_sizes.png",
        "plan.png",
    ):
        assert (tmp_path / name).stat().st_size > 10_000


def test_shares_and_slopes(quickstart, tmp_path):
    from tfopt import datasets

    diagnostics = quickstart.diagnostics
    certified = diagnostics.certify_regression(seed=0, num_steps=100)
    assert 0.1 < certified.paper < certified.sharp < 0.9
    shallow, deep = diagnostics.draw_breakdown(datasets.load("digits"), tmp_path / "breakdown.png", seed=0)
    assert float(deep[2]) > 100 * float(shallow[2])


def test_default_rates_reach_their_accuracy(quickstart):
    """Fromage 96% and LARS 95% on the test part, with nothing tuned, on the mean of two seeds."""
    from tfopt import datasets

    data, means = datasets.load("digits"), {}
    for name in ("LARS (1.0, default)", "Fromage (0.01, default)"):
        accuracies = []
        for seed in (0, 1):
            model, batches = quickstart.prepare(name, data, seed)
            model.fit(batches, shuffle=False, epochs=40, verbose=0)
            accuracies.append(model.evaluate(data.x_test, data.y_test, verbose=0, return_dict=True)["accuracy"])
        means[name] = sum(accuracies) / 2
    assert means["Fromage (0.01, default)"] >= 0.96
    assert means["LARS (1.0, default)"] >= 0.95
