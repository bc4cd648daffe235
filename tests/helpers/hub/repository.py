"""What a hub stores: repositories with commits and branches, of files that lie in memory or on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

__all__ = ["Content", "Repository", "Stored", "git_blob_sha1"]

Content = bytes | Path
LFS_FROM = 1000
"""Files of this many bytes are under LFS, if nothing else is said."""


def git_blob_sha1(data: bytes) -> str:
    """What git calls a file (https://git-scm.com/book/en/v2/Git-Internals-Git-Objects)."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class Stored:
    """One file: bytes, or a file on disk that may be large and sparse; ``etag`` None says what its content does."""

    content: Content
    lfs: bool = False
    said_etag: str | None = None

    @cached_property
    def size(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    @cached_property
    def sha256(self) -> str:
        if isinstance(self.content, bytes):
            return hashlib.sha256(self.content).hexdigest()
        with self.content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @cached_property
    def oid(self) -> str:
        """What git stores: the file itself, or the pointer to where LFS has it (git-lfs, docs/spec.md)."""
        return git_blob_sha1(self.pointer if self.lfs else self.read(0, self.size))

    @property
    def pointer(self) -> bytes:
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n"
        return text.encode()

    @property
    def etag(self) -> str:
        """The hub's: SHA-256 of what is under LFS, git's SHA-1 of all else."""
        return self.said_etag or f'"{self.sha256 if self.lfs else self.oid}"'

    def read(self, offset: int, nbytes: int) -> bytes:
        if isinstance(self.content, bytes):
            return self.content[offset : offset + nbytes]
        with self.content.open("rb") as file:
            file.seek(offset)
            return file.read(nbytes)

    def listed(self, path: str) -> dict[str, object]:
        """What the hub's listing says of it."""
        found: dict[str, object] = {"type": "file", "oid": self.oid, "size": self.size, "path": path}
        if self.lfs:
            found["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": len(self.pointer)}
        return found


@dataclass
class Repository:
    """A repository. A ``token`` makes it private; ``gated`` one says so, whoever asks; ``read_only`` takes no commit.

    With ``cdn`` what is under LFS is redirected to that address, and lies there by its SHA-256.
    """

    name: str
    token: str = ""
    gated: bool = False
    cdn: str = ""
    read_only: bool = False
    commits: dict[str, dict[str, Stored]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, Content], *, branch: str = "main", lfs: bool | None = None) -> str:
        """Add a commit of exactly these files to a branch; returns its name, the same for the same history."""
        stored = {name: Stored(content, _is_lfs(content) if lfs is None else lfs) for name, content in files.items()}
        return self.add(stored, branch)

    def add(self, stored: dict[str, Stored], branch: str) -> str:
        """Add a commit of exactly these files to a branch; returns its name."""
        told = [self.branches.get(branch, ""), *(f"{name} {file.oid}" for name, file in sorted(stored.items()))]
        found = hashlib.sha1("\n".join(told).encode()).hexdigest()
        self.commits[found] = stored
        self.branches[branch] = found
        return found

    @property
    def main(self) -> str:
        return self.branches["main"]

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch or a commit's name means."""
        found = self.branches.get(revision, revision)
        return found if found in self.commits else None


def _is_lfs(content: Content) -> bool:
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    return size >= LFS_FROM
