"""What a benchmark's numbers depend on: versions, processor, threads."""

import importlib.metadata
import os
import platform


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
