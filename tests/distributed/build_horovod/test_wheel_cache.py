"""The cache of wheels: the user's alone, and only wheels with their hash."""

import hashlib
import os
import re
from pathlib import Path

import pytest

from tfopt.distributed.build_horovod import wheel_cache
from tfopt.distributed.build_horovod.toolchain import BuildError


def permissions(path):
    return path.stat().st_mode & 0o777


def test_the_cache_belongs_to_the_user_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not" / "there yet"))
    folder = wheel_cache.cache_folder() / "build"
    for mode in (0o700, 0o755, 0o777):
        if folder.exists():  # as an older version left it, or somebody else
            folder.chmod(mode)
            folder.parent.chmod(mode)
        wheel_cache.open_folder(folder)
        places = [folder, folder.parent, *([tmp_path / "not", tmp_path / "not" / "there yet"] * (mode == 0o700))]
        assert [permissions(place) for place in places] == [0o700] * len(places)


@pytest.mark.parametrize("place", ["tfopt", "tfopt/horovod", "tfopt/horovod/build"])
def test_a_cache_that_is_a_link_a_file_or_of_another_user_is_refused(place, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = wheel_cache.cache_folder() / "build"
    link = tmp_path / place
    link.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "elsewhere").mkdir()
    for target, kind in ((tmp_path / "elsewhere", "a link"), (tmp_path / "nowhere", "a link"), (None, "no folder")):
        link.touch() if target is None else link.symlink_to(target)
        with pytest.raises(BuildError, match=f"must be a folder that belongs to this user.*{place}, which is {kind}"):
            wheel_cache.open_folder(folder)
        link.unlink()
    assert not list((tmp_path / "elsewhere").iterdir())
    wheel_cache.open_folder(folder)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(BuildError, match=f"tfopt, which is owned by user {owner}.*XDG_CACHE_HOME"):
        wheel_cache.open_folder(folder)


def test_a_cache_whose_permissions_cannot_be_changed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = wheel_cache.cache_folder() / "build"
    wheel_cache.open_folder(folder)
    folder.chmod(0o777)
    monkeypatch.setattr(Path, "chmod", lambda *rest: None)
    with pytest.raises(BuildError, match="must not be writable by others.*build, whose permissions cannot be changed"):
        wheel_cache.open_folder(folder)


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
    assert wheel_cache.find_wheel(folder) is None
    assert "Not using" not in capsys.readouterr().out
    wheel = wheel_cache.keep_wheel(built, folder)
    note = folder / "horovod-0.28.1-x.whl.sha256"
    assert note.read_text() == f"{hashlib.sha256(b'wheel').hexdigest()}  horovod-0.28.1-x.whl\n"
    assert (permissions(wheel), permissions(note)) == (0o600, 0o600)
    assert wheel_cache.find_wheel(folder) == wheel
    tamper(wheel, note)
    assert wheel_cache.find_wheel(folder) is None
    assert re.search(f"Not using .*{message}", capsys.readouterr().out)
    assert wheel_cache.keep_wheel(built, folder) == wheel  # it is built again, and put in place of the other
    assert wheel_cache.find_wheel(folder) == wheel
    assert not list(folder.glob("*.partial"))


def test_the_cache_can_be_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert wheel_cache.cache_folder() == tmp_path / "tfopt" / "horovod"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/cache")
    assert wheel_cache.cache_folder() == Path.home() / ".cache" / "tfopt" / "horovod"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert wheel_cache.cache_folder() == Path.home() / ".cache" / "tfopt" / "horovod"


def test_a_wheel_that_cannot_be_read_is_built_again(tmp_path, monkeypatch, capsys):
    built = tmp_path / "horovod-0.28.1-x.whl"
    built.write_bytes(b"wheel")
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    wheel_cache.keep_wheel(built, folder)

    def fail(path):
        raise PermissionError("no way")

    monkeypatch.setattr(Path, "read_bytes", fail)
    assert wheel_cache.find_wheel(folder) is None
    assert "it cannot be read (no way)" in capsys.readouterr().out


def test_a_bad_wheel_does_not_hide_a_good_one(tmp_path, capsys):
    (tmp_path / "horovod-0.28.1-a.whl").write_bytes(b"of somebody")
    built = tmp_path / "new" / "horovod-0.28.1-x.whl"
    built.parent.mkdir()
    built.write_bytes(b"wheel")
    (tmp_path / f"{built.name}.{os.getpid()}.partial").touch()  # of a process that was killed
    wheel = wheel_cache.keep_wheel(built, tmp_path)
    assert wheel_cache.find_wheel(tmp_path) == wheel
    assert "Not using" in capsys.readouterr().out
    wheel.unlink()
    wheel.mkdir()
    with pytest.raises(BuildError, match="must hold files. Received: the folder .*x.whl"):
        wheel_cache.find_wheel(tmp_path)
