"""The build command: what it does in which order, and what it says when it cannot.

That it compiles and installs a Horovod that works is shown by the ranks of the other tests, which run on it.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tfopt.distributed.build_horovod import __main__ as build_horovod
from tfopt.distributed.build_horovod import toolchain, wheel_cache
from tfopt.distributed.build_horovod.patches import PATCHES
from tfopt.distributed.build_horovod.toolchain import BuildError


def test_the_whole_command_ends_with_that_error(tmp_path):
    command = [sys.executable, "-m", "tfopt.distributed.build_horovod"]
    done = subprocess.run(command, env={**os.environ, "PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Building Horovod needs a C++ compiler" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(BuildError, match="cannot be kept in .*file.*set XDG_CACHE_HOME"):
        build_horovod.build()


def test_the_key_tells_builds_apart(monkeypatch):
    compiler = toolchain.find_compiler(os.environ)
    key = build_horovod.build_key("2.21.0", compiler)
    assert build_horovod.build_key("2.21.0", compiler) == key
    assert build_horovod.build_key("2.20.0", compiler) != key
    with monkeypatch.context() as other:
        other.setattr(build_horovod, "PATCHES", PATCHES[1:])
        assert build_horovod.build_key("2.21.0", compiler) != key
    monkeypatch.setenv("HOROVOD_WITH_MPI", "1")
    assert build_horovod.build_key("2.21.0", compiler) != key


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


def test_a_wheel_in_the_cache_is_used_installed_once_and_proved(tmp_path, monkeypatch):
    done = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build_horovod, "run", lambda command, *rest: done.append(command[4]))
    monkeypatch.setattr(build_horovod, "prove", lambda: done.append("proof"))

    def compile_wheel(include, folder):
        done.append("compiled")
        built = tmp_path / "horovod-0.28.1-x.whl"
        built.write_bytes(b"wheel")
        return wheel_cache.keep_wheel(built, folder)

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


def test_errors_of_the_command_are_printed_without_a_traceback(monkeypatch, capsys):
    def fail(force):
        raise BuildError("it does not work [here]")

    monkeypatch.setattr(build_horovod, "build", fail)
    assert build_horovod.main([]) == 1
    assert "it does not work [here]" in capsys.readouterr().out
