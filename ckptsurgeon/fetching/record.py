"""What a collected file was collected from, kept beside it: without this a stale file passes for the new one."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass

from ..engine import write_text
from ..errors import PlanError
from ..text import escape
from .origin import Origin

__all__ = [
    "Record", "check_unchanged_since", "forget_changed", "is_unchanged", "read_record", "record_of", "remove_record",
    "sha256_of", "write_record",
]  # fmt: skip

_MOST = 1 << 16


@dataclass(frozen=True)
class Record:
    """One collected file: where it came from, and what it was when it was put there.

    ``mark`` tells its origin from others (``Origin.mark``); ``stamp`` is size and time of a local file that was copied;
    ``link`` where a symbolic link points. Nothing of it is secret.
    """

    kind: str
    source: str
    mark: str
    commit: str = ""
    stamp: str = ""
    link: str = ""
    size: int = 0
    mtime_ns: int = 0
    sha256: str = ""


def record_of(origin: Origin, path: str, *, commit: str = "", stamp: str = "", sha256: str = "") -> Record:
    """Return the record of the file at ``path``, as it is now."""
    link = os.readlink(path) if os.path.islink(path) else ""
    found = os.stat(path)
    return Record(
        origin.kind, origin.shown, origin.mark, commit, stamp, link, found.st_size, found.st_mtime_ns,
        "" if link else sha256 or sha256_of(path),
    )  # fmt: skip


def _beside(path: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.collected.json")


def read_record(path: str) -> Record | None:
    """Return the record beside a collected file, None where there is none that can be understood."""
    with suppress(OSError, ValueError, TypeError, RecursionError), open(_beside(path), "rb") as file:
        record = Record(**json.loads(file.read(_MOST)))
        if all(type(getattr(record, name)) is type(value) for name, value in asdict(_EMPTY).items()):
            return record
    return None


_EMPTY = Record("", "", "")


def write_record(path: str, record: Record) -> None:
    """Put the record beside the file; raises OutputError."""
    write_text(_beside(path), f"{json.dumps(asdict(record), indent=1)}\n", inputs=(), force=True)


def remove_record(path: str) -> None:
    """Remove the record of a file that now speaks for itself."""
    with suppress(FileNotFoundError):
        os.unlink(_beside(path))


def forget_changed(path: str) -> None:
    """Remove a record that speaks of another file than lies there now: who names this one wants it as it is."""
    record = read_record(path)
    if record is not None and not is_unchanged(path, record):
        remove_record(path)


def sha256_of(path: str) -> str:
    """Return the SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_unchanged(path: str, record: Record) -> bool:
    """Whether a file is what was put there: by size and time, or by its bytes where only the time differs."""
    if record.link or os.path.islink(path):
        return bool(record.link) and os.path.islink(path) and os.readlink(path) == record.link and os.path.exists(path)
    try:
        found = os.stat(path)
    except OSError:
        return False
    if found.st_size != record.size:
        return False
    return found.st_mtime_ns == record.mtime_ns or sha256_of(path) == record.sha256


def check_unchanged_since(path: str) -> None:
    """Raise PlanError where a collected file is no longer what was collected."""
    record = read_record(path)
    if record is not None and not is_unchanged(path, record):
        raise PlanError(
            f"{escape(path)} has changed since it was collected from {escape(record.source)}.",
            hint="Collect it again, with FetchConfig(overwrite=True), or name the file itself in paths.",
        )
