"""The user's cache of built wheels: folders that nobody else can write to, and a hash beside each wheel."""

import hashlib
import os
import stat
from pathlib import Path

from tfopt.distributed._toolchain import BuildError, console

OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def cache_folder() -> Path:
    """Return the folder in which wheels are kept.

    Returns:
        `tfopt/horovod` in the user's cache: in `XDG_CACHE_HOME`, if that is an absolute path, or `~/.cache`.
    """
    named = os.environ.get("XDG_CACHE_HOME", "")
    # A relative path is to be ignored by XDG's rules: whoever can write to the current folder would choose the wheel.
    return Path(named if os.path.isabs(named) else Path.home() / ".cache") / "tfopt" / "horovod"


def open_folder(folder: Path) -> None:
    """Make the folder of a build, and see that only this user can use it, `cache_folder()` and the folder above.

    Args:
        folder: A folder in `cache_folder()`. It need not exist.

    Raises:
        BuildError: It cannot be made, or somebody else could have put a wheel there.
    """
    try:
        own = (*reversed(folder.parents[:2]), folder)
        for place in (*reversed(folder.parents[2:]), *own):
            if not os.path.lexists(place):
                place.mkdir(mode=0o700, exist_ok=True)
            if place in own:
                _make_private(place)
    except OSError as error:
        raise BuildError(f"The wheel cannot be kept in {folder} ({error}): set XDG_CACHE_HOME") from error


def _make_private(folder: Path) -> None:
    # Files in it are checked one by one: what others have put there, or could have changed, is not used.
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        kind = "a link" if stat.S_ISLNK(found.st_mode) else "no folder"
        kind = f"owned by user {found.st_uid}" if stat.S_ISDIR(found.st_mode) else kind
        raise BuildError(
            f"The cache of wheels must be a folder that belongs to this user ({os.geteuid()}). Received: {folder}, "
            f"which is {kind}. Remove it, or set XDG_CACHE_HOME to another folder"
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        folder.chmod(0o700)
        if stat.S_IMODE(folder.lstat().st_mode) & OTHERS_MAY_WRITE:
            raise BuildError(
                f"The cache of wheels must not be writable by others. Received: {folder}, whose permissions "
                "cannot be changed. Set XDG_CACHE_HOME to a folder on another file system"
            )


def keep_wheel(built: Path, folder: Path) -> Path:
    """Copy a wheel into the cache, with its hash beside it, as `sha256sum` writes it.

    Args:
        built: The wheel.
        folder: The folder of its build, after `open_folder`.

    Returns:
        The wheel in the cache.

    Raises:
        BuildError: It cannot be written.
    """
    target = folder / built.name
    content = built.read_bytes()
    try:
        # The hash first: a wheel that does not belong to its hash is built again.
        _write(_hash_file(target), f"{hashlib.sha256(content).hexdigest()}  {target.name}\n".encode())
        _write(target, content)
    except OSError as error:
        raise BuildError(f"The wheel cannot be kept in {folder} ({error}): set XDG_CACHE_HOME") from error
    return target


def _write(target: Path, content: bytes) -> None:
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)  # of a process that was killed and had the same number
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def find_wheel(folder: Path) -> Path | None:
    """Find the wheel of a build, and compare it with the hash beside it.

    Args:
        folder: The folder of the build, after `open_folder`.

    Returns:
        The wheel; None if there is none that is what was put there. Others are printed.

    Raises:
        BuildError: A folder stands where a file should be.
    """
    for wheel in sorted(folder.glob("horovod-*.whl")):
        problem = _problem_of(wheel)
        if problem is None:
            return wheel
        console.print(f"Not using {wheel}: {problem}", style="yellow", highlight=False, soft_wrap=True, markup=False)
    return None


def _problem_of(wheel: Path) -> str | None:
    # Why a wheel is not used; None if it is what was put there.
    for file in (_hash_file(wheel), wheel):
        if file.is_dir() and not file.is_symlink():
            raise BuildError(f"The cache of wheels must hold files. Received: the folder {file}. Remove it")
        if problem := _fault_of(file):
            return problem
    try:
        noted = _hash_file(wheel).read_bytes().split()[:1]
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    except OSError as error:
        return f"it cannot be read ({error})"
    if noted != [found.encode()]:
        return f"its SHA-256 is {found}, and not the one in {_hash_file(wheel).name}"
    return None


def _hash_file(wheel: Path) -> Path:
    return wheel.with_name(f"{wheel.name}.sha256")


def _fault_of(file: Path) -> str | None:
    # Why the file cannot be trusted; None if it can.
    try:
        found = file.lstat()
    except OSError:
        return f"there is no {file.name}"
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        return f"{file.name} is not a file of this user"
    if found.st_mode & OTHERS_MAY_WRITE:
        return f"{file.name} can be written by others"
    return None
