"""The command that builds, installs and tests Horovod: `python -m tfopt.distributed.build_horovod`.

Horovod 0.28.1, the newest release, includes TensorFlow headers from paths that were valid up to TensorFlow 2.15. Later
TensorFlows have these headers at other paths. This command writes forwarding headers where Horovod looks for them,
patches Horovod's faults over Gloo, and compiles it. Every download for the build must have a known hash. The wheel is
kept in the user's cache, with its hash. The first build takes minutes, later runs seconds.
"""

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tfopt.distributed.build_horovod.patches import PATCHES
from tfopt.distributed.build_horovod.pinned import HOROVOD_VERSION
from tfopt.distributed.build_horovod.source import fetch_source
from tfopt.distributed.build_horovod.toolchain import (
    RUNTIME_REQUIREMENTS,
    BuildError,
    build_environment,
    choose_options,
    console,
    find_compiler,
    find_tensorflow,
    pip,
    run,
)
from tfopt.distributed.build_horovod.wheel_cache import cache_folder, find_wheel, keep_wheel, open_folder

PROOF_SECONDS = 600  # Enough for two slow imports of TensorFlow under load.
# Environment variables that the build reads, besides HOROVOD_WITH...
SEEN = ("CXX", "CXXFLAGS", "CPATH", "LDFLAGS", "HOROVOD_CPU_OPERATIONS")
SEEN_PREFIXES = ("HOROVOD_GPU", "HOROVOD_CUDA_", "HOROVOD_NCCL_", "HOROVOD_ROCM_", "HOROVOD_BUILD_")
PROOF = """
import tensorflow as tf
from tfopt import communicator
ranks = communicator.current()
(total,) = ranks.allreduce_sum([tf.constant([1.0, 2.0]) * (ranks.rank + 1)])
assert ranks.size == 2 and total.numpy().tolist() == [3.0, 6.0], (ranks.size, total)
"""


def compile_wheel(include: Path, folder: Path) -> Path:
    """Compile Horovod with a progress bar, and return the wheel; raise `BuildError` if this fails."""
    # `include` is TensorFlow's folder of headers. `folder` receives the wheel and the log.
    log = folder / "build.log"
    _remove_log(log)
    with tempfile.TemporaryDirectory(prefix="tfopt-horovod-") as scratch:
        environment = build_environment(include, Path(scratch), os.environ)
        source = fetch_source(Path(scratch))
        options = ("--no-build-isolation", "--no-deps", "--no-cache-dir")
        command = pip("wheel", "-v", *options, str(source), "-w", str(Path(scratch, "wheel")))
        if _run_with_progress(command, environment, log):
            lines = log.read_text().splitlines()
            errors = [line for line in lines if re.search(r"\berror\b|CMake Error|not found", line, re.IGNORECASE)]
            shown = "\n".join((errors or lines)[-20:])
            raise BuildError(f"Horovod does not compile; the whole log is in {log}. It says:\n{shown}")
        wheels = sorted(Path(scratch, "wheel").glob("horovod-*.whl"))
        if len(wheels) != 1:
            raise BuildError(f"Horovod's build must give one wheel; the whole log is in {log}. Received: {wheels}")
        return keep_wheel(wheels[0], folder)


def _remove_log(log: Path) -> None:
    # Delete a link instead of following it: others may once have been able to write to the folder.
    try:
        log.unlink(missing_ok=True)
    except OSError as error:
        raise BuildError(f"The log cannot be written to {log} ({error}). Remove it") from error


def _run_with_progress(command: list[str], environment: Mapping[str, str], log: Path) -> int:
    # cmake prints the percentage done in its output.
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        TimeElapsedColumn(),
    )
    with (
        Progress(*columns, console=console) as progress,
        log.open("x") as out,
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


def build_key(tensorflow_version: str, compiler: str) -> str:
    """Return the name of a build's cache folder, which depends on everything that determines the wheel."""
    asked = {name: value for name, value in os.environ.items() if name in SEEN or name.startswith(SEEN_PREFIXES)}
    flags = choose_options(os.environ) | asked
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
        sorted(flags.items()),
        PATCHES,
    ]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:10]
    return f"horovod-{HOROVOD_VERSION}-tensorflow-{tensorflow_version}-{sys.implementation.cache_tag}-{digest}"


def is_wheel_installed(wheel: Path) -> bool:
    """Return whether the installed Horovod is exactly this wheel, by the note that pip wrote at installation."""
    try:
        note = importlib.metadata.distribution("horovod").read_text("direct_url.json")
        installed = json.loads(note or "null")["archive_info"]["hashes"]["sha256"]
    except (importlib.metadata.PackageNotFoundError, ValueError, TypeError, LookupError):
        return False  # Not installed, installed from another file, or the note is damaged.
    return bool(installed == hashlib.sha256(wheel.read_bytes()).hexdigest())


def prove() -> None:
    """Start two ranks that sum a tensor; raise `BuildError` if they fail."""
    environment = {
        **os.environ,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    command = [sys.executable, "-m", "horovod.runner.launch", "-np", "2", "-H", "localhost:2"]
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "proof.py")
        script.write_text(PROOF)
        with subprocess.Popen(
            [*command, sys.executable, str(script)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        ) as process:
            try:
                output, _ = process.communicate(timeout=PROOF_SECONDS)
            except subprocess.TimeoutExpired as error:
                process.terminate()  # It then ends its ranks.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=30)
                process.kill()
                seconds = f"{PROOF_SECONDS} s"
                raise BuildError(f"Horovod is installed, but two ranks did not finish within {seconds}") from error
    if process.returncode:
        lines = output.splitlines()
        said = [line for line in lines if re.match(r"\[\d+\]<std", line)] or lines  # Not the launcher's lines.
        raise BuildError("Horovod is installed, but two ranks failed:\n" + "\n".join(said[-30:]))


def build(force: bool = False) -> None:
    """Build Horovod unless the cache has a wheel (always with `force`), install it, and test it on two ranks."""
    include, version = find_tensorflow()
    compiler = find_compiler(os.environ)
    folder = cache_folder() / build_key(version, compiler)
    open_folder(folder)
    wheel = None if force else find_wheel(folder)
    if wheel is None:
        console.print(f"Building Horovod {HOROVOD_VERSION} for TensorFlow {version} with {compiler}", highlight=False)
        wheel = compile_wheel(include, folder)
    else:
        console.print(f"Using {wheel}", highlight=False, soft_wrap=True)
    if not is_wheel_installed(wheel):
        run(pip("install", "--quiet", "--force-reinstall", "--no-deps", str(wheel)), "Installing Horovod")
        run(pip("install", "--quiet", *RUNTIME_REQUIREMENTS), "Installing Horovod's requirements")
    prove()
    console.print("Horovod works: two ranks have added up a tensor.")
    console.print("Start a script with: horovodrun -np 2 python script.py", highlight=False)


def main(argv: list[str] | None = None) -> int:
    """Run the command, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tfopt.distributed.build_horovod",
        description="Build Horovod for the installed TensorFlow, and install it.",
        epilog="The build reads variables such as HOROVOD_WITH_MPI=1 or HOROVOD_GPU_OPERATIONS=NCCL.",
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
