"""Manifests as text: decoded, and as tables of comma-separated values; errors name the line."""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence

from ...errors import ConfigError
from ...storage.small_files import open_file, read_file
from ...util.text import escape

__all__ = ["Row", "check_columns", "columns_of", "file_beside", "first_line", "place", "read_rows", "read_text"]

_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16"),
)  # fmt: skip

LARGEST = 512 << 20
"""The most bytes of a manifest; one of a million clips is smaller."""

Row = tuple[str, Mapping[str, str]]
"""The place of a line (file and number), and its values by column."""


def place(path: str, line: int) -> str:
    """Return the name of a line in messages."""
    return f"{escape(path)}, line {line}"


def file_beside(manifest: str, path: str) -> str:
    """Return the full form of a path in a manifest, which is relative to the manifest's folder."""
    return os.path.normpath(os.path.join(os.path.dirname(manifest), path))


def read_text(path: str) -> str:
    """Return the text of a manifest; raises ConfigError if it cannot be read, naming the line that is not UTF-8."""
    try:
        data = read_file(path, LARGEST)
        _check_encoding(path, data)
        return data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"the manifest {escape(path)} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{place(path, line)}: this is not UTF-8.", hint="Convert the file, with iconv.") from None


def columns_of(path: str) -> list[str]:
    """Return the columns that the first line names; an empty list if the file is not a table."""
    if not path.lower().endswith(".csv"):
        return []
    with open_file(path) as file:
        data = file.readline(1 << 16)
    _check_encoding(path, data)
    return [column.strip() for column in next(csv.reader([data.decode("utf-8-sig", "replace")]), [])]


def first_line(path: str) -> str:
    """Return the first line of a manifest, for messages; '' if it has none."""
    if not os.path.isfile(path):
        return ""
    with open_file(path) as file:
        return file.readline(1 << 10).decode("utf-8-sig", "replace").strip()


def _check_encoding(path: str, data: bytes) -> None:
    """Raise ConfigError for UTF-16 and UTF-32, which spreadsheets write, by their byte order marks or zero bytes."""
    mark = next((name for mark, name in _MARKS if data.startswith(mark)), "")
    if mark or b"\0" in data:
        named = f"is {mark}, not UTF-8" if mark else "holds zero bytes, and is not UTF-8"
        name = mark or "UTF-16LE"
        raise ConfigError(
            f"{place(path, 1)}: it {named}.", hint=f"iconv -f {name} -t UTF-8 converts it, or the spreadsheet does."
        )


def read_rows(path: str, needed: Sequence[str]) -> Iterator[Row]:
    """Yield the lines of a table; raises ConfigError for a column that is missing, or a line of another length."""
    # Not splitlines(): it also splits at characters that a transcript may contain, such as U+2028.
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        columns = [column.strip() for column in next(reader, [])]
        check_columns(path, columns, needed)
        for values in reader:
            if not values:
                continue
            where = place(path, reader.line_num)
            if len(values) != len(columns):
                raise ConfigError(
                    f"{where}: it has {len(values)} values where the first line has {len(columns)} columns.",
                    hint='Write in quotes a value that has a comma: "yes, it does".',
                )
            yield where, dict(zip(columns, values, strict=True))
    except csv.Error as error:
        raise ConfigError(f"{place(path, reader.line_num)}: {escape(str(error))}.") from None


def check_columns(path: str, columns: Sequence[str], needed: Sequence[str]) -> None:
    """Raise ConfigError if a required column is missing or appears twice."""
    for column in needed:
        if columns.count(column) != 1:
            why = f"has no column {column}" if column not in columns else f"has the column {column} twice"
            named = ", ".join(map(escape, columns)) or "none"
            raise ConfigError(f"{place(path, 1)}: it {why}.", hint=f"Its columns are {named}.")
