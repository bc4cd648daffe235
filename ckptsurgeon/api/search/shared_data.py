"""Compares the data of the evaluation command with those of the test command: a fair test uses only unseen data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from ...storage.small_files import read_file
from ...util.text import count, escape, listing
from .evaluation import MODEL, Command

__all__ = ["notes_on_data"]

MOST_BYTES = 64 << 20
"""Larger files are compared by their path only."""
SHORT = 8
"""Lines of fewer bytes, such as brackets and headers, are not compared."""


def notes_on_data(search: Command, test: Command | None) -> list[str]:
    """Return notes on data that the test command shares with the evaluation command, or a note that there is no test.

    The data of a command are the files among its words, except for the program and its script. The first file is the
    script if its name ends with, for example, ``.py``. Other files that a command reads are not known.
    """
    if test is None:
        return [
            "the best score was measured on the same data that was used to choose the best model, so it is too "
            "optimistic; use --test to evaluate the output on other data"
        ]
    if search.words == test.words:
        return [
            "--test and --evaluate are the same command: the test score is measured on the data of the search, so it "
            "is too optimistic"
        ]
    own, other = _data(search), _data(test)
    shared = [word for word in other if any(_same(word, one) for one in own)]
    if shared:
        return [
            f"--evaluate and --test both read {listing(shared, where='')}: if they use the same rows, the test score "
            "is too optimistic"
        ]
    return list(_overlaps(own, other))


def _data(command: Command) -> list[str]:
    files = [word for word in command.words[1:] if MODEL not in word and os.path.isfile(word)]
    return files[1:] if files and files[0] == _script(command) else files


def _script(command: Command) -> str:
    """Return the first word after the program with the suffix of a script, such as ``.py``; '' if there is none."""
    scripts = (word for word in command.words[1:] if word.endswith((".py", ".sh", ".pl", ".rb", ".js", ".R")))
    return next(scripts, "")


def _same(one: str, other: str) -> bool:
    with suppress(OSError):
        return os.path.samefile(one, other)
    return False


def _overlaps(own: list[str], other: list[str]) -> Iterator[str]:
    """Yield notes on files of both commands with the same bytes, and on lines that occur in files of both.

    ``own`` are the paths of the files of the evaluation command, ``other`` those of the test command.
    """
    seen: dict[bytes, str] = {}
    whole: dict[bytes, str] = {}
    heads: set[bytes] = set()
    for path in own:
        data = _bytes(path)
        if data:
            whole[data] = path
            seen.update(dict.fromkeys(_lines(data), path))
            heads.update(_lines(data)[:1])
    for path in other:
        data = _bytes(path)
        if not data:
            continue
        if data in whole:
            yield f"{escape(path)} of --test has the same bytes as {escape(whole[data])} of --evaluate"
            continue
        first, *rest = _lines(data) or [b""]
        lines = {*rest} if first in heads else {first, *rest}  # an equal first line has the names of the columns
        both = [line for line in lines if line in seen]
        if both:
            yield (
                f"{count(len(both), 'line')} of {len(lines)} in {escape(path)} of --test "
                f"{'is' if len(both) == 1 else 'are'} also in {escape(seen[both[0]])} of --evaluate: the test score "
                "is too optimistic"
            )


def _bytes(path: str) -> bytes:
    with suppress(OSError):
        return read_file(path, MOST_BYTES)
    return b""


def _lines(data: bytes) -> list[bytes]:
    return [line.strip() for line in data.splitlines() if len(line.strip()) >= SHORT] if b"\0" not in data else []
