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


def main() -> None:
    """Rewrite the generated parts of the page."""
    page = ROOT / "docs" / "benchmarks.md"
    result, distributed, curvature, callbacks, nqm = (
        json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
        for name in ("optimizers", "distributed", "curvature", "callbacks", "nqm")
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
    }
    text = page.read_text()
    for name, content in parts.items():
        pattern = rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)"
        text = re.sub(pattern, lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text, flags=re.DOTALL)
    page.write_text(text)


if __name__ == "__main__":
    main()
