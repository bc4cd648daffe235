"""Tables of Apache Arrow, as Hugging Face's `datasets` saves them: columns, and the sounds in their cells.

The files are memory-mapped, so a table takes hardly any memory; each process opens a file once.
https://arrow.apache.org/docs/format/Columnar.html#ipc-streaming-format
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any, BinaryIO, NamedTuple

from ...errors import SourceError
from ...util.text import escape
from ..config.imports import require_package

__all__ = ["OFFSETS", "Cell", "open_cell", "open_table"]

FILES_OPEN = 256
"""The maximum number of tables that a process keeps open."""


class Cell(NamedTuple):
    """The position of a sound in a table: the index of a row, and the name of a column.

    The values of the column are structs, whose field ``bytes`` has the sound.
    """

    column: str
    row: int


def open_table(path: str, columns: tuple[str, ...]) -> Any:
    """Return a ``pyarrow.Table`` with the ``columns`` that the file has.

    Raises SourceError if the file is not a table, or has one of the columns twice.
    """
    if not os.path.isfile(path):
        why = "is not a regular file" if os.path.exists(path) else "does not exist"
        raise SourceError(f"the table {escape(path)} of a dataset {why}.")
    found = os.stat(path)
    return _table(os.path.abspath(path), columns, (found.st_ino, found.st_size, found.st_mtime_ns))


@lru_cache(FILES_OPEN)
def _table(path: str, columns: tuple[str, ...], _: tuple[int, ...]) -> Any:
    """Return a ``pyarrow.Table`` with the ``columns`` that the file has; recent tables stay open for later calls.

    The last argument identifies the version of the file (inode, size and modification time): a replaced file is read
    again. Raises SourceError as ``open_table`` does.
    """
    pyarrow = require_package("pyarrow", extra="datasets")
    try:
        with pyarrow.memory_map(path) as file, pyarrow.ipc.open_stream(file) as stream:
            table = stream.read_all()
            twice = next((name for name in columns if table.column_names.count(name) > 1), None)
            if twice is not None:
                raise SourceError(f"the table {escape(path)} has the column {escape(twice)} twice.")
            found = table.select([name for name in dict.fromkeys(columns) if name in table.column_names])
            found.validate(full=True)  # offsets in a damaged file may point outside its memory
            return found
    except (OSError, pyarrow.ArrowException) as error:
        raise SourceError(f"{escape(path)} cannot be read as a table of Arrow: {escape(str(error), 200)}.") from error


def open_cell(path: str, cell: Cell, where: str) -> BinaryIO:
    """Return a file object that reads the bytes in a cell of the table ``path``, without loading them all at once.

    Raises SourceError if the cell has no bytes; ``where`` is the beginning of the error's message.
    """
    pyarrow = require_package("pyarrow", extra="datasets")
    found = _buffer(open_table(path, (cell.column,)).column(cell.column), cell.row)
    if not found:
        raise SourceError(
            f"{where}: the column {escape(cell.column)} has no audio.", hint="Remove this row from the dataset."
        )
    file: BinaryIO = pyarrow.BufferReader(found)
    return file


OFFSETS = {"binary": "i4", "large_binary": "i8"}
"""The Arrow types of columns of bytes, each with the numpy type of the offsets at which the column's entries begin."""


def _buffer(column: Any, row: int) -> Any:
    """Return the field ``bytes`` in a row of a column, as a buffer in the mapped file; None if there are no bytes.

    The buffer is not read through a pyarrow scalar, because that would copy the bytes.
    """
    import numpy as np

    for chunk in column.chunks:
        if row < len(chunk):
            break
        row -= len(chunk)
    entries = chunk.field("bytes") if hasattr(chunk, "field") else None
    if entries is None or str(entries.type) not in OFFSETS or entries.slice(row, 1).null_count:
        return None
    _, offsets, data = entries.buffers()
    begin, end = np.frombuffer(offsets, OFFSETS[str(entries.type)])[entries.offset + row :][:2].tolist()
    return data.slice(begin, end - begin) if data is not None else None
