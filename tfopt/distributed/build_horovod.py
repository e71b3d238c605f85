"""Build Horovod for the TensorFlow that is installed: `python -m tfopt.distributed.build_horovod`.

Horovod 0.28.1, the newest release, includes TensorFlow headers by the places that they had up to TensorFlow 2.15. They
are still there, elsewhere: this puts forwarding headers where Horovod looks for them, and compiles it without changing
a line. The wheel is kept in the user's cache; building takes a few minutes once and seconds from then on.
"""

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

HOROVOD_VERSION = "0.28.1"

# Where Horovod looks for a header -> where TensorFlow may have it, the newest place first.
HEADERS = {
    "tensorflow/compiler/xla/client/xla_builder.h": ("xla/hlo/builder/xla_builder.h", "xla/client/xla_builder.h"),
    "tensorflow/compiler/xla/service/custom_call_target_registry.h": ("xla/service/custom_call_target_registry.h",),
    "tensorflow/compiler/xla/service/hlo.pb.h": ("xla/service/hlo.pb.h",),
    "tensorflow/compiler/xla/shape.h": ("xla/shape.h",),
    "tensorflow/compiler/xla/xla_data.pb.h": ("xla/xla_data.pb.h",),
}
INCLUDED_LIBRARIES = ("external/highwayhash", "external/farmhash_archive/src")

# What is built unless the environment says otherwise.
OPTIONS = {
    "HOROVOD_WITH_TENSORFLOW": "1",
    "HOROVOD_WITH_GLOO": "1",
    "HOROVOD_WITHOUT_PYTORCH": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
}
# Horovod's setup needs pkg_resources, which newer versions of setuptools lack, and a cmake that still takes its files.
BUILD_REQUIREMENTS = ("setuptools<81", "wheel")
CMAKE_REQUIREMENT = "cmake<4"
RUNTIME_REQUIREMENTS = ("cloudpickle", "psutil", "pyyaml", "packaging", "cffi")

PROOF_SECONDS = 120
PROOF = """
import tensorflow as tf
from tfopt import communicator
ranks = communicator.current()
(total,) = ranks.allreduce_sum([tf.constant([1.0, 2.0]) * (ranks.rank + 1)])
assert ranks.size == 2 and total.numpy().tolist() == [3.0, 6.0], (ranks.size, total)
"""

console = Console()


class BuildError(Exception):
    """Horovod cannot be built or does not work; the message says what to do."""


def find_tensorflow() -> tuple[Path, str]:
    """Find the installed TensorFlow without importing it.

    Returns:
        Its folder of headers, and its version.

    Raises:
        BuildError: It is not installed, or came without headers.
    """
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
    """Find a C++ compiler, and see it compile C++17.

    Args:
        environment: Environment variables; `CXX` names the compiler.

    Returns:
        Its path.

    Raises:
        BuildError: There is none that works.
    """
    candidates = [environment["CXX"]] if environment.get("CXX") else ["g++", "clang++", "c++"]
    compiler = next((path for name in candidates if (path := shutil.which(name, path=environment.get("PATH")))), None)
    if compiler is None:
        raise BuildError(
            f"Building Horovod needs a C++ compiler; {' or '.join(candidates)} was not found. Install one (Debian and "
            "Ubuntu: apt install g++; Fedora: dnf install gcc-c++; macOS: xcode-select --install), or set CXX"
        )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "test.cc")
        source.write_text("#include <optional>\nint main() { return std::optional<int>(0).value(); }\n")
        command = [compiler, "-std=c++17", str(source), "-o", str(source.with_suffix(".out"))]
        result = subprocess.run(command, capture_output=True, text=True, env=dict(environment), check=False)
    if result.returncode:
        raise BuildError(f"The C++ compiler {compiler} does not compile C++17:\n{result.stderr.strip()[-2000:]}")
    return compiler


def write_forwarding_headers(include: Path, folder: Path) -> None:
    """Put a header that forwards to TensorFlow's into each place where Horovod looks for one in vain.

    Args:
        include: TensorFlow's folder of headers.
        folder: Where to write.

    Raises:
        BuildError: TensorFlow has a header at none of the places known.
    """
    for asked, places in HEADERS.items():
        if (include / asked).exists():
            continue
        found = next((place for place in places if (include / place).exists()), None)
        if found is None:
            raise BuildError(
                f"This TensorFlow has no {' or '.join(places)}: Horovod {HOROVOD_VERSION} is known to build with "
                "TensorFlow 2.18 to 2.21"
            )
        header = folder / asked
        header.parent.mkdir(parents=True, exist_ok=True)
        header.write_text(f'#include "{found}"\n')


def has_usable_cmake(environment: Mapping[str, str]) -> bool:
    """Tell whether there is a cmake that takes Horovod's files: any before version 4.

    Args:
        environment: Environment variables.

    Returns:
        Whether there is.
    """
    cmake = shutil.which("cmake", path=environment.get("PATH"))
    if cmake is None:
        return False
    text = subprocess.run([cmake, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"version (\d+)\.(\d+)", text)
    return version is not None and (3, 13) <= (int(version[1]), int(version[2])) < (4, 0)


def pip(*arguments: str) -> list[str]:
    """Return the command that runs this Python's pip.

    Args:
        *arguments: What to tell it.

    Returns:
        The command.
    """
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]


def run(command: list[str], what: str, environment: Mapping[str, str] | None = None) -> None:
    """Run a command quietly.

    Args:
        command: The command.
        what: What it does, for the message.
        environment: Environment variables; None for those of this process.

    Raises:
        BuildError: It failed; the message ends with its last lines.
    """
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, check=False
    )
    if result.returncode:
        raise BuildError(f"{what} failed:\n" + "\n".join(result.stdout.splitlines()[-30:]))


def build_environment(include: Path, folder: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Prepare everything that the compilation needs in a folder of its own, which leaves the user's packages alone.

    Args:
        include: TensorFlow's folder of headers.
        folder: Where to put things.
        environment: The user's environment variables.

    Returns:
        The environment variables for the compilation.
    """
    headers, tools = folder / "headers", folder / "tools"
    write_forwarding_headers(include, headers)
    wanted = list(BUILD_REQUIREMENTS)
    if not has_usable_cmake(environment):
        console.print("There is no cmake before version 4 here: taking one from the package index")
        wanted.append(CMAKE_REQUIREMENT)
    run(pip("install", "--quiet", "--target", str(tools), *wanted), "Installing the build tools")
    missing = [name for name in RUNTIME_REQUIREMENTS if not _is_installed(name)]
    if missing:
        run(pip("install", "--quiet", *missing), f"Installing {', '.join(missing)}")
    places = [headers, *(include / library for library in INCLUDED_LIBRARIES)]
    python = Path(sys.executable).parent
    return {
        **OPTIONS,
        **environment,
        "CPATH": os.pathsep.join([*map(str, places), *filter(None, [environment.get("CPATH")])]),
        "PYTHONPATH": os.pathsep.join([str(tools), *filter(None, [environment.get("PYTHONPATH")])]),
        "PATH": os.pathsep.join([str(tools / "cmake/data/bin"), str(python), environment.get("PATH", "")]),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CMAKE_BUILD_PARALLEL_LEVEL": environment.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1)),
    }


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def compile_wheel(include: Path, folder: Path) -> Path:
    """Compile Horovod, and show how far it is.

    Args:
        include: TensorFlow's folder of headers.
        folder: Where to put the wheel, and the log of the compilation.

    Returns:
        The wheel.

    Raises:
        BuildError: The compilation failed.
    """
    log = folder / "build.log"
    with tempfile.TemporaryDirectory(prefix="tfopt-horovod-") as scratch:
        environment = build_environment(include, Path(scratch), os.environ)
        options = ("--no-build-isolation", "--no-deps", "--no-cache-dir", "--no-binary", "horovod")
        command = pip("wheel", "-v", *options, f"horovod=={HOROVOD_VERSION}", "-w", str(Path(scratch, "wheel")))
        if _run_with_progress(command, environment, log):
            lines = log.read_text().splitlines()
            errors = [line for line in lines if re.search(r"\berror\b|CMake Error|not found", line, re.IGNORECASE)]
            shown = "\n".join((errors or lines)[-20:])
            raise BuildError(f"Horovod does not compile; the whole log is in {log}. It says:\n{shown}")
        (wheel,) = Path(scratch, "wheel").glob("horovod-*.whl")
        target = folder / wheel.name
        shutil.copy(wheel, target.with_suffix(".partial"))
        os.replace(target.with_suffix(".partial"), target)
    return target


def _run_with_progress(command: list[str], environment: Mapping[str, str], log: Path) -> int:
    # cmake says in its output how many percent are done.
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        TimeElapsedColumn(),
    )
    with (
        Progress(*columns, console=console) as progress,
        log.open("w") as out,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, errors="replace"
        ) as process,
    ):
        task = progress.add_task("Compiling Horovod", total=100)
        for line in process.stdout or ():
            out.write(line)
            if step := re.search(r"\[\s*(\d+)%\]", line):
                progress.update(task, completed=min(99, int(step[1])))
        if process.wait() == 0:
            progress.update(task, completed=100)
    return process.returncode


def cache_folder() -> Path:
    """Return the folder in which wheels are kept.

    Returns:
        `tfopt/horovod` in the user's cache.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tfopt" / "horovod"


def build_key(tensorflow_version: str, compiler: str) -> str:
    """Name a build by everything that decides what comes out of it.

    Args:
        tensorflow_version: TensorFlow's version.
        compiler: Path of the compiler.

    Returns:
        A name for its folder in the cache.
    """
    flags = {name: value for name, value in os.environ.items() if name.startswith("HOROVOD_WITH")}
    flags |= {
        name: os.environ[name] for name in ("CXXFLAGS", "HOROVOD_GPU", "HOROVOD_GPU_OPERATIONS") if name in os.environ
    }
    version = subprocess.run(
        [compiler, "-dumpfullversion", "-dumpversion"], capture_output=True, text=True, check=False
    )
    facts = [
        HOROVOD_VERSION,
        tensorflow_version,
        sys.implementation.cache_tag or "",
        platform.machine(),
        platform.libc_ver(),
        os.path.basename(compiler) + version.stdout.strip(),
        sorted({**OPTIONS, **flags}.items()),
    ]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:10]
    return f"horovod-{HOROVOD_VERSION}-tensorflow-{tensorflow_version}-{sys.implementation.cache_tag}-{digest}"


def is_wheel_installed(wheel: Path) -> bool:
    """Tell whether the installed Horovod is this very wheel, by what pip noted when it installed it.

    Args:
        wheel: The wheel.

    Returns:
        Whether it is.
    """
    try:
        note = importlib.metadata.distribution("horovod").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return False
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return note is not None and json.loads(note).get("archive_info", {}).get("hashes", {}).get("sha256") == digest


def prove() -> None:
    """Start two ranks and let them add up a tensor.

    Raises:
        BuildError: They did not manage to.
    """
    environment = {
        **os.environ,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    command = [sys.executable, "-m", "horovod.runner.launch", "-np", "2", "-H", "localhost:2"]
    try:
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder, "proof.py")
            script.write_text(PROOF)
            result = subprocess.run(
                [*command, sys.executable, str(script)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment,
                timeout=PROOF_SECONDS,
                check=False,
            )
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"Horovod is installed, but two ranks did not finish within {PROOF_SECONDS} s") from error
    if result.returncode:
        lines = result.stdout.splitlines()
        said = [line for line in lines if re.match(r"\[\d+\]<std", line)] or lines  # by the ranks, not their launcher
        raise BuildError("Horovod is installed, but two ranks failed:\n" + "\n".join(said[-30:]))


def build(force: bool = False) -> None:
    """Build Horovod unless a wheel is at hand, install it, and see two ranks work together.

    Args:
        force: Build it even if a wheel is at hand.
    """
    include, version = find_tensorflow()
    compiler = find_compiler(os.environ)
    folder = cache_folder() / build_key(version, compiler)
    wheel = next(iter(sorted(folder.glob("horovod-*.whl"))), None)
    if wheel is None or force:
        console.print(f"Building Horovod {HOROVOD_VERSION} for TensorFlow {version} with {compiler}", highlight=False)
        folder.mkdir(parents=True, exist_ok=True)
        wheel = compile_wheel(include, folder)
    else:
        console.print(f"Using {wheel}", highlight=False, soft_wrap=True)
    if not is_wheel_installed(wheel):
        run(pip("install", "--quiet", "--force-reinstall", "--no-deps", str(wheel)), "Installing Horovod")
        run(pip("install", "--quiet", *RUNTIME_REQUIREMENTS), "Installing what Horovod needs")
    prove()
    console.print("Horovod works: two ranks have added up a tensor.")
    console.print("Start a script with: horovodrun -np 2 python script.py", highlight=False)


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Command-line arguments.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tfopt.distributed.build_horovod",
        description="Build Horovod for the TensorFlow that is installed, and install it.",
        epilog="Variables such as HOROVOD_WITH_MPI=1 or HOROVOD_GPU_OPERATIONS=NCCL are passed on to the build.",
    )
    parser.add_argument("--force", action="store_true", help="build it even if a wheel is in the cache")
    arguments = parser.parse_args(argv)
    try:
        build(arguments.force)
    except BuildError as error:
        console.print(f"{error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
