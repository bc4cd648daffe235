"""Reads the text of manifests: plain, as rows of a CSV, and as JSON lines. Each error gives the file and the line."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import os
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

from ...errors import ConfigError
from ...storage.small_files import open_file, read_file
from ...util.text import brief_repr, escape

__all__ = [
    "CSV",
    "FOLDER",
    "JSON_LINES",
    "Marks",
    "Row",
    "check_columns",
    "field_of",
    "file_beside",
    "file_beside_or_here",
    "first_line",
    "has_marks",
    "names_in",
    "parse_json",
    "place",
    "read_json_lines",
    "read_rows",
    "read_text",
    "seconds_of",
]

_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16"),
)  # fmt: skip

LARGEST = 512 << 20
"""The largest manifest that is read, in bytes; a manifest with a million clips is smaller."""

JSON_LINES = (".jsonl", ".jsonl.gz", ".ndjson", ".json", ".json.gz")
"""Endings of the file names of manifests with a JSON object on each line. NeMo's manifests end in ``.json``."""

LONGEST = 1 << 20
"""At most this many bytes of the first line are read to recognise the format of a manifest."""

ADD_COMMAS = "Add the missing values, or a comma for each value that is empty."

CSV, FOLDER = (".csv",), ("/",)
"""Endings of the names of tables; and in place of an ending: the manifest is a folder."""


class Marks(NamedTuple):
    """How a manifest of some format is recognised: by the ending of its file name, and by names in its content.

    Its file name ends in one of ``endings``. Its content has all names of ``has`` and none of ``lacks``: columns of a
    CSV, or fields of the JSON object on the first line. A folder has all files of ``has``; ``lacks`` is not used.
    """

    endings: tuple[str, ...]
    has: frozenset[str] = frozenset()
    lacks: frozenset[str] = frozenset()


Row = tuple[str, Mapping[str, str]]
"""A line of a table: its position for messages (file and line number), and its values by column."""


def place(path: str, line: int) -> str:
    """Return the position of a line for messages: the file and the line number."""
    return f"{escape(path)}, line {line}"


def file_beside(manifest: str, path: str) -> str:
    """Return ``path``, from a line of ``manifest``, joined to the manifest's folder; an absolute path is unchanged."""
    return os.path.normpath(os.path.join(os.path.dirname(manifest), path))


def file_beside_or_here(manifest: str, path: str) -> str:
    """Return ``path`` joined to the manifest's folder, or ``path`` if the file is only in the working directory."""
    beside = file_beside(manifest, path)
    return beside if os.path.exists(beside) or not os.path.exists(path) else os.path.normpath(path)


def read_text(path: str) -> str:
    """Return the text of a manifest, decompressed if its name ends in ``.gz``.

    Raises ConfigError if the file cannot be read, or if it is not UTF-8; the message then gives the line.
    """
    try:
        data = _decompressed(path) if path.lower().endswith(".gz") else read_file(path, LARGEST)
        _check_encoding(path, data)
        return data.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{place(path, line)}: the line is not UTF-8.", hint="Convert the file to UTF-8, for example with iconv."
        ) from None


def _unreadable(path: str, error: Exception) -> ConfigError:
    why = getattr(error, "strerror", None) or escape(str(error)).rstrip(".")
    return ConfigError(f"the manifest {escape(path)} cannot be read: {why}.")


def _decompressed(path: str) -> bytes:
    with open_file(path) as packed, gzip.GzipFile(fileobj=packed) as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ConfigError(
            f"the manifest {escape(path)} is larger than {LARGEST >> 20} MiB after decompression.",
            hint="Split the manifest into several files, and list all of them.",
        )
    return data


def names_in(path: str) -> set[str]:
    """Return the column names of a CSV, the fields of the JSON object on a file's first line, or {} for a folder.

    Raises ConfigError if the file cannot be read, and for a CSV that is in UTF-16 or UTF-32, or has a stray carriage
    return in its first line.
    """
    if os.path.isdir(path):
        return set()
    return set(columns_of(path)) if path.lower().endswith(CSV) else fields_of_first_line(path)


def has_marks(path: str, names: Set[str], marks: Marks) -> bool:
    """Return whether a file or folder has these marks; ``names`` are the ``names_in`` it."""
    if os.path.isdir(path):
        return marks.endings == FOLDER and all(os.path.isfile(os.path.join(path, name)) for name in marks.has)
    return path.lower().endswith(marks.endings) and marks.has <= names and marks.lacks.isdisjoint(names)


def columns_of(path: str) -> list[str]:
    """Return the column names in the first line of a CSV; raises ConfigError as ``names_in`` does."""
    try:
        with open_file(path) as file:
            data = file.readline(1 << 16)
    except OSError as error:
        raise _unreadable(path, error) from error
    _check_encoding(path, data)
    try:
        return [column.strip() for column in next(csv.reader([data.decode("utf-8-sig", "replace")]), [])]
    except csv.Error as error:
        raise ConfigError(
            f"{place(path, 1)}: a carriage return (CR) is inside the line.",
            hint="Remove each CR that is not before a LF at the end of a line, or save the table again as CSV.",
        ) from error


def first_line(path: str) -> str:
    """Return the first line of a manifest, for messages; '' for a folder."""
    return _first_line(path, 1 << 10).decode("utf-8-sig", "replace").strip()


def fields_of_first_line(path: str) -> set[str]:
    """Return the field names of the JSON object on a file's first line; an empty set if the line is no JSON object.

    Raises ConfigError if the file cannot be read.
    """
    try:
        found = json.loads(_first_line(path, LONGEST).decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return set()
    return set(found) if isinstance(found, dict) else set()


def _first_line(path: str, most: int) -> bytes:
    """Return up to ``most`` bytes of a file's first line, decompressed; b"" for a folder.

    Raises ConfigError if the file cannot be read.
    """
    if not os.path.isfile(path):
        return b""
    try:
        with open_file(path) as file:
            if not path.lower().endswith(".gz"):
                return file.readline(most)
            with gzip.GzipFile(fileobj=file) as plain:
                return plain.readline(most)
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from error


def read_json_lines(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the position (file and line number) and the JSON object of each line that is not empty.

    Raises ConfigError for a line that is not a JSON object.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = place(path, number)
        entry = parse_json(where, line)
        if not isinstance(entry, dict):
            raise ConfigError(f"{where}: the line is {brief_repr(entry)}, not a JSON object.")
        yield where, entry


def parse_json(where: str, text: str) -> Any:
    """Return the value of a JSON string; ``where`` is the string's position for messages.

    Raises ConfigError if the string is not valid JSON, or if an object in it has a field twice.
    """
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _mapping(where, pairs))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not valid JSON: {escape(str(error))}.") from None


def _mapping(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ConfigError(f"{where}: the field {escape(key)} occurs twice.", hint="Remove one of the two.")
        made[key] = value
    return made


def field_of(where: str, entry: Mapping[str, Any], names: Sequence[str]) -> Any:
    """Return the value of a field of ``entry``: of the first name in ``names`` that ``entry`` has.

    Raises ConfigError if ``entry`` has none of the names.
    """
    found = next((name for name in names if name in entry), None)
    if found is None:
        looked = f"It needs one of {', '.join(names)}. " if len(names) > 1 else ""
        raise ConfigError(
            f"{where}: the entry has no field {names[0]}.",
            hint=f"{looked}The fields of the entry are {', '.join(map(escape, entry)) or 'none'}.",
        )
    return entry[found]


def seconds_of(where: str, entry: Mapping[str, Any], name: str, default: float, *, least: float = 0.0) -> float:
    """Return the seconds in the field ``name`` of an entry; ``default`` if the field is missing or null.

    Raises ConfigError if the value is not a number, or is below ``least``.
    """
    value = entry.get(name)
    if value is None:
        return default
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not least <= value <= sys.float_info.max:
        needed = "0 or more" if least == 0 else "above 0"
        raise ConfigError(f"{where}: {name} is {brief_repr(value)}; it must be a number of seconds, {needed}.")
    return float(value)


def _check_encoding(path: str, data: bytes) -> None:
    """Raise ConfigError if ``data``, the file ``path`` or its first line, is UTF-16 or UTF-32, as spreadsheets write.

    Both are recognised by a byte order mark, or by a zero byte in the first letter. Also raises ConfigError for a zero
    byte elsewhere.
    """
    mark = next((name for mark, name in _MARKS if data.startswith(mark)), "")
    zeros = mark or {0: "UTF-16BE", 1: "UTF-16LE"}.get(data.find(0), "")
    if zeros:
        named = f"is {mark}, not UTF-8" if mark else "contains zero bytes, so it is not UTF-8"
        raise ConfigError(
            f"{place(path, 1)}: the file {named}.",
            hint=f"Convert the file with iconv -f {zeros} -t UTF-8, or save it as UTF-8 in the spreadsheet.",
        )
    if 0 in data:
        line = data.count(b"\n", 0, data.find(0)) + 1
        raise ConfigError(
            f"{place(path, line)}: the line contains a zero byte.", hint="Remove it, or write the file again."
        )


def read_rows(path: str, needed: Sequence[str]) -> Iterator[Row]:
    """Yield each row of a CSV: its position (file and line number), and its values by column.

    Raises ConfigError if a column of ``needed`` is missing, or if a line has more or fewer values than the first line.
    """
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
                more = len(values) > len(columns)
                raise ConfigError(
                    f"{where}: the line has {len(values)} values, but the first line has {len(columns)} columns.",
                    hint='Put a value that has a comma in quotes: "yes, it does".' if more else ADD_COMMAS,
                )
            yield where, dict(zip(columns, values, strict=True))
    except csv.Error as error:
        raise ConfigError(f"{place(path, reader.line_num)}: {escape(str(error))}.") from None


def check_columns(path: str, columns: Sequence[str], needed: Sequence[str]) -> None:
    """Raise ConfigError if a column of ``needed`` is missing in ``columns``, or occurs twice in it."""
    for column in needed:
        if columns.count(column) != 1:
            why = f"has no column {column}" if column not in columns else f"has the column {column} twice"
            named = ", ".join(map(escape, columns)) or "none"
            raise ConfigError(f"{place(path, 1)}: the table {why}.", hint=f"Its columns are {named}.")
