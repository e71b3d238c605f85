"""The data of an example: `--data NAME`, `--data-dir PATH` and `--rows N`."""

import argparse
from pathlib import Path
from typing import Any

from tfopt import datasets


def add_arguments(parser: argparse.ArgumentParser, default: str = "digits") -> None:
    """Add the arguments that choose the data to a parser."""
    parser.add_argument("--data", choices=datasets.NAMES, default=default, help=f"data set (default: {default})")
    parser.add_argument("--data-dir", type=Path, help="folder of its files; nothing is downloaded then")
    parser.add_argument("--rows", type=int, help="number of rows to use (default: all)")


def load(arguments: argparse.Namespace, **options: Any) -> datasets.Dataset:
    """Load the data that the arguments name, with further options of `tfopt.datasets.load`."""
    return datasets.load(arguments.data, data_dir=arguments.data_dir, num_rows=arguments.rows, **options)
