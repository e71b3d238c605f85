"""Write the tables of the documents from `benchmarks/results/*.json`, between the markers in the pages."""

import json
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from scaling_model import PUBLISHED, Network, draw, predict_sweep

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], num_labels: int = 1) -> str:
    """Return a Markdown table whose first `num_labels` columns are words, and the others numbers."""
    alignment = ["---"] * num_labels + ["---:"] * (len(header) - num_labels)
    lines = [" | ".join(header).lstrip(), *(" | ".join(cells) for cells in (alignment, *rows))]
    return "\n".join(f"| {line} |" for line in lines)


def environment_line(environment: dict) -> str:
    """Return a line of Markdown about the machine, from the result of `environment.describe`."""
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    return (
        f"{environment['processor']}, {environment['cores']} cores, Python {environment['python']}; {packages}. "
        "No GPU was used."
    )


def optimizer_table(result: dict, size: str) -> str:
    """Return the table of the milliseconds of a step of each optimizer; `size` is "big" or "small"."""
    found: dict[str, dict[str, dict]] = {}
    for key, value in result["milliseconds"].items():
        case, mode, name = key.split("/")
        if case == size:
            found.setdefault(name, {})[mode] = value
    reference = found["keras SGD"]["graph"]["median"]
    rows = []
    for name, modes in found.items():
        plain = next(value for mode, value in modes.items() if mode != "xla")
        xla = f"{modes['xla']['median']:.1f}" if "xla" in modes else ""
        ratio = plain["median"] / reference
        rows.append([name, f"{plain['median']:.1f}", f"{plain['minimum']:.1f}", f"{ratio:.2f}", xla])
    last = ("against Keras SGD", "Keras under XLA: median ms")
    return table(["optimizer", "graph, eager or jit: median ms", "minimum", *last], rows)


def distributed_table(result: dict) -> str:
    """Return the table of the cost of averaging gradients, from `distributed.json`."""
    rows = []
    for key, row in result["results"].items():
        times = [f"{row[label]:.1f}" for label in ("wrapped", "inner", "bare")]
        rows.append([*key.split("/"), *times, f"{row['overhead']:.2f}"])
    times = ["wrapped: ms", "alone: ms", "bare allreduce: ms", "(wrapped - alone) / bare"]
    return table(["variables", "optimizer", "sent as", *times], rows, num_labels=3)


def curvature_table(result: dict) -> str:
    """Return the table of the cost of products with the Hessian, from `curvature.json`."""
    times, rows = result["milliseconds"], []
    for name, value in times.items():
        reference = times["TensorFlow gradient" if name.startswith(("tfopt", "TensorFlow")) else "torch gradient"]
        rows.append([name, f"{value:.1f}", f"{value / reference:.2f}"])
    return table(["", "median ms", "against its framework's gradient"], rows)


def eigenvalue_table(result: dict) -> str:
    """Return the table of the cost of both ends of the spectrum, from `curvature.json`."""
    rows = [
        [name, *(f"{end:.3f}" for end in found["ends"]), f"{found['products']}", f"{found['seconds']:.2f}"]
        for name, found in result["eigenvalues"].items()
    ]
    return table(["", "smallest", "largest", "products", "seconds"], rows)


def callbacks_table(result: dict) -> str:
    """Return the table of the overhead of measurements in a training, from `callbacks.json`."""
    rows = []
    for name, row in result["seconds"].items():
        fit, first, others = row["fit"], row["first measurement"], row["other measurements"]
        rows.append([name, f"{fit:.1f}", f"{first:.2f}", f"{others:.2f}", f"{others / fit:.1%}"])
    return table(["", "fit: s", "first measurement: s", "all others: s", "others, share of the fit"], rows)


def nqm_table(result: dict) -> str:
    """Return the table of the cost of the noisy quadratic model's searches, from `nqm.json`."""
    seconds = result["seconds"]
    rows = [
        [name, *(f"{seconds[bins][run][name]:.2f}" for bins in ("100", "exact") for run in ("cold", "warm"))]
        for name in seconds["100"]["cold"]
    ]
    plain = f"{result['numpy_momentum_seconds']:.0f}"
    searches = table(["seconds", "100 bins, cold", "warm", "10,000 curvatures, cold", "warm"], rows)
    return f"{searches}\n| NumPy, grid for momentum, 4 powers | {plain} | {plain} | | |"


def bregman_table(result: dict, shapes: list[str]) -> str:
    """Return the table of the cost of sweeps over the floor of their matrix products, from `bregman.json`."""
    rows = [
        ["operations of the printed algorithm", *(f"{result[s]['operations'] / 1e9:.0f} G" for s in shapes)],
        ["rate of a matrix product", *(f"{result[s]['operations_per_second'] / 1e9:.0f} G/s" for s in shapes)],
        ["floor", *(f"{1000 * result[s]['floor_seconds']:.0f} ms" for s in shapes)],
    ]
    for case in [name for name, value in result[shapes[0]].items() if isinstance(value, dict)]:
        cells = [(result[s][case]["seconds"], result[s][case]["over_floor"]) for s in shapes]
        rows.append([
            f"one sweep, {case}",
            *(f"{1000 * seconds:.0f} ms, {ratio:.2f} of it" for seconds, ratio in cells),
        ])
    return table(["", *shapes], rows)


def scaling_table(one: dict, two: dict, network: Network) -> str:
    """Return the table of the speed-up by a second rank, measured and predicted by the model of messages."""
    cases = {"Keras, a step of 1,024 rows, 784-256-256-10": (one["keras"], two["keras"])}
    cases |= {name: (one["sweeps"][name], two["sweeps"][name]) for name in one["sweeps"]}
    rows = []
    for name, (first, second) in cases.items():
        predicted = ""
        if not name.startswith("Keras") and "restarted, " not in name:
            shape, preset, words = name.split(", ")
            count = int(words.removesuffix(" rows").replace(",", ""))
            predicted = f"{1000 * predict_sweep(one, two, network, shape, preset, count, 2, True):.0f}"
        alone, both = first["seconds"], second["seconds"]
        times = [f"{1000 * alone:.0f}", f"{1000 * both:.0f}", f"{alone / both:.2f}"]
        rows.append([name, *times, f"{second['bytes_reduced']:,.0f}", predicted])
    last = ("bytes of each rank", "predicted for 2 ranks: ms")
    return table(["", "1 rank: ms", "2 ranks", "times faster", *last], rows)


def messages_table(two: dict, short_cycle: dict, network: Network) -> str:
    """Return the table of the cost of a message between two ranks, measured and fitted."""
    rows = []
    for size, seconds in two["messages"].items():
        times = (seconds, network.sum_seconds(2, int(size), True), short_cycle["messages"][size])
        rows.append([f"{int(size):,}", *(f"{1000 * time:.2f}" for time in times)])
    cycle = f"with a cycle of {short_cycle['cycle_milliseconds']:g} ms"
    return (
        f"{table(['bytes', 'measured: ms', 'fitted: ms', cycle], rows, num_labels=0)}\n\n"
        f"Wait w = {1e6 * network.wait:.0f} microseconds, latency a = {1e6 * network.latency:.0f} microseconds, "
        f"bandwidth 1 / b = {1e-9 / network.seconds_per_byte:.2f} GB/s."
    )


def prediction_table(one: dict, two: dict, network: Network) -> str:
    """Return the table of predicted sweeps of the published problems."""
    rows = []
    for num_ranks in (1, 8, 48, 240, 1010, 7200, 10_000):
        rows.append([f"{num_ranks:,}"])
        for published in PUBLISHED.values():
            for in_ring in (True, False):
                arguments = (published["widths"], "penalty", published["rows"], num_ranks, in_ring)
                rows[-1].append(f"{float(predict_sweep(one, two, network, *arguments)):.3g}")
    header = [name for published in PUBLISHED for name in (f"{published}: ring, s", "tree, s")]
    return table(["ranks", *header], rows, num_labels=0)


def faults_table(result: dict) -> str:
    """Return the table of the effects of killed ranks, from `faults.json`."""
    rows = []
    for job in sorted({kill["job"] for kill in result["kills"]}):
        kills = [kill for kill in result["kills"] if kill["job"] == job]
        seconds = [kill["seconds_to_the_end"] for kill in kills]
        counts = (len(kills), sum(kill["names_the_rank"] for kill in kills), sum(kill["same_bits"] for kill in kills))
        rows.append([job, *map(str, counts), f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}"])
    counts = ("kills", "ended and named the rank", "resumed to the same bits")
    return table(["example", *counts, "median s to the end", "longest s"], rows)


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
