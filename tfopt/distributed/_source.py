"""Horovod's source: fetched, compared with its hash, unpacked, and mended."""

import hashlib
import io
import os
import tarfile
import zlib
from pathlib import Path

from tfopt.distributed._mends import MENDS
from tfopt.distributed._pinned import HOROVOD_VERSION, SOURCE, pinned_options
from tfopt.distributed._toolchain import BuildError, pip, run


def fetch_source(folder: Path) -> Path:
    """Fetch Horovod's source and mend it.

    Args:
        folder: Where to put it.

    Returns:
        The folder that it is in.

    Raises:
        BuildError: It cannot be fetched, or is not the source that is known.
    """
    # pip runs the setup of what it downloads, to read its metadata: it must check the hash first.
    options = ("--quiet", "--no-build-isolation", "--no-binary", "horovod", *pinned_options(SOURCE, folder))
    tools = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder / "tools"), os.environ.get("PYTHONPATH", "")])}
    run(pip("download", *options, "--dest", str(folder)), "Fetching the source of Horovod", tools)
    source = unpack(folder / f"horovod-{HOROVOD_VERSION}.tar.gz", folder)
    mend(source)
    return source


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack the archive of the source, if it is the one that is known.

    Args:
        archive: The archive.
        folder: Where to unpack it.

    Returns:
        The folder of the source.

    Raises:
        BuildError: The archive is missing, damaged, or another one.
    """
    ((digest,),) = SOURCE.values()
    try:
        content = archive.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found != digest:
            raise BuildError(
                f"{archive.name} is not the source of Horovod {HOROVOD_VERSION}: its SHA-256 is {found}. "
                f"Expected: {digest}. Nothing of it was run. Look at what your package index delivers"
            )
        with tarfile.open(fileobj=io.BytesIO(content)) as opened:  # not read again: what was compared is unpacked
            if hasattr(tarfile, "data_filter"):
                opened.extractall(folder, filter="data")
            else:  # Python 3.11 before its fourth release, as in Debian 12, knows no filters
                opened.extractall(folder)
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise BuildError(
            f"The source of Horovod {HOROVOD_VERSION} cannot be unpacked from {archive} ({error})"
        ) from error
    return folder / f"horovod-{HOROVOD_VERSION}"


def mend(source: Path) -> None:
    """Put right what is wrong in Horovod's source. Files are written when all of them are known to be right.

    Args:
        source: The folder of the source.

    Raises:
        BuildError: A file is missing, or does not hold what is to be replaced.
    """
    mended: dict[str, str] = {}
    for name, wrong, right in MENDS:
        try:
            text = mended[name] if name in mended else (source / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BuildError(
                f"This is not the source of Horovod {HOROVOD_VERSION}: {name} cannot be read ({error})"
            ) from error
        if text.count(wrong) != 1:
            raise BuildError(
                f"This is not the source of Horovod {HOROVOD_VERSION}: {name} must have {wrong!r} once. "
                f"Received: {text.count(wrong)} times"
            )
        mended[name] = text.replace(wrong, right)
    for name, text in mended.items():
        (source / name).write_text(text, encoding="utf-8")
