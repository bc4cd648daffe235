"""Compares the data of the search with the data of the final test, since a fair test uses only unseen data."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ...destinations._document import Document
from ...storage.small_files import read_file
from ...util.text import count, escape, listing
from .evaluation import MODEL, Command

__all__ = ["notes_on_data", "notes_on_splits"]

MOST_BYTES = 64 << 20
"""Files with more bytes than this are compared by their path only."""
SHORT = 8
"""Lines of fewer bytes, such as brackets and headers, are not compared."""


def notes_on_data(search: Command, test: Command | None) -> list[str]:
    """Return notes on data that the test command shares with the evaluation command, or a note that there is no test.

    The data of a command are the files among its words, except for the program and its script. The first file is the
    script if its name ends with, for example, ``.py``. Other files that a command reads are not known.
    """
    if test is None:
        return [
            "the best score is measured on the same data that is used to choose the best model, so it is too "
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
    return list(_overlaps(_Data("--evaluate", own), _Data("--test", other)))


def notes_on_splits(document: Document, test: Command | None, *, has_test: bool | None = None) -> list[str]:
    """Return notes on data that the splits dev and test of a configuration of ``ckpt train`` share.

    ``test`` is a command that is used in place of the split test. ``has_test`` says whether there is a split test; if
    it is None, ``document`` (the configuration) shows this. Data that the code of a task reads are not known.
    """
    train = document.content.get("train") if isinstance(document.content, dict) else None
    data = train.get("data") if isinstance(train, dict) else None
    splits = data if isinstance(data, dict) else {}
    dev, other = (_sources(splits.get(name)) for name in ("dev", "test"))
    own = _Data("train.data.dev", _files(document, dev))
    if test is not None:
        return list(_overlaps(own, _Data("--test", _data(test))))
    if not (bool(other) if has_test is None else has_test):
        return [
            "the best score is measured on the same data that is used to choose the best model, so it is too "
            f"optimistic; give other data in train.data.test of {escape(document.name)}, or use --test"
        ]
    if any(one in dev for one in other):
        return [
            "train.data.dev and train.data.test have the same data: the test score is measured on the data of the "
            "search, so it is too optimistic"
        ]
    return list(_overlaps(own, _Data("train.data.test", _files(document, other))))


def _sources(named: Any) -> list[Any]:
    return list(named) if isinstance(named, list) else [] if named is None else [named]


def _files(document: Document, named: Sequence[Any]) -> list[str]:
    paths = [document.resolve(one) for one in named if isinstance(one, str)]
    return [path for path in paths if os.path.isfile(path)]


@dataclass(frozen=True)
class _Data:
    """The files of data in an option, or in a field of a configuration; ``name`` is the option or the field."""

    name: str
    files: Sequence[str]


def _data(command: Command) -> list[str]:
    files = [word for word in command.words[1:] if MODEL not in word and os.path.isfile(word)]
    return files[1:] if files and files[0] == _script(command) else files


def _script(command: Command) -> str:
    """Return the script of a command: the first word after the program that ends in ``.py`` or the like; else ''."""
    scripts = (word for word in command.words[1:] if word.endswith((".py", ".sh", ".pl", ".rb", ".js", ".R")))
    return next(scripts, "")


def _same(one: str, other: str) -> bool:
    with suppress(OSError):
        return os.path.samefile(one, other)
    return False


def _overlaps(own: _Data, other: _Data) -> Iterator[str]:
    """Yield notes on files with the same bytes, and on lines that occur in files of both.

    ``own`` are the data with which models are chosen, and ``other`` are the data of the test.
    """
    seen: dict[bytes, str] = {}
    whole: dict[bytes, str] = {}
    heads: set[bytes] = set()
    for path in own.files:
        data = _bytes(path)
        if data:
            whole[data] = path
            seen.update(dict.fromkeys(_lines(data), path))
            heads.update(_lines(data)[:1])
    for path in other.files:
        data = _bytes(path)
        if not data:
            continue
        if data in whole:
            yield (f"{escape(path)} of {other.name} has the same bytes as {escape(whole[data])} of {own.name}")
            continue
        first, *rest = _lines(data) or [b""]
        lines = {*rest} if first in heads else {first, *rest}  # an equal first line has the names of the columns
        both = [line for line in lines if line in seen]
        if both:
            yield (
                f"{count(len(both), 'line')} of {len(lines)} in {escape(path)} of {other.name} "
                f"{'is' if len(both) == 1 else 'are'} also in {escape(seen[both[0]])} of {own.name}: the test score "
                "is too optimistic"
            )


def _bytes(path: str) -> bytes:
    with suppress(OSError):
        return read_file(path, MOST_BYTES)
    return b""


def _lines(data: bytes) -> list[bytes]:
    return [line.strip() for line in data.splitlines() if len(line.strip()) >= SHORT] if b"\0" not in data else []
