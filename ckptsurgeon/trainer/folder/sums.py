"""What the files of a checkpoint held when they were written, so that a bit that flipped since is noticed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence

from ...errors import FormatError, SourceError
from ...storage.small_files import open_file, read_file
from ...util.text import escape

__all__ = ["CHECKSUMS", "checksums_of", "verify_checksums"]

CHECKSUMS = "sums.json"


def checksums_of(data: Mapping[str, bytes]) -> bytes:
    """Return the SHA-256 of some files as a file of its own."""
    made = {name: hashlib.sha256(content).hexdigest() for name, content in data.items()}
    return (json.dumps({"sha256": made}, indent=2) + "\n").encode()


def checksums_of_folder(folder: str) -> bytes:
    """Return the SHA-256 of all files under a folder as a file of its own."""
    made = {}
    for path, _, names in os.walk(folder):
        for name in names:
            with open_file(os.path.join(path, name)) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            made[os.path.relpath(os.path.join(path, name), folder)] = digest
    return (json.dumps({"sha256": made}, indent=2) + "\n").encode()


def verify_checksums(folder: str, *, others: Sequence[str] = ()) -> None:
    """Raise FormatError for a checkpoint with a file that is not what was written; ``others`` are whole ones.

    One without sums, of an earlier version, is taken as it is.
    """
    wanted = _read(folder)
    for name, sha256 in wanted.items():
        path = os.path.join(folder, name)
        try:
            with open_file(path) as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise SourceError(f"{escape(path)} cannot be read: {error.strerror}.") from error
        if found != sha256:
            raise damage_error(path, folder, others)


def damage_error(path: str, folder: str, others: Sequence[str], why: str = "it is not what was written") -> FormatError:
    """Return the error that a file of a checkpoint is damaged, and how to go on without it."""
    if not others:
        return FormatError(f"{escape(path)} is damaged: {why}.", hint="No other checkpoint of the run is whole.")
    aside = f"{os.path.dirname(os.path.dirname(folder))}.damaged"
    return FormatError(
        f"{escape(path)} is damaged: {why}.",
        hint=f"{escape(others[-1])} is whole: mv {escape(folder)} {escape(aside)}, and --resume goes on from there.",
    )


def _read(folder: str) -> Mapping[str, str]:
    path = os.path.join(folder, CHECKSUMS)
    if not os.path.exists(path):
        return {}
    try:
        found = json.loads(read_file(path))["sha256"]
        return {str(name): str(value) for name, value in found.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise FormatError(f"{escape(path)} is damaged: it holds no sums.") from error
