"""What was fetched: where it lies, which commit it is, and what its bytes were held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...util.brief import Brief
from ...util.text import escape
from .blob import Blob

__all__ = ["Fetched", "FetchedFile", "fetched_files", "notes_of"]


@dataclass(frozen=True, repr=False)
class FetchedFile(Brief):
    """One file, as it lies on this machine.

    ``name`` is its path in the repository or folder; ``checked`` what its bytes were held against: "sha256" or "git" (
    the digests of the hub), "asked" (the SHA-256 that was given), or "" for nothing but the length.
    """

    name: str
    path: str
    size: int
    sha256: str
    checked: str


@dataclass(frozen=True, repr=False)
class Fetched(Brief):
    """What was fetched; as a path it is that of the file, or of the folder.

    ``uri`` is without credentials, and names the ``commit`` where there is one ('' if not): it is the same for ever.
    """

    uri: str
    path: str
    commit: str
    files: tuple[FetchedFile, ...]
    notes: tuple[str, ...] = ()

    def __fspath__(self) -> str:
        return self.path

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "kind": "ckpt.fetched",
            "version": 1,
            "uri": self.uri,
            "path": self.path,
            "commit": self.commit or None,
            "files": [
                {
                    "name": one.name,
                    "path": one.path,
                    "size": one.size,
                    "sha256": one.sha256,
                    "checked": one.checked or None,
                }
                for one in self.files
            ],
            "notes": list(self.notes),
        }


def fetched_files(blobs: Mapping[str, Blob], paths: Mapping[str, str]) -> tuple[FetchedFile, ...]:
    """Return what is told of files by name that lie at ``paths``."""
    return tuple(
        FetchedFile(name, paths[name], blob.size, blob.sha256, blob.checked) for name, blob in blobs.items()
    )  # fmt: skip


def notes_of(blobs: Mapping[str, Blob]) -> tuple[str, ...]:
    """Return what is to be said of files of a hub: which came twice, and which nobody vouches for."""
    again = [
        f"{escape(name)} came again: its bytes were not what the hub says" for name, blob in blobs.items() if blob.again
    ]
    loose = [
        f"the hub has no digest of {escape(name)}: only its length was checked"
        for name, blob in blobs.items()
        if not blob.checked
    ]
    return (*again, *loose)
