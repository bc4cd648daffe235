"""Reads files of a training run: JSON objects, and lines of JSON, of bounded size.

The files may be incomplete, and are not trusted.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from typing import IO, Any

from ...errors import FormatError, SourceError
from ...storage.small_files import open_file
from ...util.text import escape

__all__ = ["json_lines", "json_object"]

LARGEST = 64 << 20
"""A file that is read whole may have at most this many characters; files of real runs are far smaller."""
LINE = 1 << 20
"""The largest number of characters of a line; longer lines are skipped, because they are read in pieces."""


def json_lines(path: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON object in each line of a log; nothing if the file does not exist.

    Invalid lines are skipped: the last line may be incomplete if the run was killed or has not finished. Raises
    SourceError if the file cannot be read.
    """
    file = _opened(path)
    if file is None:
        return
    with file:
        while line := file.readline(LINE):
            row = _parsed(line)
            if isinstance(row, dict):
                yield row


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def json_object(path: str, name: str) -> Mapping[str, Any]:
    """Return the JSON object in the file ``name`` of the run's folder ``path``; {} if the file does not exist.

    NaN and infinities become None. Raises SourceError if the file cannot be read, FormatError if it is too large or is
    not a JSON object.
    """
    file = _opened(os.path.join(path, name))
    if file is None:
        return {}
    with file:
        content = file.read(LARGEST + 1)
    shown = escape(os.path.join(path, name))
    if len(content) > LARGEST:
        raise FormatError(f"{shown} is not a file of a training run: it has more than {LARGEST} characters.")
    try:
        data = json.loads(content, parse_constant=lambda _: None, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{shown} is not valid JSON: {error}.") from error
    if not isinstance(data, dict):
        raise FormatError(f"{shown} is not a file of a training run: it is not a JSON object.")
    return data


def _opened(path: str) -> IO[str] | None:
    """Open a text file; returns None if it does not exist.

    Raises SourceError if it cannot be read or is not a regular file, because opening a pipe would block.
    """
    try:
        return io.TextIOWrapper(open_file(path), encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SourceError(f"{escape(path)} cannot be read: {error.strerror or error}.") from error


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None
