"""What all benchmarks share: their command line, and results with the machine on which they were measured."""

import argparse
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"

THREADS = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")  # Limits of threads, if set.


def make_parser(description: str | None, name: str, **numbers: int) -> argparse.ArgumentParser:
    """Return a parser of whole `numbers` with their defaults, and of `--output`, by default `results/NAME.json`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, default in numbers.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--output", type=Path, default=RESULTS / f"{name}.json")
    return parser


def write(path: Path, packages: list[str], content: dict[str, Any]) -> None:
    """Write results with the result of `describe`."""
    path.write_text(json.dumps({"environment": describe(packages), **content}, indent=1) + "\n")


def describe(packages: list[str]) -> dict:
    """Return the machine and the versions of the installed ones of `packages`, as JSON data."""
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "threads": {name: os.environ[name] for name in THREADS if name in os.environ} or "all cores",
        "packages": versions,
    }


def _processor_name() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()
