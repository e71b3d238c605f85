"""Horovod's source: the right one, unpacked and patched."""

import hashlib
import io
import tarfile

import pytest

from tfopt.distributed.build_horovod import source
from tfopt.distributed.build_horovod.patches import PATCHES
from tfopt.distributed.build_horovod.toolchain import BuildError


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
    """What the source has where it is patched (column 1), or what the patched source has there (2)."""
    names = {name for name, *_ in PATCHES}
    return {name: "\n;\n".join(["x", *(m[column] for m in PATCHES if m[0] == name)]).encode() for name in names}


def pin(archive, monkeypatch):
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(source, "SOURCE", {"horovod==0.28.1": (digest,)})


def test_the_source_is_patched(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "run", lambda *rest: None)
    pin(make_source(tmp_path, known_files()), monkeypatch)
    assert source.fetch_source(tmp_path) == tmp_path / "horovod-0.28.1"
    for name, content in known_files(2).items():
        assert (tmp_path / "horovod-0.28.1" / name).read_bytes() == content


# Every file in which something is patched: gone, without what is to be replaced, with it twice, or no text.
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
        source.apply_patches(tmp_path)
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
        source.unpack(archive, tmp_path)
    if damage == "another":
        assert not (tmp_path / "horovod-0.28.1").exists()


@pytest.mark.parametrize("is_known", [True, False])
def test_nothing_of_another_source_is_run(is_known, tmp_path, monkeypatch, offline):
    """pip itself, without a network: to read the metadata of a source, it runs the source's own code."""
    links = tmp_path / "links"
    links.mkdir()
    project = b"[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
    backend = f"open({str(tmp_path / 'was run')!r}, 'w')\nraise SystemExit('the end')"
    archive = make_source(links, {"pyproject.toml": project, "backend.py": backend.encode(), "setup.py": b""})
    offline(links)
    if is_known:
        pin(archive, monkeypatch)
    said = "the end" if is_known else "DO NOT MATCH THE HASHES"
    with pytest.raises(BuildError, match=f"(?s)Fetching the source of Horovod failed:.*{said}"):
        source.fetch_source(tmp_path)
    assert (tmp_path / "was run").exists() is is_known


def test_the_source_is_unpacked_by_a_python_without_filters(tmp_path, monkeypatch):
    """Python 3.11.2, which Debian 12 has."""
    unpacked = []
    archive = make_source(tmp_path, {})
    pin(archive, monkeypatch)
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    monkeypatch.setattr(tarfile.TarFile, "extractall", lambda self, path: unpacked.append(path))
    source.unpack(archive, tmp_path)
    assert unpacked == [tmp_path]
