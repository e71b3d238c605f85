"""The build command: what it finds out before it compiles, and what it says when it cannot.

That it compiles and installs a Horovod that works is shown by the ranks of the other tests, which run on it.
"""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from tfopt.distributed import _pinned, _source, _toolchain, _wheel_cache, build_horovod
from tfopt.distributed._mends import PATCHES
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
    wanted = []
    monkeypatch.setattr(_toolchain, "run", lambda command, *rest: wanted.append(Path(command[-1]).read_text()))
    include = make_include(tmp_path / "include", [places[0] for places in HEADERS.values()])
    environment = _toolchain.build_environment(include, tmp_path, {"PATH": "", "HOROVOD_WITH_MPI": "1"})
    assert "cmake==3." in wanted[0]
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


def make_source(folder, files):
    """An archive of Horovod's source that holds these files."""
    archive = folder / "horovod-0.28.1.tar.gz"
    with tarfile.open(archive, "w:gz") as opened:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"horovod-0.28.1/{name}")
            entry.size = len(content)
            opened.addfile(entry, io.BytesIO(content))
    return archive


def known_files(column=1):
    """What the source has where it is mended (column 1), or what the mended source has there (2)."""
    names = {name for name, *_ in PATCHES}
    return {name: "\n;\n".join(["x", *(m[column] for m in PATCHES if m[0] == name)]).encode() for name in names}


def pin(archive, monkeypatch):
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(_source, "SOURCE", {"horovod==0.28.1": (digest,)})


def test_the_source_is_mended(tmp_path, monkeypatch):
    monkeypatch.setattr(_source, "run", lambda *rest: None)
    pin(make_source(tmp_path, known_files()), monkeypatch)
    assert _source.fetch_source(tmp_path) == tmp_path / "horovod-0.28.1"
    for name, content in known_files(2).items():
        assert (tmp_path / "horovod-0.28.1" / name).read_bytes() == content


# Every file in which something is mended: gone, without what is to be replaced, with it twice, or no text.
CHANGES = {
    "gone": (lambda content: None, "cannot be read"),
    "other": (lambda content: b"something else", "must have .* once. Received: 0 times"),
    "twice": (lambda content: content + content, "must have .* once. Received: 2 times"),
    "binary": (lambda content: b"\xff\xfe" + content, "cannot be read"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", sorted({name for name, *_ in PATCHES}))
def test_a_source_that_has_changed_is_named_and_not_touched(name, change, tmp_path):
    changed, message = CHANGES[change]
    files = {**known_files(), name: changed(known_files()[name])}
    for place, content in files.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        if content is not None:
            (tmp_path / place).write_bytes(content)
    with pytest.raises(BuildError, match=f"This is not the source of Horovod 0.28.1: {name} {message}"):
        _source.apply_patches(tmp_path)
    for place, content in files.items():
        assert not (tmp_path / place).exists() if content is None else (tmp_path / place).read_bytes() == content


DAMAGES = {
    "another": (lambda content: content + b"!", "is not the source of Horovod.*Expected: 92a43f5a"),
    "missing": (lambda content: None, "cannot be unpacked"),
    "cut off": (lambda content: content[: len(content) // 2], "cannot be unpacked"),
    "no archive": (lambda content: b"<html>", "cannot be unpacked"),
    "empty": (lambda content: b"", "cannot be unpacked"),
    "bits": (lambda content: content[:20] + bytes(byte ^ 255 for byte in content[20:]), "cannot be unpacked"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_archive_that_is_damaged_or_another_one_is_refused(damage, tmp_path, monkeypatch):
    change, message = DAMAGES[damage]
    archive = make_source(tmp_path, known_files())
    content = change(archive.read_bytes())
    if content is None:
        archive.unlink()
    else:
        archive.write_bytes(content)
        if damage != "another":  # as if it were the archive that is expected
            pin(archive, monkeypatch)
    with pytest.raises(BuildError, match=message):
        _source.unpack(archive, tmp_path)
    if damage == "another":
        assert not (tmp_path / "horovod-0.28.1").exists()


def offline(monkeypatch, folder):
    """Let pip take files from this folder only."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in {"CONFIG_FILE": os.devnull, "NO_INDEX": "1", "FIND_LINKS": str(folder)}.items():
        monkeypatch.setenv(f"PIP_{name}", value)


@pytest.mark.parametrize("is_known", [True, False])
def test_nothing_of_another_source_is_run(is_known, tmp_path, monkeypatch):
    """pip itself, without a network: to read the metadata of a source, it runs the source's own code."""
    links = tmp_path / "links"
    links.mkdir()
    project = b"[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
    backend = f"open({str(tmp_path / 'was run')!r}, 'w')\nraise SystemExit('the end')"
    archive = make_source(links, {"pyproject.toml": project, "backend.py": backend.encode(), "setup.py": b""})
    offline(monkeypatch, links)
    if is_known:
        pin(archive, monkeypatch)
    said = "the end" if is_known else "DO NOT MATCH THE HASHES"
    with pytest.raises(BuildError, match=f"(?s)Fetching the source of Horovod failed:.*{said}"):
        _source.fetch_source(tmp_path)
    assert (tmp_path / "was run").exists() is is_known


def test_build_tools_with_other_hashes_are_not_installed(tmp_path, monkeypatch):
    for name in ("setuptools-80.10.2", "wheel-0.45.1", "cmake-3.31.10"):
        (tmp_path / f"{name}-py3-none-any.whl").write_bytes(b"another wheel")
    offline(monkeypatch, tmp_path)
    include = make_include(tmp_path / "include", [places[0] for places in HEADERS.values()])
    with pytest.raises(BuildError, match="(?s)Installing the build tools failed:.*DO NOT MATCH THE HASHES"):
        _toolchain.build_environment(include, tmp_path, {"PATH": ""})


def test_every_file_that_the_build_downloads_has_a_hash():
    pins = _pinned.SOURCE | _pinned.BUILD_TOOLS | _pinned.CMAKE
    assert all(digests and all(len(bytes.fromhex(digest)) == 32 for digest in digests) for digests in pins.values())
    assert all("==" in requirement for requirement in pins)


def test_the_source_is_unpacked_by_a_python_without_filters(tmp_path, monkeypatch):
    """Python 3.11.2, which Debian 12 has."""
    unpacked = []
    archive = make_source(tmp_path, {})
    pin(archive, monkeypatch)
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    monkeypatch.setattr(tarfile.TarFile, "extractall", lambda self, path: unpacked.append(path))
    _source.unpack(archive, tmp_path)
    assert unpacked == [tmp_path]


def test_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(BuildError, match="cannot be kept in .*file.*set XDG_CACHE_HOME"):
        build_horovod.build()


def permissions(path):
    return path.stat().st_mode & 0o777


def test_the_cache_belongs_to_the_user_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not" / "there yet"))
    folder = _wheel_cache.cache_folder() / "build"
    for mode in (0o700, 0o755, 0o777):
        if folder.exists():  # as an older version left it, or somebody else
            folder.chmod(mode)
            folder.parent.chmod(mode)
        _wheel_cache.open_folder(folder)
        places = [folder, folder.parent, *([tmp_path / "not", tmp_path / "not" / "there yet"] * (mode == 0o700))]
        assert [permissions(place) for place in places] == [0o700] * len(places)


@pytest.mark.parametrize("place", ["tfopt", "tfopt/horovod", "tfopt/horovod/build"])
def test_a_cache_that_is_a_link_a_file_or_of_another_user_is_refused(place, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = _wheel_cache.cache_folder() / "build"
    link = tmp_path / place
    link.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "elsewhere").mkdir()
    for target, kind in ((tmp_path / "elsewhere", "a link"), (tmp_path / "nowhere", "a link"), (None, "no folder")):
        link.touch() if target is None else link.symlink_to(target)
        with pytest.raises(BuildError, match=f"must be a folder that belongs to this user.*{place}, which is {kind}"):
            _wheel_cache.open_folder(folder)
        link.unlink()
    assert not list((tmp_path / "elsewhere").iterdir())
    _wheel_cache.open_folder(folder)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(BuildError, match=f"tfopt, which is owned by user {owner}.*XDG_CACHE_HOME"):
        _wheel_cache.open_folder(folder)


def test_a_cache_whose_permissions_cannot_be_changed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = _wheel_cache.cache_folder() / "build"
    _wheel_cache.open_folder(folder)
    folder.chmod(0o777)
    monkeypatch.setattr(Path, "chmod", lambda *rest: None)
    with pytest.raises(BuildError, match="must not be writable by others.*build, whose permissions cannot be changed"):
        _wheel_cache.open_folder(folder)


def flip_a_bit(wheel, note):
    wheel.write_bytes(bytes([wheel.read_bytes()[0] ^ 1]) + wheel.read_bytes()[1:])


def link_elsewhere(wheel, note):
    wheel.rename(wheel.with_suffix(".moved"))
    wheel.symlink_to(wheel.with_suffix(".moved"))


TAMPERINGS = {
    "one bit": (flip_a_bit, "its SHA-256 is .*, and not the one in horovod-0.28.1-x.whl.sha256"),
    "no hash": (lambda wheel, note: note.unlink(), "there is no horovod-0.28.1-x.whl.sha256"),
    "an empty hash": (lambda wheel, note: note.write_text(""), "its SHA-256 is"),
    "a binary hash": (lambda wheel, note: note.write_bytes(b"\xff\xff"), "its SHA-256 is"),
    "a link": (link_elsewhere, "x.whl is not a file of this user"),
    "writable": (lambda wheel, note: wheel.chmod(0o666), "x.whl can be written by others"),
    "writable hash": (lambda wheel, note: note.chmod(0o660), "x.whl.sha256 can be written by others"),
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_a_wheel_that_is_not_what_was_put_there_is_not_used(tampering, tmp_path, capsys):
    tamper, message = TAMPERINGS[tampering]
    built = tmp_path / "horovod-0.28.1-x.whl"
    built.write_bytes(b"wheel")
    folder = tmp_path / "cache"
    folder.mkdir()
    assert _wheel_cache.find_wheel(folder) is None
    assert "Not using" not in capsys.readouterr().out
    wheel = _wheel_cache.keep_wheel(built, folder)
    note = folder / "horovod-0.28.1-x.whl.sha256"
    assert note.read_text() == f"{hashlib.sha256(b'wheel').hexdigest()}  horovod-0.28.1-x.whl\n"
    assert (permissions(wheel), permissions(note)) == (0o600, 0o600)
    assert _wheel_cache.find_wheel(folder) == wheel
    tamper(wheel, note)
    assert _wheel_cache.find_wheel(folder) is None
    assert re.search(f"Not using .*{message}", capsys.readouterr().out)
    assert _wheel_cache.keep_wheel(built, folder) == wheel  # it is built again, and put in place of the other
    assert _wheel_cache.find_wheel(folder) == wheel
    assert not list(folder.glob("*.partial"))


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
        other.setattr(build_horovod, "PATCHES", PATCHES[1:])
        assert build_horovod.build_key("2.21.0", compiler) != key
    monkeypatch.setenv("HOROVOD_WITH_MPI", "1")
    assert build_horovod.build_key("2.21.0", compiler) != key


def test_the_cache_can_be_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert _wheel_cache.cache_folder() == tmp_path / "tfopt" / "horovod"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/cache")
    assert _wheel_cache.cache_folder() == Path.home() / ".cache" / "tfopt" / "horovod"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert _wheel_cache.cache_folder() == Path.home() / ".cache" / "tfopt" / "horovod"


def test_a_compilation_that_fails_shows_the_errors_and_keeps_the_log(tmp_path, monkeypatch):
    script = "print('[ 50%] Building'); print('x.cc:1: error: no such thing'); raise SystemExit(1)"
    monkeypatch.setattr(build_horovod, "pip", lambda *arguments: [sys.executable, "-c", script])
    monkeypatch.setattr(build_horovod, "build_environment", lambda *arguments: dict(os.environ))
    monkeypatch.setattr(build_horovod, "fetch_source", lambda folder: folder)
    with pytest.raises(BuildError, match=r"whole log is in .*build.log. It says:\nx.cc:1: error: no such thing"):
        build_horovod.compile_wheel(tmp_path, tmp_path)
    assert "[ 50%]" in (tmp_path / "build.log").read_text()
    assert not list(tmp_path.glob("*.whl"))
    monkeypatch.setattr(build_horovod, "pip", lambda *arguments: [sys.executable, "-c", ""])
    with pytest.raises(BuildError, match=r"must give one wheel; the whole log is in .*build.log. Received: \[\]"):
        build_horovod.compile_wheel(tmp_path, tmp_path)


def test_the_log_follows_no_link(tmp_path, monkeypatch):
    """Others may have put it there while they could write to the folder."""
    monkeypatch.setattr(build_horovod, "pip", lambda *arguments: [sys.executable, "-c", "print('new')"])
    monkeypatch.setattr(build_horovod, "build_environment", lambda *arguments: dict(os.environ))
    monkeypatch.setattr(build_horovod, "fetch_source", lambda folder: folder)
    precious, folder = tmp_path / "precious", tmp_path / "cache"
    precious.write_text("mine")
    folder.mkdir()
    (folder / "build.log").symlink_to(precious)
    for _ in range(2):  # the second time a log of ours is there
        with pytest.raises(BuildError, match="must give one wheel"):
            build_horovod.compile_wheel(tmp_path, folder)
        assert precious.read_text() == "mine"
        assert (folder / "build.log").read_text() == "new\n"
    (folder / "build.log").unlink()
    (folder / "build.log").mkdir()
    with pytest.raises(BuildError, match="The log cannot be written to .*build.log.* Remove it"):
        build_horovod.compile_wheel(tmp_path, folder)


def test_a_wheel_that_cannot_be_read_is_built_again(tmp_path, monkeypatch, capsys):
    built = tmp_path / "horovod-0.28.1-x.whl"
    built.write_bytes(b"wheel")
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    _wheel_cache.keep_wheel(built, folder)

    def fail(path):
        raise PermissionError("no way")

    monkeypatch.setattr(Path, "read_bytes", fail)
    assert _wheel_cache.find_wheel(folder) is None
    assert "it cannot be read (no way)" in capsys.readouterr().out


def test_a_wheel_in_the_cache_is_used_installed_once_and_proved(tmp_path, monkeypatch):
    done = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build_horovod, "run", lambda command, *rest: done.append(command[4]))
    monkeypatch.setattr(build_horovod, "prove", lambda: done.append("proof"))

    def compile_wheel(include, folder):
        done.append("compiled")
        built = tmp_path / "horovod-0.28.1-x.whl"
        built.write_bytes(b"wheel")
        return _wheel_cache.keep_wheel(built, folder)

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
    done.clear()
    (wheel,) = (tmp_path / "tfopt" / "horovod").glob("*/*.whl")
    wheel.write_bytes(b"Wheel")
    build_horovod.build()
    assert done == ["compiled", "proof"]


def test_a_bad_wheel_does_not_hide_a_good_one(tmp_path, capsys):
    (tmp_path / "horovod-0.28.1-a.whl").write_bytes(b"of somebody")
    built = tmp_path / "new" / "horovod-0.28.1-x.whl"
    built.parent.mkdir()
    built.write_bytes(b"wheel")
    (tmp_path / f"{built.name}.{os.getpid()}.partial").touch()  # of a process that was killed
    wheel = _wheel_cache.keep_wheel(built, tmp_path)
    assert _wheel_cache.find_wheel(tmp_path) == wheel
    assert "Not using" in capsys.readouterr().out
    wheel.unlink()
    wheel.mkdir()
    with pytest.raises(BuildError, match="must hold files. Received: the folder .*x.whl"):
        _wheel_cache.find_wheel(tmp_path)


def test_the_installed_wheel_is_told_from_others(tmp_path, monkeypatch):
    other = tmp_path / "horovod-0.28.1-other.whl"
    other.write_bytes(b"another wheel")
    assert not build_horovod.is_wheel_installed(other)
    digest = hashlib.sha256(b"another wheel").hexdigest()
    notes = {
        "": False,
        "{": False,
        "[]": False,
        '{"archive_info": null}': False,
        '{"archive_info": {"hashes": 1}}': False,
    }
    notes[json.dumps({"archive_info": {"hashes": {"sha256": digest}}})] = True
    for note, expected in notes.items():
        found = SimpleNamespace(read_text=lambda name, note=note: note)
        monkeypatch.setattr(build_horovod.importlib.metadata, "distribution", lambda name, found=found: found)
        assert build_horovod.is_wheel_installed(other) is expected, note


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
        timeout=600,
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
