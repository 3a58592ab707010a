"""Files that are either whole or absent: write to a temporary name, flush to disk, rename."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from camelid.base.errors import CamelidError, NotFoundError, ResourceError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def atomic_file(path: Path, mode: str = "wb") -> Iterator[IO[bytes]]:
    """Open a file that appears under `path` only once it is complete and on disk.

    Raises:
        ResourceError: the disk is full or the folder is not writable; nothing is left under `path`.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(descriptor, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Fill a temporary folder that takes the name `path` only once everything in it is on disk.

    An existing folder is replaced as a whole; a failure leaves it as it was.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb+") as handle:
                    os.fsync(handle.fileno())
        temporary.chmod(0o777 & ~_umask())
        sync_folder(temporary)
        _swap(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 text file, atomically."""
    with atomic_file(path) as file:
        file.write(text.encode())


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with existing_file(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def matching_paths(pattern: str) -> list[Path]:
    """What a path or a glob pattern names: the path itself if it is there, else whatever the pattern matches, sorted.

    Raises:
        NotFoundError: this can be no pattern.
    """
    path = Path(pattern).expanduser()
    if path.exists():
        return [path]
    anchor = Path(path.anchor)
    try:
        return sorted(anchor.glob(str(path.relative_to(anchor))))
    except ValueError as error:
        hint = "`**` stands for any number of folders, and so for a whole part of a path: 'texts/**/*.txt'"
        raise NotFoundError(f"'{pattern}' is no pattern of file names", hint=hint) from error


def existing_file(path: Path) -> Path:
    """The path, if a file is there.

    Raises:
        NotFoundError: nothing is there, or a folder is.
    """
    if not path.exists():
        raise NotFoundError("there is no such file", where=path)
    if not path.is_file():
        raise NotFoundError("this is a folder, not a file", where=path)
    return path


def check_free_space(path: Path, num_bytes: int) -> None:
    """Raise before writing what the disk under `path` cannot hold.

    Raises:
        ResourceError: fewer than `num_bytes` bytes are free.
    """
    folder = path
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise ResourceError(
            f"not enough disk space: {format_bytes(num_bytes)} needed, {format_bytes(free)} free",
            where=path,
            hint="free some space or choose a folder on another disk",
        )


def format_bytes(num_bytes: float) -> str:
    """A size for people: 98362432 → '98.4 MB'."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to disk, so that a rename in it survives a power cut."""
    if os.name == "nt":
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_error(error: OSError, path: Path) -> CamelidError:
    """The CamelidError for an operating-system error met while writing `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError("no space left on the disk", where=path, hint="free some space; nothing was overwritten")
    return ResourceError(
        f"cannot write: {error.strerror or error}", where=path, hint="nothing was overwritten; choose another place"
    )


def _swap(new: Path, path: Path) -> None:
    if not path.exists():
        new.rename(path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
    path.rename(old / "old")
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def exists(path: Path) -> bool:
    """Whether something is there; what cannot be a path, for its length say, is not."""
    try:
        return path.exists()
    except OSError:
        return False


def near_names(path: Path) -> str | None:
    """A hint that names what lies beside a missing path under nearly its name; None if nothing does."""
    from difflib import get_close_matches

    try:
        beside = sorted(file.name for file in path.parent.iterdir())
    except OSError:
        return None
    near = get_close_matches(path.name, beside, n=3, cutoff=0.7)
    return "did you mean " + " or ".join(f"'{path.parent / name}'" for name in near) + "?" if near else None
