"""Requirements of Horovod's compilation besides its source: TensorFlow's headers, a C++ compiler, and cmake."""

import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from tfopt.distributed.build_horovod.pinned import BUILD_TOOLS, CMAKE, HOROVOD_VERSION, pinned_options

# Maps the path where Horovod looks for a header to the paths where TensorFlow may have it, the newest first.
HEADERS = {
    "tensorflow/compiler/xla/client/xla_builder.h": ("xla/hlo/builder/xla_builder.h", "xla/client/xla_builder.h"),
    "tensorflow/compiler/xla/service/custom_call_target_registry.h": ("xla/service/custom_call_target_registry.h",),
    "tensorflow/compiler/xla/service/hlo.pb.h": ("xla/service/hlo.pb.h",),
    "tensorflow/compiler/xla/shape.h": ("xla/shape.h",),
    "tensorflow/compiler/xla/xla_data.pb.h": ("xla/xla_data.pb.h",),
}
INCLUDED_LIBRARIES = ("external/highwayhash", "external/farmhash_archive/src")

# Default options, unless the environment sets others. Without them, Horovod builds with MPI if it finds MPI, and
# `horovodrun` then starts ranks with `mpirun`. The behaviour of a job would depend on other installed software.
OPTIONS = {
    "HOROVOD_WITH_TENSORFLOW": "1",
    "HOROVOD_WITH_GLOO": "1",
    "HOROVOD_WITHOUT_MPI": "1",
    "HOROVOD_WITHOUT_PYTORCH": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
}
RUNTIME_REQUIREMENTS = ("cloudpickle", "psutil", "pyyaml", "packaging", "cffi")

console = Console()


class BuildError(Exception):
    """Horovod cannot be built or does not work; the message says what to do."""


def find_tensorflow() -> tuple[Path, str]:
    """Return TensorFlow's header folder and version without importing it; raise `BuildError` if missing."""
    spec = importlib.util.find_spec("tensorflow")
    if spec is None or spec.origin is None:
        raise BuildError("TensorFlow is not installed: pip install tensorflow")
    include = Path(spec.origin).parent / "include"
    if not include.is_dir():
        raise BuildError(f"This TensorFlow has no headers: {include} does not exist. Install it from its wheel")
    distributions = importlib.metadata.packages_distributions()["tensorflow"]
    name = next((d for d in distributions if "tensorflow" in d), distributions[0])
    return include, importlib.metadata.version(name)


def find_compiler(environment: Mapping[str, str]) -> str:
    """Return the path of a C++ compiler (`CXX` if set) that compiles C++17; raise `BuildError` if there is none."""
    chosen = shlex.split(environment.get("CXX", ""))  # A program, perhaps with options or after ccache.
    candidates = chosen[:1] or ["g++", "clang++", "c++"]
    compiler = next((path for name in candidates if (path := shutil.which(name, path=environment.get("PATH")))), None)
    if compiler is None:
        raise BuildError(
            f"Building Horovod needs a C++ compiler; {' or '.join(candidates)} was not found. Install one (Debian and "
            "Ubuntu: apt install g++; Fedora: dnf install gcc-c++; macOS: xcode-select --install), or set CXX"
        )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "test.cc")
        source.write_text("#include <optional>\nint main() { return std::optional<int>(0).value(); }\n")
        command = [compiler, *chosen[1:], "-std=c++17", str(source), "-o", str(source.with_suffix(".out"))]
        result = subprocess.run(command, capture_output=True, text=True, env=dict(environment), check=False)
    if result.returncode:
        raise BuildError(
            f"The C++ compiler {compiler} does not compile C++17:\n"
            + (result.stderr.strip()[-2000:] or f"it says nothing, and returns {result.returncode}")
        )
    return compiler


def write_forwarding_headers(include: Path, folder: Path) -> None:
    """Write a header that includes TensorFlow's for each path where Horovod would not find one."""
    for asked, candidates in HEADERS.items():
        if (include / asked).exists():
            continue
        found = next((candidate for candidate in candidates if (include / candidate).exists()), None)
        if found is None:
            raise BuildError(
                f"This TensorFlow has no {' or '.join(candidates)}: Horovod {HOROVOD_VERSION} is known to build with "
                "TensorFlow 2.18 to 2.21"
            )
        header = folder / asked
        header.parent.mkdir(parents=True, exist_ok=True)
        header.write_text(f'#include "{found}"\n')


def has_usable_cmake(environment: Mapping[str, str]) -> bool:
    """Return whether there is a cmake that accepts Horovod's files: version 3.13 or later, and before 4."""
    cmake = shutil.which("cmake", path=environment.get("PATH"))
    if cmake is None:
        return False
    text = subprocess.run([cmake, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"version (\d+)\.(\d+)", text)
    return version is not None and (3, 13) <= (int(version[1]), int(version[2])) < (4, 0)


def pip(*arguments: str) -> list[str]:
    """Return the command that runs this Python's pip with these arguments."""
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]


def run(command: list[str], what: str, environment: Mapping[str, str] | None = None) -> None:
    """Run a command without output; raise `BuildError` with its last 30 lines if it fails, and `what` it does."""
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, check=False
    )
    if result.returncode:
        raise BuildError(f"{what} failed:\n" + "\n".join(result.stdout.splitlines()[-30:]))


def choose_options(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the options of Horovod's build: the defaults, replaced by the user's environment variables."""
    theirs = {name: value for name, value in environment.items() if name.startswith("HOROVOD_WITH")}
    opposites = {_opposite_of(name) for name in theirs if theirs[name] not in ("", "0")}
    return {name: value for name, value in OPTIONS.items() if name not in opposites} | theirs


def _opposite_of(name: str) -> str:
    first, second = ("_WITHOUT_", "_WITH_") if "_WITHOUT_" in name else ("_WITH_", "_WITHOUT_")
    return name.replace(first, second)


def build_environment(include: Path, folder: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Prepare the compilation in a folder of its own, and return its environment variables."""
    # Horovod imports its runtime requirements during the build, so they are installed among the user's packages. All
    # other tools stay in `folder`.
    headers, tools = folder / "headers", folder / "tools"
    write_forwarding_headers(include, headers)
    wanted = BUILD_TOOLS
    if not has_usable_cmake(environment):
        console.print("No cmake from 3.13 to 3.31 was found: installing one from the package index")
        wanted = wanted | CMAKE
    options = ("--quiet", "--only-binary", ":all:", *pinned_options(wanted, folder))
    run(pip("install", "--target", str(tools), *options), "Installing the build tools")
    missing = [name for name in RUNTIME_REQUIREMENTS if not _is_installed(name)]
    if missing:
        run(pip("install", "--quiet", *missing), f"Installing {', '.join(missing)}")
    folders = [headers, *(include / library for library in INCLUDED_LIBRARIES)]
    python = Path(sys.executable).parent
    # Compiling some files takes up to 2 GB. Therefore compile at most 8 at once, as Horovod's setup does if MAKEFLAGS
    # is not set.
    jobs = environment.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(min(8, _usable_cores()))
    return {
        **environment,
        **choose_options(environment),
        "CPATH": os.pathsep.join([*map(str, folders), *filter(None, [environment.get("CPATH")])]),
        "PYTHONPATH": os.pathsep.join([str(tools), *filter(None, [environment.get("PYTHONPATH")])]),
        "PATH": os.pathsep.join([str(tools / "cmake/data/bin"), str(python), environment.get("PATH", "")]),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CMAKE_BUILD_PARALLEL_LEVEL": jobs,
        "MAKEFLAGS": f"-j{jobs}",
    }


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
