"""Horovod's source: download, comparison with its hash, unpacking, and patches."""

import hashlib
import io
import os
import tarfile
import zlib
from pathlib import Path

from tfopt.distributed.build_horovod.patches import PATCHES
from tfopt.distributed.build_horovod.pinned import HOROVOD_VERSION, SOURCE, pinned_options
from tfopt.distributed.build_horovod.toolchain import BuildError, pip, run


def fetch_source(folder: Path) -> Path:
    """Download and patch Horovod's source, and return its folder in `folder`; raise `BuildError` on failure."""
    # pip runs the setup of the source to read its metadata, so it must check the hash first.
    options = ("--quiet", "--no-build-isolation", "--no-binary", "horovod", *pinned_options(SOURCE, folder))
    tools = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder / "tools"), os.environ.get("PYTHONPATH", "")])}
    run(pip("download", *options, "--dest", str(folder)), "Fetching the source of Horovod", tools)
    source = unpack(folder / f"horovod-{HOROVOD_VERSION}.tar.gz", folder)
    apply_patches(source)
    return source


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack the source, return its folder; raise `BuildError` if the archive is missing, damaged or unknown."""
    ((digest,),) = SOURCE.values()
    try:
        content = archive.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found != digest:
            raise BuildError(
                f"{archive.name} is not the source of Horovod {HOROVOD_VERSION}: its SHA-256 is {found}. "
                f"Expected: {digest}. Nothing of it was run. Check which file your package index delivers"
            )
        with tarfile.open(fileobj=io.BytesIO(content)) as opened:  # Unpack exactly the bytes that were compared.
            if hasattr(tarfile, "data_filter"):
                opened.extractall(folder, filter="data")
            else:  # Python 3.11 has filters from 3.11.4 on; Debian 12 has an older one.
                opened.extractall(folder)
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise BuildError(
            f"The source of Horovod {HOROVOD_VERSION} cannot be unpacked from {archive} ({error})"
        ) from error
    return folder / f"horovod-{HOROVOD_VERSION}"


def apply_patches(source: Path) -> None:
    """Apply all patches; write nothing and raise `BuildError` unless each faulty text occurs once in its file."""
    patched: dict[str, str] = {}
    for name, wrong, right in PATCHES:
        try:
            text = patched[name] if name in patched else (source / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BuildError(
                f"This is not the source of Horovod {HOROVOD_VERSION}: {name} cannot be read ({error})"
            ) from error
        if text.count(wrong) != 1:
            raise BuildError(
                f"This is not the source of Horovod {HOROVOD_VERSION}: {name} must have {wrong!r} once. "
                f"Received: {text.count(wrong)} times"
            )
        patched[name] = text.replace(wrong, right)
    for name, text in patched.items():
        (source / name).write_text(text, encoding="utf-8")
