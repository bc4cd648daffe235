"""Reads files and folders of models on the Hugging Face hub, at one commit: ``hf://org/repo[@revision][/path]``.

The hub is asked for the commit once, when a file or folder is opened; no request is needed if the revision is a commit.
After that, messages and records contain the commit. Files of this commit that are in the cache of huggingface_hub are
read from the cache.
"""

from __future__ import annotations

import os

from .base import File, Folder, Source
from .http.client import Address
from .http.ranges import open_http
from .hugging_face.client import hub_address, is_offline, not_cached_error
from .hugging_face.repository import FolderListing, Repository, is_folder, listed, offline_notes, pinned
from .local import LocalFile
from .uri import check_name

__all__ = ["SOURCE", "HubFolder", "notes_on_cache"]


class HubFolder(Folder):
    """A folder of a repository at one commit."""

    def __init__(self, repository: Repository, path: str = "") -> None:
        self.uri = repository.uri(path)
        self.name = (path or repository.name).rpartition("/")[2]
        self._repository = repository
        self._path = path
        self._found: FolderListing | None = None

    def names(self) -> list[str]:
        """Return the names of the files in the folder, sorted; raises SourceError if the hub does not list them."""
        return self._listed().names

    def folders(self) -> list[str]:
        """Return the names of the subfolders of the folder, sorted."""
        return self._listed().folders

    def file(self, name: str) -> File:
        """Open one file of the folder; raises FormatError if ``name`` points out of the folder."""
        check_name(self.uri, name)
        return _open_file(self._repository, f"{self._path}/{name}" if self._path else name)

    def inside(self, name: str) -> HubFolder:
        """Return a subfolder; raises FormatError if ``name`` points out of the folder."""
        check_name(self.uri, name)
        return HubFolder(self._repository, f"{self._path}/{name}" if self._path else name)

    def _listed(self) -> FolderListing:
        if self._found is None:
            self._found = listed(self._repository, self._path)
        return self._found


class _CachedFile(LocalFile):
    """A file of a commit in the cache of huggingface_hub; the commit identifies the content, so no mtime is needed."""

    def __init__(self, repository: Repository, path: str) -> None:
        super().__init__(repository.cached(path), repository.uri(path))
        self.mtime_ns = None
        self.validator = repository.revision
        self._around = HubFolder(repository, os.path.dirname(path))

    def folder(self) -> Folder:  # type: ignore[override]
        """Return the folder in the repository; the folder in the cache may have only some of its files."""
        return self._around


class _Hub:
    schemes = ("hf",)

    def open(self, uri: str) -> Source:
        found = hub_address(uri)
        repository, path = pinned(Repository(found.repository, found.revision or "main")), found.path
        if not path or is_folder(repository, path):
            return HubFolder(repository, path)
        return _open_file(repository, path)


def notes_on_cache(uri: str, *, every: bool = False) -> tuple[str, ...]:
    """Return a note on an opened ``hf://`` address, at a commit, if files of the commit may be missing in the cache.

    With ``every``, all files in a folder count, not only those of a model.
    """
    found = hub_address(uri)
    return offline_notes(Repository(found.repository, found.revision or "main"), found.path, every=every)


def _open_file(repository: Repository, path: str) -> File:
    """Open a file at a commit: from the cache if it is there, else in ranges from the hub."""
    if repository.cached(path):
        return _CachedFile(repository, path)
    if is_offline():
        raise not_cached_error(repository.query(path))
    from huggingface_hub import get_token, hf_hub_url

    token = get_token()
    secret = {"Authorization": f"Bearer {token}"} if token else {}
    url = hf_hub_url(repository.name, path, revision=repository.revision)
    around = HubFolder(repository, os.path.dirname(path))
    return open_http(
        Address(url, repository.uri(path), secret, repository.revision), os.path.basename(path), lambda: around
    )


SOURCE = _Hub()
