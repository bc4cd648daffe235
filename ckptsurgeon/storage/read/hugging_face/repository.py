"""Lists the files of a repository of the Hugging Face hub at a commit, from the hub or from the cache."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from ....util.text import escape, listing
from .client import HubQuery, commit_of_revision, hub_errors, is_offline, no_file_error, not_cached_error

__all__ = ["FolderListing", "Repository", "is_folder", "listed", "offline_notes", "pinned"]


@dataclass(frozen=True)
class Repository:
    """A repository at a revision (branch, tag or commit); the function ``pinned`` resolves the revision to a commit."""

    name: str
    revision: str

    def uri(self, path: str = "") -> str:
        """Return the URI of the repository, or of a path in it."""
        return f"hf://{self.name}@{self.revision}" + (f"/{path}" if path else "")

    def query(self, path: str = "") -> HubQuery:
        """Return the hub query for the repository, or for a path in it."""
        return HubQuery(self.name, self.revision, path)

    @property
    def snapshot(self) -> str:
        """The folder in the cache of huggingface_hub that has the files of this commit."""
        from huggingface_hub import constants

        folder = f"models--{self.name.replace('/', '--')}"
        return os.path.join(constants.HF_HUB_CACHE, folder, "snapshots", self.revision)

    def cached(self, path: str) -> str:
        """Return the path of a file of this commit in the cache, '' if it is not there."""
        found = os.path.join(self.snapshot, path)
        return found if os.path.isfile(found) else ""


class FolderListing(NamedTuple):
    """The names of the files and folders in a folder, sorted."""

    names: list[str]
    folders: list[str]


def pinned(repository: Repository) -> Repository:
    """Return the repository with the commit of its revision; offline, this is the commit that is in the cache."""
    return replace(repository, revision=commit_of_revision(repository.query()))


def is_folder(repository: Repository, path: str) -> bool:
    """Return whether a path is a folder, offline one in the cache; raises SourceError if the hub does not have it."""
    if repository.cached(path):
        return False
    if is_offline():
        return os.path.isdir(os.path.join(repository.snapshot, path))
    paths = _cached_tree(repository)
    if paths is not None:
        if path in paths:
            return False
        if not any(one.startswith(f"{path}/") for one in paths):
            raise no_file_error(repository.query(path))
        return True
    from huggingface_hub import HfApi, RepoFolder

    with hub_errors(repository.query(path)):
        found = HfApi().get_paths_info(repository.name, [path], revision=repository.revision)
    if not found:
        raise no_file_error(repository.query(path))
    return isinstance(found[0], RepoFolder)


def listed(repository: Repository, path: str) -> FolderListing:
    """Return the contents of a folder: from the hub or the listing in the cache; offline, from the files in the cache.

    Raises SourceError if none of these has the folder.
    """
    if is_offline():
        return _on_disk(repository, path)
    paths = _cached_tree(repository)
    if paths is not None:
        return _level(paths, path)
    from huggingface_hub import HfApi, RepoFolder

    with hub_errors(repository.query(path)):
        rows = list(HfApi().list_repo_tree(repository.name, path or None, revision=repository.revision))
    names = [row.path.rpartition("/")[2] for row in rows if not isinstance(row, RepoFolder)]
    folders = [row.path.rpartition("/")[2] for row in rows if isinstance(row, RepoFolder)]
    return FolderListing(sorted(names), sorted(folders))


MODEL_FILES = (".bpe", ".jinja", ".json", ".model", ".safetensors", ".spm", ".tiktoken", ".txt")
"""Suffixes of files that are read with the weights in their folder."""


def offline_notes(repository: Repository, path: str, *, every: bool = False) -> tuple[str, ...]:
    """Return a note if the hub must not be asked, and files of a model may be missing in the cache.

    ``path`` is the file or folder that was opened. Only files in that folder count, and no pages, images and the like;
    with ``every``, all files in the folder and its subfolders count.
    """
    if not is_offline():
        return ()
    folder = os.path.dirname(path) if repository.cached(path) else path
    at, paths = escape(repository.uri(folder)), _cached_tree(repository)
    if paths is None:
        return (f"HF_HUB_OFFLINE is set: of {at} only the files in the cache are read, and others may be missing",)
    if every:
        beside = [one for one in paths if one.startswith(f"{folder}/".lstrip("/"))]
    else:
        beside = [one for one in paths if os.path.dirname(one) == folder and one.endswith(MODEL_FILES)]
    gone = [one for one in beside if not repository.cached(one)]
    return (f"HF_HUB_OFFLINE is set, and {listing(gone)} of {at} cannot be read: not in the cache",) if gone else ()


def _cached_tree(repository: Repository) -> list[str] | None:
    """Return the paths of a commit from the listing in the cache of huggingface_hub; None if there is no listing."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return [one.path for one in get_cached_repo_tree(repository.name, revision=repository.revision)]
    except (CachedRepoTreeNotFoundError, OSError, ValueError):
        return None


def _level(paths: Iterable[str], folder: str) -> FolderListing:
    """Return the files that are directly in a folder, and its subfolders; ``paths`` are the paths of all files."""
    begin = f"{folder}/" if folder else ""
    inside = [path.removeprefix(begin).partition("/") for path in paths if path.startswith(begin)]
    return FolderListing(
        sorted(name for name, _, rest in inside if not rest), sorted({name for name, _, rest in inside if rest})
    )


def _on_disk(repository: Repository, path: str) -> FolderListing:
    """Return those files and subfolders of a folder that are in the cache; raises SourceError if none are."""
    try:
        with os.scandir(os.path.join(repository.snapshot, path)) as entries:
            found = [(entry.name, entry.is_dir()) for entry in entries]
    except OSError:
        raise not_cached_error(repository.query(path)) from None
    return FolderListing(sorted(n for n, folder in found if not folder), sorted(n for n, folder in found if folder))
