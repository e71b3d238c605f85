"""Parts that the reproductions share: their arguments, and published beside measured results."""

import argparse
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from finished_cells import FinishedCells, when_and_where
from rich.console import Console
from rich.table import Table

from tfopt import datasets

SIZES = ("smoke", "quick", "full")


@dataclass
class Claim:
    """A published statement and its verdict.

    Attributes:
        statement: In a few words.
        published: The published number or observation.
        measured: The result measured here.
        verdict: "held", "partly" or "did not hold".
    """

    statement: str
    published: str
    measured: str
    verdict: str


@dataclass
class Reproduction:
    """A published figure or table, measured again.

    Attributes:
        title: The reproduced result, and its paper.
        size: "smoke", "quick" or "full".
        folder: Folder of JSON and PNG.
        seed: Seed of all randomness.
        data: Name of the data set; empty if the script needs none.
        data_dir: Folder of its files; None for the default.
        num_rows: Number of its training rows; None for all.
        only_finished: Whether a script that can resume shows the cells that are finished and computes no others.
        claims: The compared statements.
        results: The numbers behind the figure, in types that JSON can hold.
        cells: The finished cells of a run that resumes; None for others.
    """

    title: str
    size: str
    folder: Path
    seed: int
    data: str = ""
    data_dir: Path | None = None
    num_rows: int | None = None
    only_finished: bool = False
    claims: list[Claim] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    cells: FinishedCells | None = None

    def choose(self, smoke: Any, quick: Any, full: Any) -> Any:
        """Return the setting for the size: a test of seconds, minutes on two cores, or as published where possible."""
        return {"smoke": smoke, "quick": quick, "full": full}[self.size]

    def load(self, **options: Any) -> datasets.Dataset:
        """Return the data set that was chosen, with further options of `tfopt.datasets.load`."""
        return datasets.load(self.data, **{"data_dir": self.data_dir, "num_rows": self.num_rows, **options})

    def finished_cells(self, **settings: Any) -> FinishedCells:
        """Return the finished cells of a `--full` run with the same settings in this folder; others begin anew."""
        path = self.folder / ("cells.json" if self.size == "full" else f"cells_{self.size}.json")
        if self.size != "full" and not self.only_finished:
            path.unlink(missing_ok=True)
        common = {"size": self.size, "seed": self.seed, "data": self.data, "num_rows": self.num_rows}
        self.cells = FinishedCells(path, {**common, **settings}, self.only_finished)
        return self.cells

    def compare(self, statement: str, published: str, measured: str, held: bool, partly: bool = False) -> None:
        """Add a claim; `held` and `partly` tell whether the measured result agrees, and whether a part of it does."""
        verdict = "held" if held else "partly" if partly else "did not hold"
        self.claims.append(Claim(statement, published, measured, verdict))

    def finish(self, figure: Any) -> "Reproduction":
        """Write JSON and PNG, print the claims, and return this reproduction."""
        self.folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(self.folder / "figure.png", dpi=150)
        plt.close(figure)
        settings = {"title": self.title, "size": self.size, "seed": self.seed, "data": self.data}
        settings |= {"num_rows": self.num_rows, **(self.cells.when_and_where() if self.cells else when_and_where())}
        settings["unfinished"] = len(self.cells.unfinished) if self.cells else 0
        content = {**settings, "claims": [asdict(claim) for claim in self.claims], "results": self.results}
        (self.folder / "results.json").write_text(json.dumps(content, indent=1) + "\n")
        table = Table("", "published", "measured", "verdict", title=self.title, show_lines=True)
        for claim in self.claims:
            table.add_row(claim.statement, claim.published, claim.measured, claim.verdict)
        console = Console()
        console.print(table)
        console.print(f"Written: {self.folder}/results.json and figure.png")
        return self


def start(
    name: str, title: str, argv: list[str] | None, description: str | None, data: str | None = None
) -> Reproduction:
    """Parse the arguments that all reproductions take; `data` is the default data set, and "" if there is none."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_mutually_exclusive_group()
    for size, help_text in zip(SIZES, ("seconds", "minutes on two cores (default)", "as published"), strict=True):
        group.add_argument(f"--{size}", dest="size", action="store_const", const=size, default="quick", help=help_text)
    parser.add_argument("--output", type=Path, default=Path("runs/reproduce") / name, help="folder for JSON and PNG")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only-finished", action="store_true", help="show what an interrupted run finished")
    if data != "":
        add_data_arguments(parser, data or default_data())
    arguments = vars(parser.parse_args(argv))
    return Reproduction(title, folder=arguments.pop("output"), **arguments)


def add_data_arguments(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Add `--data`, `--data-dir` and `--rows`, with a default data set; None leaves it to each script."""
    shown = default or "that of each script"
    parser.add_argument("--data", choices=datasets.NAMES, default=default, help=f"data set (default: {shown})")
    parser.add_argument("--data-dir", type=Path, help="folder of its files; nothing is downloaded then")
    parser.add_argument("--rows", dest="num_rows", type=int, help="number of training rows (default: all)")


def default_data() -> str:
    """Return the name of the data set to use: MNIST if it is on disk, else the digits of scikit-learn."""
    cache = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "datasets" / "mnist.npz"
    return "mnist" if cache.exists() else "digits"
