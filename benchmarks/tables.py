"""Make the tables of `docs/benchmarks.md` from `benchmarks/results/*.json`, between the markers that the page has."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def environment_line(environment: dict) -> str:
    """Describe the machine in a sentence.

    Args:
        environment: What `environment.describe` returned.

    Returns:
        A line of Markdown.
    """
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    return (
        f"{environment['processor']}, {environment['cores']} cores, Python {environment['python']}; {packages}. "
        "No GPU was used."
    )


def optimizer_table(result: dict, size: str) -> str:
    """Return the milliseconds of one step of each optimizer.

    Args:
        result: The contents of `optimizers.json`.
        size: "big" or "small".

    Returns:
        A Markdown table.
    """
    rows: dict[str, dict[str, dict]] = {}
    for key, value in result["milliseconds"].items():
        case, mode, name = key.split("/")
        if case == size:
            rows.setdefault(name, {})[mode] = value
    reference = rows["keras SGD"]["graph"]["median"]
    lines = [
        "| optimizer | graph, eager or jit: median ms | minimum | against Keras SGD | Keras under XLA: median ms |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, modes in rows.items():
        plain = next(value for mode, value in modes.items() if mode != "xla")
        xla = f"{modes['xla']['median']:.1f}" if "xla" in modes else ""
        ratio = plain["median"] / reference
        lines.append(f"| {name} | {plain['median']:.1f} | {plain['minimum']:.1f} | {ratio:.2f} | {xla} |")
    return "\n".join(lines)


def distributed_table(result: dict) -> str:
    """Return what averaging gradients costs.

    Args:
        result: The contents of `distributed.json`.

    Returns:
        A Markdown table.
    """
    lines = [
        "| variables | optimizer | sent as | wrapped: ms | alone: ms | bare allreduce: ms | (wrapped - alone) / bare |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for key, row in result["results"].items():
        size, name, dtype = key.split("/")
        times = " | ".join(f"{row[label]:.1f}" for label in ("wrapped", "inner", "bare"))
        lines.append(f"| {size} | {name} | {dtype} | {times} | {row['overhead']:.2f} |")
    return "\n".join(lines)


def curvature_table(result: dict) -> str:
    """Return what products with the Hessian cost.

    Args:
        result: The contents of `curvature.json`.

    Returns:
        A Markdown table.
    """
    times = result["milliseconds"]
    lines = ["| | median ms | against its framework's gradient |", "| --- | ---: | ---: |"]
    for name, value in times.items():
        reference = times["TensorFlow gradient" if name.startswith(("tfopt", "TensorFlow")) else "torch gradient"]
        lines.append(f"| {name} | {value:.1f} | {value / reference:.2f} |")
    return "\n".join(lines)


def eigenvalue_table(result: dict) -> str:
    """Return what both ends of the spectrum cost.

    Args:
        result: The contents of `curvature.json`.

    Returns:
        A Markdown table.
    """
    lines = ["| | smallest | largest | products | seconds |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, found in result["eigenvalues"].items():
        low, high = found["ends"]
        lines.append(f"| {name} | {low:.3f} | {high:.3f} | {found['products']} | {found['seconds']:.2f} |")
    return "\n".join(lines)


def callbacks_table(result: dict) -> str:
    """Return what measuring costs a training.

    Args:
        result: The contents of `callbacks.json`.

    Returns:
        A Markdown table.
    """
    lines = [
        "| | fit: s | first measurement: s | all others: s | others, share of the fit |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, row in result["seconds"].items():
        share = row["other measurements"] / row["fit"]
        first, others = row["first measurement"], row["other measurements"]
        lines.append(f"| {name} | {row['fit']:.1f} | {first:.2f} | {others:.2f} | {share:.1%} |")
    return "\n".join(lines)


def nqm_table(result: dict) -> str:
    """Return what the searches of the noisy quadratic model cost.

    Args:
        result: The contents of `nqm.json`.

    Returns:
        A Markdown table.
    """
    seconds = result["seconds"]
    lines = [
        "| seconds | 100 bins, cold | warm | 10,000 curvatures, cold | warm |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name in seconds["100"]["cold"]:
        cells = [f"{seconds[bins][run][name]:.2f}" for bins in ("100", "exact") for run in ("cold", "warm")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    plain = result["numpy_momentum_seconds"]
    lines.append(f"| NumPy, grid for momentum, 4 powers | {plain:.0f} | {plain:.0f} | | |")
    return "\n".join(lines)


def bregman_table(result: dict, shapes: list[str]) -> str:
    """Return what sweeps of training without gradients cost, over the floor of their matrix products.

    Args:
        result: The contents of `bregman.json`.
        shapes: Which shapes to show.

    Returns:
        A Markdown table.
    """
    lines = ["| | " + " | ".join(shapes) + " |", "| --- |" + " ---: |" * len(shapes)]
    rows = {
        "operations of the printed algorithm": [f"{result[s]['operations'] / 1e9:.0f} G" for s in shapes],
        "rate of a matrix product": [f"{result[s]['operations_per_second'] / 1e9:.0f} G/s" for s in shapes],
        "floor": [f"{1000 * result[s]['floor_seconds']:.0f} ms" for s in shapes],
    }
    for case in [name for name, value in result[shapes[0]].items() if isinstance(value, dict)]:
        cells = [(result[s][case]["seconds"], result[s][case]["over_floor"]) for s in shapes]
        rows[f"one sweep, {case}"] = [f"{1000 * seconds:.0f} ms, {ratio:.2f} of it" for seconds, ratio in cells]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    return "\n".join(lines)


def bregman_ranks_table(one: dict, two: dict) -> str:
    """Return what a second rank brings.

    Args:
        one: The contents of `bregman_1_ranks.json`.
        two: The contents of `bregman_2_ranks.json`.

    Returns:
        A Markdown table.
    """
    lines = [
        "| 28-300-1 | 1 rank: ms a sweep | 2 ranks | times faster | bytes a sweep and rank |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name in (name for name in one if name != "environment"):
        first, second = one[name]["seconds"], two[name]["seconds"]
        lines.append(
            f"| {name} | {1000 * first:.0f} | {1000 * second:.0f} | {first / second:.2f} "
            f"| {two[name]['bytes_reduced']:,.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Rewrite the generated parts of the page."""
    page = ROOT / "docs" / "benchmarks.md"
    result, distributed, curvature, callbacks, nqm, bregman, one_rank, two_ranks = (
        json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
        for name in (
            "optimizers",
            "distributed",
            "curvature",
            "callbacks",
            "nqm",
            "bregman",
            "bregman_1_ranks",
            "bregman_2_ranks",
        )
    )
    parts = {
        "environment": environment_line(result["environment"]),
        "optimizers big": optimizer_table(result, "big"),
        "optimizers small": optimizer_table(result, "small"),
        "distributed": distributed_table(distributed),
        "curvature environment": environment_line(curvature["environment"]),
        "curvature products": curvature_table(curvature),
        "curvature eigenvalues": eigenvalue_table(curvature),
        "callbacks environment": environment_line(callbacks["environment"]),
        "callbacks": callbacks_table(callbacks),
        "nqm environment": environment_line(nqm["environment"]),
        "nqm": nqm_table(nqm),
        "bregman environment": environment_line(bregman["environment"]),
        "bregman": bregman_table(bregman, [name for name in bregman if name[0].isdigit()]),
        "bregman ranks": bregman_ranks_table(one_rank, two_ranks),
    }
    text = page.read_text()
    for name, content in parts.items():
        pattern = rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)"
        text = re.sub(pattern, lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text, flags=re.DOTALL)
    page.write_text(text)


if __name__ == "__main__":
    main()
