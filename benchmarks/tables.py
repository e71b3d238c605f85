"""Write the tables of the documents from `benchmarks/results/*.json`, between the markers in the pages."""

import json
import re
import statistics
from pathlib import Path

from scaling_model import PUBLISHED, Network, draw, predict_sweep

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def environment_line(environment: dict) -> str:
    """Return a line of Markdown about the machine, from the result of `environment.describe`."""
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    return (
        f"{environment['processor']}, {environment['cores']} cores, Python {environment['python']}; {packages}. "
        "No GPU was used."
    )


def optimizer_table(result: dict, size: str) -> str:
    """Return a Markdown table of the milliseconds of a step of each optimizer; `size` is "big" or "small"."""
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
    """Return a Markdown table of the cost of averaging gradients, from `distributed.json`."""
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
    """Return a Markdown table of the cost of products with the Hessian, from `curvature.json`."""
    times = result["milliseconds"]
    lines = ["| | median ms | against its framework's gradient |", "| --- | ---: | ---: |"]
    for name, value in times.items():
        reference = times["TensorFlow gradient" if name.startswith(("tfopt", "TensorFlow")) else "torch gradient"]
        lines.append(f"| {name} | {value:.1f} | {value / reference:.2f} |")
    return "\n".join(lines)


def eigenvalue_table(result: dict) -> str:
    """Return a Markdown table of the cost of both ends of the spectrum, from `curvature.json`."""
    lines = ["| | smallest | largest | products | seconds |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, found in result["eigenvalues"].items():
        low, high = found["ends"]
        lines.append(f"| {name} | {low:.3f} | {high:.3f} | {found['products']} | {found['seconds']:.2f} |")
    return "\n".join(lines)


def callbacks_table(result: dict) -> str:
    """Return a Markdown table of the overhead of measurements in a training, from `callbacks.json`."""
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
    """Return a Markdown table of the cost of the noisy quadratic model's searches, from `nqm.json`."""
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
    """Return a Markdown table of the cost of sweeps over the floor of their matrix products, from `bregman.json`."""
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


def scaling_table(one: dict, two: dict, network: Network) -> str:
    """Return a Markdown table of the speed-up by a second rank, measured and predicted by the model of messages."""
    lines = [
        "| | 1 rank: ms | 2 ranks | times faster | bytes of each rank | predicted for 2 ranks: ms |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    cases = {"Keras, a step of 1,024 rows, 784-256-256-10": (one["keras"], two["keras"])}
    cases |= {name: (one["sweeps"][name], two["sweeps"][name]) for name in one["sweeps"]}
    for name, (first, second) in cases.items():
        predicted = ""
        if not name.startswith("Keras") and "restarted, " not in name:
            shape, preset, rows = name.split(", ")
            count = int(rows.removesuffix(" rows").replace(",", ""))
            predicted = f"{1000 * predict_sweep(one, two, network, shape, preset, count, 2, True):.0f}"
        lines.append(
            f"| {name} | {1000 * first['seconds']:.0f} | {1000 * second['seconds']:.0f} "
            f"| {first['seconds'] / second['seconds']:.2f} | {second['bytes_reduced']:,.0f} | {predicted} |"
        )
    return "\n".join(lines)


def messages_table(two: dict, short_cycle: dict, network: Network) -> str:
    """Return a Markdown table of the cost of a message between two ranks, measured and fitted."""
    cycle = short_cycle["cycle_milliseconds"]
    lines = [f"| bytes | measured: ms | fitted: ms | with a cycle of {cycle:g} ms |", "| ---: | ---: | ---: | ---: |"]
    for size, seconds in two["messages"].items():
        fitted = network.sum_seconds(2, int(size), True)
        other = 1000 * short_cycle["messages"][size]
        lines.append(f"| {int(size):,} | {1000 * seconds:.2f} | {1000 * fitted:.2f} | {other:.2f} |")
    lines.append("")
    lines.append(
        f"Wait w = {1e6 * network.wait:.0f} microseconds, latency a = {1e6 * network.latency:.0f} microseconds, "
        f"bandwidth 1 / b = {1e-9 / network.seconds_per_byte:.2f} GB/s."
    )
    return "\n".join(lines)


def prediction_table(one: dict, two: dict, network: Network) -> str:
    """Return a Markdown table of predicted sweeps of the published problems."""
    lines = [
        "| ranks | " + " | ".join(f"{name}: ring, s | tree, s" for name in PUBLISHED) + " |",
        "| ---: |" + " ---: | ---: |" * len(PUBLISHED),
    ]
    for num_ranks in (1, 8, 48, 240, 1010, 7200, 10_000):
        cells = []
        for published in PUBLISHED.values():
            for in_ring in (True, False):
                arguments = (published["widths"], "penalty", published["rows"], num_ranks, in_ring)
                cells.append(f"{float(predict_sweep(one, two, network, *arguments)):.3g}")
        lines.append(f"| {num_ranks:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def faults_table(result: dict) -> str:
    """Return a Markdown table of the effects of killed ranks, from `faults.json`."""
    lines = [
        "| example | kills | ended and named the rank | resumed to the same bits | median s to the end | longest s |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for job in sorted({kill["job"] for kill in result["kills"]}):
        kills = [kill for kill in result["kills"] if kill["job"] == job]
        seconds = sorted(kill["seconds_to_the_end"] for kill in kills)
        lines.append(
            f"| {job} | {len(kills)} | {sum(kill['names_the_rank'] for kill in kills)} "
            f"| {sum(kill['same_bits'] for kill in kills)} | {statistics.median(seconds):.1f} | {seconds[-1]:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Rewrite the generated parts of all pages and the figure of scaling; exit if a part has no marker in any page."""
    names = ("optimizers", "distributed", "curvature", "callbacks", "nqm", "bregman", "faults")
    found = {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in names}
    measured = ("scaling_1_ranks", "scaling_2_ranks", "messages")
    one, two, short_cycle = (json.loads((RESULTS / f"{name}.json").read_text()) for name in measured)
    network = Network.fit([two, short_cycle])
    bregman = found["bregman"]
    parts = {
        "environment": environment_line(found["optimizers"]["environment"]),
        "optimizers big": optimizer_table(found["optimizers"], "big"),
        "optimizers small": optimizer_table(found["optimizers"], "small"),
        "distributed environment": environment_line(found["distributed"]["environment"]),
        "distributed": distributed_table(found["distributed"]),
        "curvature environment": environment_line(found["curvature"]["environment"]),
        "curvature products": curvature_table(found["curvature"]),
        "curvature eigenvalues": eigenvalue_table(found["curvature"]),
        "callbacks environment": environment_line(found["callbacks"]["environment"]),
        "callbacks": callbacks_table(found["callbacks"]),
        "nqm environment": environment_line(found["nqm"]["environment"]),
        "nqm": nqm_table(found["nqm"]),
        "bregman environment": environment_line(bregman["environment"]),
        "bregman": bregman_table(bregman, [name for name in bregman if name[0].isdigit()]),
        "scaling environment": environment_line(two["environment"]),
        "scaling": scaling_table(one, two, network),
        "messages": messages_table(two, short_cycle, network),
        "predictions": prediction_table(one, two, network),
        "faults": faults_table(found["faults"]),
    }
    seen = set()
    for page in sorted((ROOT / "docs").glob("*.md")):
        text = page.read_text()
        for name, content in parts.items():
            pattern = rf"(?<=<!-- begin {name} -->\n).*?(?=<!-- end {name} -->)"
            text, count = re.subn(pattern, lambda _, content=content: f"{content}\n", text, flags=re.DOTALL)
            seen |= {name} if count else set()
        page.write_text(text)
    if seen != set(parts):
        raise SystemExit(f"No page has markers for: {', '.join(sorted(set(parts) - seen))}")
    draw(one, two, network, ROOT / "docs" / "figures" / "scaling.png")


if __name__ == "__main__":
    main()
