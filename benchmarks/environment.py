"""What a benchmark's numbers depend on: versions, processor, threads."""

import importlib.metadata
import os
import platform

THREADS = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")  # where they are limited


def describe(packages: list[str]) -> dict:
    """Return the machine and the installed versions of some packages.

    Args:
        packages: Names of distributions; those that are not installed are left out.

    Returns:
        A dictionary that JSON can hold.
    """
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
