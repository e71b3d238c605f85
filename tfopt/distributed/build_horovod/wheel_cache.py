"""The user's cache of built wheels: folders that only this user can write to, and a hash beside each wheel."""

import hashlib
import os
import stat
from pathlib import Path

from tfopt.distributed.build_horovod.toolchain import BuildError, console

OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def cache_folder() -> Path:
    """Return `tfopt/horovod` in `XDG_CACHE_HOME`, if that is an absolute path, or else in `~/.cache`."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    # XDG's rules say to ignore a relative path. Otherwise a user who can write to the current folder would choose the
    # wheel.
    return Path(named if os.path.isabs(named) else Path.home() / ".cache") / "tfopt" / "horovod"


def open_folder(folder: Path) -> None:
    """Create a build's folder in `cache_folder()`; raise `BuildError` unless only this user can use the cache."""
    try:
        own = (*reversed(folder.parents[:2]), folder)
        for path in (*reversed(folder.parents[2:]), *own):
            if not os.path.lexists(path):
                path.mkdir(mode=0o700, exist_ok=True)
            if path in own:
                _make_private(path)
    except OSError as error:
        raise BuildError(f"The wheel cannot be kept in {folder} ({error}): set XDG_CACHE_HOME") from error


def _make_private(folder: Path) -> None:
    # Files in the folder are checked one by one. A file that others wrote, or could have changed, is not used.
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
    """Copy a wheel into its build's folder, write its hash beside it as `sha256sum` does, and return the copy."""
    target = folder / built.name
    content = built.read_bytes()
    try:
        # Write the hash first: a wheel that does not match its hash is built again.
        _write(_hash_file(target), f"{hashlib.sha256(content).hexdigest()}  {target.name}\n".encode())
        _write(target, content)
    except OSError as error:
        raise BuildError(f"The wheel cannot be kept in {folder} ({error}): set XDG_CACHE_HOME") from error
    return target


def _write(target: Path, content: bytes) -> None:
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)  # A killed process with the same number may have left it.
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def find_wheel(folder: Path) -> Path | None:
    """Return the wheel of a build that matches its hash, or None; print why another is not used."""
    for wheel in sorted(folder.glob("horovod-*.whl")):
        problem = _problem_of(wheel)
        if problem is None:
            return wheel
        console.print(f"Not using {wheel}: {problem}", style="yellow", highlight=False, soft_wrap=True, markup=False)
    return None


def _problem_of(wheel: Path) -> str | None:
    # Return why a wheel cannot be used; None if it is unchanged since `keep_wheel`.
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
    # Return why the file cannot be trusted; None if it can.
    try:
        found = file.lstat()
    except OSError:
        return f"there is no {file.name}"
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        return f"{file.name} is not a file of this user"
    if found.st_mode & OTHERS_MAY_WRITE:
        return f"{file.name} can be written by others"
    return None
