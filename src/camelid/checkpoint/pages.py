"""Memory maps of weight files: copy-on-write, and given back page by page when a reader is done with a part."""

from __future__ import annotations

import mmap
from typing import IO


def map_privately(file: IO[bytes]) -> mmap.mmap:
    """A copy-on-write map of a whole file that reserves no memory for the copies."""
    no_reserve = getattr(mmap, "MAP_NORESERVE", None)
    if no_reserve is None:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE | no_reserve, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def release_pages(mapped: mmap.mmap, begin: int, num_bytes: int) -> None:
    """Let the system take back the whole pages of a range; they are read from the file again when touched again.

    What was written into them is lost: only for who knows that nothing was.
    """
    if not hasattr(mapped, "madvise") or not hasattr(mmap, "MADV_DONTNEED"):
        return  # Windows; the system takes the pages back when it needs them
    first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (begin + num_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        mapped.madvise(mmap.MADV_DONTNEED, first, last - first)
