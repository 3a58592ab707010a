"""One trainer at a time in a run folder: a lock that dies with its process, so that no kill leaves one behind."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING

from camelid.base.errors import ResourceError
from camelid.base.files import disk_error

if TYPE_CHECKING:
    from pathlib import Path

LOCK = "lock"


class RunLock:
    """Holds a run folder from its making until `close`, or until nothing refers to it.

    Args:
        run_folder: created if missing.

    Raises:
        ResourceError: another trainer holds the folder, or it cannot be written.
    """

    def __init__(self, run_folder: Path) -> None:
        path = run_folder / LOCK
        try:
            run_folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise disk_error(error, path) from error
        self.close = weakref.finalize(self, os.close, descriptor)
        """Let go of the folder; a second call does nothing."""
        try:
            _lock(descriptor)
        except OSError as error:
            self.close()
            raise ResourceError(
                "another process is training in this run folder",
                where=run_folder,
                hint="wait for it, stop it, or choose another folder with --output",
            ) from error


def _lock(descriptor: int) -> None:
    """Lock an open file or raise OSError at once; the system lets go when the file is closed."""
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
