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
from rich.console import Console
from rich.table import Table

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
        data: Name of the data set; empty if the script has only one.
        claims: The compared statements.
        results: The numbers behind the figure, in types that JSON can hold.
    """

    title: str
    size: str
    folder: Path
    seed: int
    data: str = ""
    claims: list[Claim] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)

    def choose(self, smoke: Any, quick: Any, full: Any) -> Any:
        """Return the setting for the size: a test of seconds, minutes on two cores, or as published where possible."""
        return {"smoke": smoke, "quick": quick, "full": full}[self.size]

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
    name: str, title: str, argv: list[str] | None, description: str | None, uses_data: bool = True
) -> Reproduction:
    """Parse the arguments that all reproductions take, and return a reproduction without claims."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_mutually_exclusive_group()
    for size, help_text in zip(SIZES, ("seconds", "minutes on two cores (default)", "as published"), strict=True):
        group.add_argument(f"--{size}", dest="size", action="store_const", const=size, default="quick", help=help_text)
    parser.add_argument("--output", type=Path, default=Path("runs/reproduce") / name, help="folder for JSON and PNG")
    parser.add_argument("--seed", type=int, default=0)
    if uses_data:
        parser.add_argument(
            "--data", default=default_data(), help="digits (default unless mnist is on disk), mnist, ..."
        )
    arguments = parser.parse_args(argv)
    data = arguments.data if uses_data else ""
    return Reproduction(title, arguments.size, arguments.output, arguments.seed, data)


def default_data() -> str:
    """Return the name of the data set to use: MNIST if it is on disk, else the digits of scikit-learn."""
    cache = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "datasets" / "mnist.npz"
    return "mnist" if cache.exists() else "digits"
