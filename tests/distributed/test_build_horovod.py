"""The build command: what it finds out before it compiles, and what it says when it cannot.

That it compiles and installs a Horovod that works is shown by the ranks of the other tests, which run on it.
"""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tfopt.distributed import _toolchain, build_horovod
from tfopt.distributed._mends import MENDS
from tfopt.distributed._toolchain import HEADERS, BuildError


def make_include(folder, places):
    for place in places:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text("// here\n")
    return folder


@pytest.mark.parametrize("which", [0, -1])
def test_headers_forward_to_where_tensorflow_has_them(which, tmp_path):
    include = make_include(tmp_path / "include", [places[which] for places in HEADERS.values()])
    _toolchain.write_forwarding_headers(include, tmp_path / "headers")
    for asked, places in HEADERS.items():
        assert (tmp_path / "headers" / asked).read_text() == f'#include "{places[which]}"\n'


def test_the_newest_place_is_preferred(tmp_path):
    include = make_include(tmp_path / "include", [place for places in HEADERS.values() for place in places])
    _toolchain.write_forwarding_headers(include, tmp_path / "headers")
    builder = tmp_path / "headers" / "tensorflow/compiler/xla/client/xla_builder.h"
    assert builder.read_text() == '#include "xla/hlo/builder/xla_builder.h"\n'


def test_headers_that_are_where_horovod_looks_need_no_forwarding(tmp_path):
    include = make_include(tmp_path / "include", HEADERS)
    _toolchain.write_forwarding_headers(include, tmp_path / "headers")
    assert not (tmp_path / "headers").exists()


def test_a_tensorflow_without_the_headers_is_named(tmp_path):
    with pytest.raises(BuildError, match=r"has no xla/hlo/builder/xla_builder.h or xla/client/xla_builder.h"):
        _toolchain.write_forwarding_headers(tmp_path, tmp_path / "headers")


def test_the_installed_tensorflow_has_them(tmp_path):
    include, version = _toolchain.find_tensorflow()
    assert version.startswith("2.")
    _toolchain.write_forwarding_headers(include, tmp_path)
    for library in _toolchain.INCLUDED_LIBRARIES:
        assert (include / library).is_dir()


def test_without_a_compiler_the_error_says_how_to_get_one(tmp_path):
    with pytest.raises(
        BuildError, match="needs a C\\+\\+ compiler; g\\+\\+ or clang\\+\\+ or c\\+\\+ was not found.*apt"
    ):
        _toolchain.find_compiler({"PATH": str(tmp_path)})
    with pytest.raises(BuildError, match="my-compiler was not found"):
        _toolchain.find_compiler({"PATH": str(tmp_path), "CXX": "my-compiler"})


def test_a_compiler_that_does_not_work_is_shown_with_its_words(tmp_path):
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\necho no C++17 here >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(BuildError, match="does not compile C\\+\\+17:\nno C\\+\\+17 here"):
        _toolchain.find_compiler({"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"})


def test_the_whole_command_ends_with_that_error(tmp_path):
    command = [sys.executable, "-m", "tfopt.distributed.build_horovod"]
    done = subprocess.run(command, env={**os.environ, "PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Building Horovod needs a C++ compiler" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("version", "usable"), [("3.25.1", True), ("3.13.0", True), ("3.5.2", False), ("4.0.2", False), (None, False)]
)
def test_only_some_versions_of_cmake_will_do(version, usable, tmp_path):
    if version is not None:
        cmake = tmp_path / "cmake"
        cmake.write_text(f"#!/bin/sh\necho cmake version {version}\n")
        cmake.chmod(0o755)
    assert _toolchain.has_usable_cmake({"PATH": str(tmp_path)}) is usable


def test_a_missing_cmake_comes_from_the_package_index(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(_toolchain, "run", lambda command, *rest: commands.append(command))
    include = make_include(tmp_path / "include", [places[0] for places in HEADERS.values()])
    environment = _toolchain.build_environment(include, tmp_path, {"PATH": "", "HOROVOD_WITH_MPI": "1"})
    assert "cmake<4" in commands[0]
    assert environment["PATH"].startswith(str(tmp_path / "tools" / "cmake" / "data" / "bin"))
    assert environment["CPATH"].split(os.pathsep)[0] == str(tmp_path / "headers")
    assert environment["HOROVOD_WITH_MPI"] == "1"
    assert "HOROVOD_WITHOUT_MPI" not in environment
    assert _toolchain.build_environment(include, tmp_path, {"PATH": ""})["HOROVOD_WITHOUT_MPI"] == "1"
    assert environment["HOROVOD_WITH_GLOO"] == "1"


def test_as_many_files_are_compiled_at_once_as_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(_toolchain, "run", lambda *rest: None)
    include = make_include(tmp_path / "include", [places[0] for places in HEADERS.values()])
    asked_for = {"CMAKE_BUILD_PARALLEL_LEVEL": "12", "MAKEFLAGS": "-j9"}
    for cores, asked, jobs in ((3, {}, 3), (64, {}, 8), (2, {"CMAKE_BUILD_PARALLEL_LEVEL": ""}, 2), (2, asked_for, 12)):
        monkeypatch.setattr(_toolchain, "_usable_cores", lambda cores=cores: cores)
        environment = _toolchain.build_environment(include, tmp_path, {"PATH": "", **asked})
        assert environment["CMAKE_BUILD_PARALLEL_LEVEL"] == str(jobs)
        assert environment["MAKEFLAGS"] == f"-j{jobs}"


def test_the_source_is_mended(tmp_path, monkeypatch):
    monkeypatch.setattr(_toolchain, "run", lambda *rest: None)
    for is_known in (True, False):
        with tarfile.open(tmp_path / "horovod-0.28.1.tar.gz", "w:gz") as archive:
            for inside in {name for name, *_ in MENDS}:
                wrong = "\ny;\n".join(wrong for name, wrong, _ in MENDS if name == inside)
                (tmp_path / "file.cc").write_text(f"x;\n{wrong}\n" if is_known else "something else")
                archive.add(tmp_path / "file.cc", f"horovod-0.28.1/{inside}")
        if is_known:
            assert _toolchain.unpack_source(tmp_path) == tmp_path / "horovod-0.28.1"
            for inside in {name for name, *_ in MENDS}:
                right = "\ny;\n".join(right for name, _, right in MENDS if name == inside)
                assert (tmp_path / "horovod-0.28.1" / inside).read_text() == f"x;\n{right}\n"
        else:
            with pytest.raises(BuildError, match="is not the source"):
                _toolchain.unpack_source(tmp_path)


def test_the_source_is_unpacked_by_a_python_without_filters(tmp_path, monkeypatch):
    """Python 3.11.2, which Debian 12 has."""
    unpacked = []
    monkeypatch.setattr(_toolchain, "run", lambda *rest: None)
    monkeypatch.setattr(_toolchain, "MENDS", ())
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    monkeypatch.setattr(tarfile.TarFile, "extractall", lambda self, path: unpacked.append(path))
    tarfile.open(tmp_path / "horovod-0.28.1.tar.gz", "w:gz").close()
    _toolchain.unpack_source(tmp_path)
    assert unpacked == [tmp_path]


def test_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(BuildError, match="cannot be kept in .*file.*set XDG_CACHE_HOME"):
        build_horovod.build()


def test_a_compiler_may_come_with_options():
    assert _toolchain.find_compiler({**os.environ, "CXX": "c++ -O1"}).endswith("c++")
    with pytest.raises(BuildError, match="it says nothing, and returns 1"):
        _toolchain.find_compiler({**os.environ, "CXX": "false"})


def test_the_key_tells_builds_apart(monkeypatch):
    compiler = _toolchain.find_compiler(os.environ)
    key = build_horovod.build_key("2.21.0", compiler)
    assert build_horovod.build_key("2.21.0", compiler) == key
    assert build_horovod.build_key("2.20.0", compiler) != key
    with monkeypatch.context() as other:
        other.setattr(build_horovod, "MENDS", MENDS[1:])
        assert build_horovod.build_key("2.21.0", compiler) != key
    monkeypatch.setenv("HOROVOD_WITH_MPI", "1")
    assert build_horovod.build_key("2.21.0", compiler) != key


def test_the_cache_can_be_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build_horovod.cache_folder() == tmp_path / "tfopt" / "horovod"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert build_horovod.cache_folder() == Path.home() / ".cache" / "tfopt" / "horovod"


def test_a_compilation_that_fails_shows_the_errors_and_keeps_the_log(tmp_path, monkeypatch):
    script = "print('[ 50%] Building'); print('x.cc:1: error: no such thing'); raise SystemExit(1)"
    monkeypatch.setattr(build_horovod, "pip", lambda *arguments: [sys.executable, "-c", script])
    monkeypatch.setattr(build_horovod, "build_environment", lambda *arguments: dict(os.environ))
    monkeypatch.setattr(build_horovod, "unpack_source", lambda folder: folder)
    with pytest.raises(BuildError, match=r"whole log is in .*build.log. It says:\nx.cc:1: error: no such thing"):
        build_horovod.compile_wheel(tmp_path, tmp_path)
    assert "[ 50%]" in (tmp_path / "build.log").read_text()
    assert not list(tmp_path.glob("*.whl"))


def test_a_wheel_in_the_cache_is_used_installed_once_and_proved(tmp_path, monkeypatch):
    done = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build_horovod, "run", lambda command, *rest: done.append(command[4]))
    monkeypatch.setattr(build_horovod, "prove", lambda: done.append("proof"))

    def compile_wheel(include, folder):
        done.append("compiled")
        (folder / "horovod-0.28.1-x.whl").write_bytes(b"wheel")
        return folder / "horovod-0.28.1-x.whl"

    monkeypatch.setattr(build_horovod, "compile_wheel", compile_wheel)
    build_horovod.build()
    assert done == ["compiled", "install", "install", "proof"]
    done.clear()
    build_horovod.build()
    assert done == ["install", "install", "proof"]  # this wheel is not the one that is installed
    done.clear()
    monkeypatch.setattr(build_horovod, "is_wheel_installed", lambda wheel: True)
    build_horovod.build()
    assert done == ["proof"]
    build_horovod.build(force=True)
    assert done == ["proof", "compiled", "proof"]


def test_the_installed_wheel_is_told_from_others(tmp_path):
    other = tmp_path / "horovod-0.28.1-other.whl"
    other.write_bytes(b"another wheel")
    assert not build_horovod.is_wheel_installed(other)


def test_commands_that_fail_end_in_their_last_lines():
    with pytest.raises(BuildError, match="Trying failed:\nlast words"):
        _toolchain.run([sys.executable, "-c", "print('last words'); raise SystemExit(3)"], "Trying")


def test_ranks_start_before_anything_imports_tensorflow(tmp_path):
    """Horovod's own launcher imports it twice, to ask what was built in."""
    (tmp_path / "tensorflow.py").write_text("raise ImportError('not to be imported')")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["horovodrun", "-np", "2", "-H", "localhost:2", "echo", "started"],
        env={**os.environ, "PATH": path, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("started") == 2


def test_ranks_that_fail_the_proof_are_shown(monkeypatch):
    monkeypatch.setattr(build_horovod, "PROOF", "raise RuntimeError('no network')")
    with pytest.raises(BuildError, match="two ranks failed:(.|\n)*no network"):
        build_horovod.prove()


def test_ranks_that_hang_are_ended(monkeypatch):
    monkeypatch.setattr(build_horovod, "PROOF", "import time\ntime.sleep(600)")
    monkeypatch.setattr(build_horovod, "PROOF_SECONDS", 2)
    with pytest.raises(BuildError, match="did not finish within 2 s"):
        build_horovod.prove()


def test_options_of_the_users_displace_their_opposites():
    assert _toolchain.choose_options({"HOROVOD_WITHOUT_GLOO": "1"}).keys() & {"HOROVOD_WITH_GLOO"} == set()
    assert "HOROVOD_WITHOUT_MPI" not in _toolchain.choose_options({"HOROVOD_WITH_MPI": "1"})
    assert "HOROVOD_WITHOUT_MPI" in _toolchain.choose_options({"HOROVOD_WITH_MPI": "0"})


def test_errors_of_the_command_are_printed_without_a_traceback(monkeypatch, capsys):
    def fail(force):
        raise BuildError("it does not work [here]")

    monkeypatch.setattr(build_horovod, "build", fail)
    assert build_horovod.main([]) == 1
    assert "it does not work [here]" in capsys.readouterr().out
