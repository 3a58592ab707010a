"""Rows of parquet files, one row group's batch at a time."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from camelid.base.errors import FormatError
from camelid.data.compression import open_binary
from camelid.data.sources import Record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from camelid.data.sources import ReadOptions, SourceFile

ROWS_PER_BATCH = 256


def read_parquet_records(file: SourceFile, options: ReadOptions) -> Iterator[Record]:
    """The rows of a parquet file.

    Raises:
        FormatError: not a parquet file, or a damaged one.
    """
    del options
    import pyarrow
    from pyarrow import parquet

    number = 0
    with _seekable(file) as path:
        try:
            with parquet.ParquetFile(path, pre_buffer=False) as table:
                for batch in table.iter_batches(ROWS_PER_BATCH, use_threads=False):
                    for values in batch.to_pylist():
                        number += 1
                        yield Record(number, values)
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise FormatError(
                f"not a readable parquet file after row {number}: {error}",
                where=f"{file.path}:{number + 1}",
                hint="fetch or write the file again",
            ) from error


@contextmanager
def _seekable(file: SourceFile) -> Iterator[Path]:
    """The file itself or, as parquet is read from its end, a decompressed copy beside the system's temporary files."""
    if file.compression is None:
        yield file.path
        return
    with tempfile.NamedTemporaryFile(suffix=".parquet") as copy:
        with open_binary(file.path, file.compression) as stream:
            shutil.copyfileobj(stream, copy)
        copy.flush()
        yield Path(copy.name)
