"""What the build finds out before it compiles."""

import os
import sys
from pathlib import Path

import pytest

from tfopt.distributed.build_horovod import toolchain
from tfopt.distributed.build_horovod.toolchain import HEADERS, BuildError


def make_include(folder, places):
    for place in places:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text("// here\n")
    return folder


@pytest.mark.parametrize("which", [0, -1])
def test_headers_forward_to_where_tensorflow_has_them(which, tmp_path):
    include = make_include(tmp_path / "include", [places[which] for places in HEADERS.values()])
    toolchain.write_forwarding_headers(include, tmp_path / "headers")
    for asked, places in HEADERS.items():
        assert (tmp_path / "headers" / asked).read_text() == f'#include "{places[which]}"\n'


def test_the_newest_place_is_preferred(tmp_path):
    include = make_include(tmp_path / "include", [place for places in HEADERS.values() for place in places])
    toolchain.write_forwarding_headers(include, tmp_path / "headers")
    builder = tmp_path / "headers" / "tensorflow/compiler/xla/client/xla_builder.h"
    assert builder.read_text() == '#include "xla/hlo/builder/xla_builder.h"\n'


def test_headers_that_are_where_horovod_looks_need_no_forwarding(tmp_path):
    include = make_include(tmp_path / "include", HEADERS)
    toolchain.write_forwarding_headers(include, tmp_path / "headers")
    assert not (tmp_path / "headers").exists()


def test_a_tensorflow_without_the_headers_is_named(tmp_path):
    with pytest.raises(BuildError, match=r"has no xla/hlo/builder/xla_builder.h or xla/client/xla_builder.h"):
        toolchain.write_forwarding_headers(tmp_path, tmp_path / "headers")


def test_the_installed_tensorflow_has_them(tmp_path):
    include, version = toolchain.find_tensorflow()
    assert version.startswith("2.")
    toolchain.write_forwarding_headers(include, tmp_path)
    for library in toolchain.INCLUDED_LIBRARIES:
        assert (include / library).is_dir()


def test_without_a_compiler_the_error_says_how_to_get_one(tmp_path):
    with pytest.raises(
        BuildError, match="needs a C\\+\\+ compiler; g\\+\\+ or clang\\+\\+ or c\\+\\+ was not found.*apt"
    ):
        toolchain.find_compiler({"PATH": str(tmp_path)})
    with pytest.raises(BuildError, match="my-compiler was not found"):
        toolchain.find_compiler({"PATH": str(tmp_path), "CXX": "my-compiler"})


def test_a_compiler_that_does_not_work_is_shown_with_its_words(tmp_path):
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\necho no C++17 here >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(BuildError, match="does not compile C\\+\\+17:\nno C\\+\\+17 here"):
        toolchain.find_compiler({"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"})


@pytest.mark.parametrize(
    ("version", "usable"), [("3.25.1", True), ("3.13.0", True), ("3.5.2", False), ("4.0.2", False), (None, False)]
)
def test_only_some_versions_of_cmake_will_do(version, usable, tmp_path):
    if version is not None:
        cmake = tmp_path / "cmake"
        cmake.write_text(f"#!/bin/sh\necho cmake version {version}\n")
        cmake.chmod(0o755)
    assert toolchain.has_usable_cmake({"PATH": str(tmp_path)}) is usable


def test_a_missing_cmake_comes_from_the_package_index(tmp_path, monkeypatch):
    wanted = []
    monkeypatch.setattr(toolchain, "run", lambda command, *rest: wanted.append(Path(command[-1]).read_text()))
    include = make_include(tmp_path / "include", [places[0] for places in HEADERS.values()])
    environment = toolchain.build_environment(include, tmp_path, {"PATH": "", "HOROVOD_WITH_MPI": "1"})
    assert "cmake==3." in wanted[0]
    assert environment["PATH"].startswith(str(tmp_path / "tools" / "cmake" / "data" / "bin"))
    assert environment["CPATH"].split(os.pathsep)[0] == str(tmp_path / "headers")
    assert environment["HOROVOD_WITH_MPI"] == "1"
    assert "HOROVOD_WITHOUT_MPI" not in environment
    assert toolchain.build_environment(include, tmp_path, {"PATH": ""})["HOROVOD_WITHOUT_MPI"] == "1"
    assert environment["HOROVOD_WITH_GLOO"] == "1"


def test_as_many_files_are_compiled_at_once_as_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(toolchain, "run", lambda *rest: None)
    include = make_include(tmp_path / "include", [places[0] for places in HEADERS.values()])
    asked_for = {"CMAKE_BUILD_PARALLEL_LEVEL": "12", "MAKEFLAGS": "-j9"}
    for cores, asked, jobs in ((3, {}, 3), (64, {}, 8), (2, {"CMAKE_BUILD_PARALLEL_LEVEL": ""}, 2), (2, asked_for, 12)):
        monkeypatch.setattr(toolchain, "_usable_cores", lambda cores=cores: cores)
        environment = toolchain.build_environment(include, tmp_path, {"PATH": "", **asked})
        assert environment["CMAKE_BUILD_PARALLEL_LEVEL"] == str(jobs)
        assert environment["MAKEFLAGS"] == f"-j{jobs}"


def test_build_tools_with_other_hashes_are_not_installed(tmp_path, offline):
    for name in ("setuptools-80.10.2", "wheel-0.45.1", "cmake-3.31.10"):
        (tmp_path / f"{name}-py3-none-any.whl").write_bytes(b"another wheel")
    offline(tmp_path)
    include = make_include(tmp_path / "include", [places[0] for places in HEADERS.values()])
    with pytest.raises(BuildError, match="(?s)Installing the build tools failed:.*DO NOT MATCH THE HASHES"):
        toolchain.build_environment(include, tmp_path, {"PATH": ""})


def test_a_compiler_may_come_with_options():
    assert toolchain.find_compiler({**os.environ, "CXX": "c++ -O1"}).endswith("c++")
    with pytest.raises(BuildError, match="it says nothing, and returns 1"):
        toolchain.find_compiler({**os.environ, "CXX": "false"})


def test_commands_that_fail_end_in_their_last_lines():
    with pytest.raises(BuildError, match="Trying failed:\nlast words"):
        toolchain.run([sys.executable, "-c", "print('last words'); raise SystemExit(3)"], "Trying")


def test_options_of_the_users_displace_their_opposites():
    assert toolchain.choose_options({"HOROVOD_WITHOUT_GLOO": "1"}).keys() & {"HOROVOD_WITH_GLOO"} == set()
    assert "HOROVOD_WITHOUT_MPI" not in toolchain.choose_options({"HOROVOD_WITH_MPI": "1"})
    assert "HOROVOD_WITHOUT_MPI" in toolchain.choose_options({"HOROVOD_WITH_MPI": "0"})
