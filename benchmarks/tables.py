"""Write the tables of the documents from `benchmarks/results/*.json`, between the markers in the pages."""

import json
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scaling_model import PUBLISHED, Network, draw, predict_sweep

# The callbacks of `measuring.json` in fits of equal models, and their words.
FITS = {"Convexity": "Convexity", "no eigenvalues": "Convexity without eigenvalues", "callbacks": "three callbacks"}
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return a Markdown table. Names in the header end with "|" and the format of the numbers, except for words."""
    names, marks, formats = zip(*(name.partition("|") for name in header), strict=True)
    lines = [names, ["---:" if mark else "---" for mark in marks]]
    for row in rows:
        cells = zip(row, formats, strict=True)
        lines.append([cell if isinstance(cell, str) else format(cell, number) for cell, number in cells])
    return "\n".join(f"| {' | '.join(line).lstrip()} |" for line in lines)


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
        xla = modes["xla"]["median"] if "xla" in modes else ""
        rows.append([name, plain["median"], plain["minimum"], plain["median"] / reference, xla])
    times = ("graph, eager or jit: median ms|.1f", "minimum|.1f", "against Keras SGD|.2f")
    return table(["optimizer", *times, "Keras under XLA: median ms|.1f"], rows)


def distributed_table(result: dict) -> str:
    """Return the table of the cost of averaging gradients, from `distributed.json`."""
    names = ("wrapped", "inner", "bare", "overhead")
    rows = [[*key.split("/"), *(row[name] for name in names)] for key, row in result["results"].items()]
    times = ("wrapped: ms|.1f", "alone: ms|.1f", "bare allreduce: ms|.1f", "(wrapped - alone) / bare|.2f")
    return table(["variables", "optimizer", "sent as", *times], rows)


def curvature_table(result: dict) -> str:
    """Return the table of the cost of products with the Hessian, from `curvature.json`."""
    times, rows = result["milliseconds"], []
    for name, value in times.items():
        reference = times["TensorFlow gradient" if name.startswith(("tfopt", "TensorFlow")) else "torch gradient"]
        rows.append([name, value, value / reference])
    return table(["", "median ms|.1f", "against its framework's gradient|.2f"], rows)


def eigenvalue_table(result: dict) -> str:
    """Return the table of the cost of both ends of the spectrum, from `curvature.json`."""
    found = result["eigenvalues"].items()
    rows = [[name, *each["ends"], each["products"], each["seconds"]] for name, each in found]
    return table(["", "smallest|.3f", "largest|.3f", "products|", "seconds|.2f"], rows)


def callbacks_table(result: dict) -> str:
    """Return the table of the overhead of measurements in a training, from `callbacks.json`."""
    rows = []
    for name, row in result["seconds"].items():
        fit, first, others = row["fit"], row["first measurement"], row["other measurements"]
        rows.append([name, fit, first, others, others / fit])
    times = ("fit: s|.1f", "first measurement: s|.2f", "all others: s|.2f", "others, share of the fit|.1%")
    return table(["", *times], rows)


def measuring_table(result: dict, section: str) -> str:
    """Return the table of a section of `measuring.json`: seconds of both builds, and what they are compared with."""
    rows = []
    for network, measured in result[section].items():
        found = measured["cases"]
        for case, (name, other, build, count) in MEASURED[section].items():
            if case not in found:
                continue
            reference, row = found[other][build or "tfopt"], found[case]
            before = row.get("baseline")
            against = found[other].get(build or "baseline")
            ratio = "" if before is None or against is None else f"{before / count / against:.2f}"
            was = "" if before is None else f"{before / count:.3f}"
            now = row["tfopt"] / count
            rows.append([network, name, reference, was, now, ratio, now / reference])
    times = ("reference: s|.3f", "before: s", "now: s|.3f", "before, against the reference", "now|.2f")
    return table(["network", "", *times], rows)


# Of each case in `measuring.json`: its words, the case and build of its reference (None: the same build), and the
# number of products. Results without a case leave it out.
MEASURED: dict[str, dict[str, tuple[str, str, str | None, int]]] = {
    "first": {
        "product/first product": ("first product", "product", "bare", 1),
        "product/same model": ("second operator, same model", "product/first product", None, 1),
        "product/same architecture": ("second operator, same architecture", "product/first product", None, 1),
        "callbacks/first rows": ("first rows of three callbacks", "Convexity/first rows", None, 1),
        **{
            f"{kind}/{fit}": (f"{words} in a {fit}", f"{kind}/first rows", None, 1)
            for kind, words in FITS.items()
            for fit in ("second fit", "third fit, no new seed")
        },
    },
    "products": {
        "alone": ("product alone", "product", "bare", 1),
        "run of 20": ("product in a run of 20", "gradient", "bare", 20),
        "8 vectors": ("8 vectors together", "alone", None, 1),
    },
}


def shares_table(result: dict) -> str:
    """Return the table of what callbacks add to fits, from the sections "callbacks" and "job" of `measuring.json`."""
    rows = []
    for section in ("callbacks", "job"):
        for network, measured in result.get(section, {}).items():
            found = measured["cases"]
            for kind in dict.fromkeys(case.rpartition("/")[0] for case in found):
                row = {case.rpartition("/")[2]: each for case, each in found.items() if case.rpartition("/")[0] == kind}
                now = {name: each["tfopt"] for name, each in row.items()}
                before = row["processor ratio"].get("baseline")
                rows.append([
                    network,
                    f"{kind}, {'five epochs of 6,000 rows' if section == 'job' else 'long fit'}",
                    *(now["clock bare"], now["clock ratio"] - 1, now["processor ratio"] - 1),
                    "" if before is None else f"{before - 1:.1%}",
                    *(now["measurements"], now["put off"]),
                ])
    shares = ("added by the clock|.1%", "added on the processor|.1%", "before")
    if not rows:
        return "Not measured yet."
    return table(["network", "", "without: s|.1f", *shares, "measurements|.0f", "put off|.0f"], rows)


def budgets_table(result: dict) -> str:
    """Return the table of how planning keeps its budget, from the section "planning" of `measuring.json`."""
    rows = []
    for network, measured in result.get("planning", {}).items():
        found = measured["cases"]
        for task in dict.fromkeys(case.partition("/")[0] for case in found):
            budget = float(task.split()[-2])
            row = found[f"{task}/seconds"]
            before = "" if "baseline" not in row else f"{row['baseline'] / budget:.2f}"
            enough = found.get(f"{task}/enough", {}).get("tfopt")
            outcome = "done" if enough is None else f"refused: {enough:.0f} s are enough"
            rows.append([network, task, row["tfopt"], row["tfopt"] / budget, before, outcome])
    if not rows:
        return "Not measured yet."
    return table(["network", "", "seconds|.1f", "of the budget|.2f", "before", ""], rows)


def memory_table(result: dict) -> str:
    """Return the table of the peak memory of eigenvalues, from `memory.json`."""
    return table(["", "peak: MB|,.0f"], [[name, value / 1e6] for name, value in result["bytes"].items()])


def nqm_table(result: dict) -> str:
    """Return the table of the cost of the noisy quadratic model's searches, from `nqm.json`."""
    found = [result["seconds"][bins][run] for bins in ("100", "exact") for run in ("cold", "warm")]
    rows = [[name, *(seconds[name] for seconds in found)] for name in found[0]]
    plain = f"{result['numpy_momentum_seconds']:.0f}"
    rows.append(["NumPy, grid for momentum, 4 powers", plain, plain, "", ""])
    return table(["seconds", "100 bins, cold|.2f", "warm|.2f", "10,000 curvatures, cold|.2f", "warm|.2f"], rows)


def bregman_table(result: dict, shapes: list[str]) -> str:
    """Return the table of the cost of sweeps over the floor of their matrix products, from `bregman.json`."""
    found = [result[shape] for shape in shapes]
    rows = [
        ["operations of the printed algorithm", *(f"{each['operations'] / 1e9:.0f} G" for each in found)],
        ["rate of a matrix product", *(f"{each['operations_per_second'] / 1e9:.0f} G/s" for each in found)],
        ["floor", *(f"{1000 * each['floor_seconds']:.0f} ms" for each in found)],
    ]
    for case in [name for name, value in found[0].items() if isinstance(value, dict)]:
        cells = (f"{1000 * each[case]['seconds']:.0f} ms, {each[case]['over_floor']:.2f} of it" for each in found)
        rows.append([f"one sweep, {case}", *cells])
    return table(["", *(f"{shape}|" for shape in shapes)], rows)


def scaling_table(one: dict, two: dict, network: Network) -> str:
    """Return the table of the speed-up by a second rank, measured and predicted by the model of messages."""
    cases = {"Keras, a step of 1,024 rows, 784-256-256-10": (one["keras"], two["keras"])}
    cases |= {name: (one["sweeps"][name], two["sweeps"][name]) for name in one["sweeps"]}
    rows = []
    for name, (first, second) in cases.items():
        predicted: Any = ""
        if not name.startswith("Keras") and "restarted, " not in name:
            shape, preset, words = name.split(", ")
            count = int(words.removesuffix(" rows").replace(",", ""))
            predicted = 1000 * predict_sweep(one, two, network, shape, preset, count, 2, True)
        alone, both = first["seconds"], second["seconds"]
        rows.append([name, 1000 * alone, 1000 * both, alone / both, second["bytes_reduced"], predicted])
    times = ("1 rank: ms|.0f", "2 ranks|.0f", "times faster|.2f")
    return table(["", *times, "bytes of each rank|,.0f", "predicted for 2 ranks: ms|.0f"], rows)


def messages_table(two: dict, short_cycle: dict, network: Network) -> str:
    """Return the table of the cost of a message between two ranks, measured and fitted."""
    rows = []
    for size, seconds in two["messages"].items():
        times = (seconds, network.sum_seconds(2, int(size), True), short_cycle["messages"][size])
        rows.append([int(size), *(1000 * time for time in times)])
    cycle = f"with a cycle of {short_cycle['cycle_milliseconds']:g} ms|.2f"
    return (
        f"{table(['bytes|,', 'measured: ms|.2f', 'fitted: ms|.2f', cycle], rows)}\n\n"
        f"Wait w = {1e6 * network.wait:.0f} microseconds, latency a = {1e6 * network.latency:.0f} microseconds, "
        f"bandwidth 1 / b = {1e-9 / network.seconds_per_byte:.2f} GB/s."
    )


def prediction_table(one: dict, two: dict, network: Network) -> str:
    """Return the table of predicted sweeps of the published problems."""

    def predict(published: dict, num_ranks: int, in_ring: bool) -> float:
        arguments = (published["widths"], "penalty", published["rows"], num_ranks, in_ring)
        return float(predict_sweep(one, two, network, *arguments))

    rows = [
        [num_ranks, *(predict(each, num_ranks, in_ring) for each in PUBLISHED.values() for in_ring in (True, False))]
        for num_ranks in (1, 8, 48, 240, 1010, 7200, 10_000)
    ]
    return table(["ranks|,", *(f"{name}{end}|.3g" for name in PUBLISHED for end in (": ring, s", ": tree, s"))], rows)


def faults_table(result: dict) -> str:
    """Return the table of the effects of killed ranks, from `faults.json`."""
    rows = []
    for job in sorted({kill["job"] for kill in result["kills"]}):
        kills = [kill for kill in result["kills"] if kill["job"] == job]
        seconds = [kill["seconds_to_the_end"] for kill in kills]
        counts = (len(kills), sum(kill["names_the_rank"] for kill in kills), sum(kill["same_bits"] for kill in kills))
        rows.append([job, *counts, statistics.median(seconds), max(seconds)])
    counts_of = ("kills|", "ended and named the rank|", "resumed to the same bits|")
    return table(["example", *counts_of, "median s to the end|.1f", "longest s|.1f"], rows)


def main() -> None:
    """Rewrite the generated parts of all pages and the figure of scaling; exit if a part has no marker in any page."""
    names = ("optimizers", "distributed", "curvature", "callbacks", "measuring", "memory", "nqm", "bregman", "faults")
    found = {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in names}
    measured = ("scaling_1_ranks", "scaling_2_ranks", "messages")
    one, two, short_cycle = (json.loads((RESULTS / f"{name}.json").read_text()) for name in measured)
    network = Network.fit([two, short_cycle])
    bregman = found["bregman"]
    machines = {f"{name} environment": found[name]["environment"] for name in names[1:-1]}
    machines |= {"environment": found["optimizers"]["environment"], "scaling environment": two["environment"]}
    parts = {name: environment_line(machine) for name, machine in machines.items()}
    parts |= {
        "optimizers big": optimizer_table(found["optimizers"], "big"),
        "optimizers small": optimizer_table(found["optimizers"], "small"),
        "distributed": distributed_table(found["distributed"]),
        "curvature products": curvature_table(found["curvature"]),
        "curvature eigenvalues": eigenvalue_table(found["curvature"]),
        "callbacks": callbacks_table(found["callbacks"]),
        "measuring first": measuring_table(found["measuring"], "first"),
        "measuring products": measuring_table(found["measuring"], "products"),
        "measuring shares": shares_table(found["measuring"]),
        "measuring budgets": budgets_table(found["measuring"]),
        "memory": memory_table(found["memory"]),
        "nqm": nqm_table(found["nqm"]),
        "bregman": bregman_table(bregman, [name for name in bregman if name[0].isdigit()]),
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
