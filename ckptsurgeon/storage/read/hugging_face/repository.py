"""A repository of the Hugging Face hub at a commit: what is in it, and what the client's cache has of it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from .client import HubQuery, asking, commit_of_revision, is_offline, no_file, not_here

__all__ = ["Listed", "Repository", "is_folder", "listed", "pinned"]


@dataclass(frozen=True)
class Repository:
    """A repository at a revision: a name at first, then a commit."""

    name: str
    revision: str

    def uri(self, path: str = "") -> str:
        """Return the address of it, or of something in it."""
        return f"hf://{self.name}@{self.revision}" + (f"/{path}" if path else "")

    def query(self, path: str = "") -> HubQuery:
        """Return what is asked of the hub for it, or for something in it."""
        return HubQuery(self.name, self.revision, path)

    @property
    def snapshot(self) -> str:
        """The folder of the client's cache in which the files of this commit are."""
        from huggingface_hub import constants

        folder = f"models--{self.name.replace('/', '--')}"
        return os.path.join(constants.HF_HUB_CACHE, folder, "snapshots", self.revision)

    def cached(self, path: str) -> str:
        """Return where the cache has a file of this commit, '' where it has not."""
        found = os.path.join(self.snapshot, path)
        return found if os.path.isfile(found) else ""


class Listed(NamedTuple):
    """What is in a folder, by name, sorted."""

    names: list[str]
    folders: list[str]


def pinned(repository: Repository) -> Repository:
    """Return the repository at the commit that its revision means now; offline, that it meant when last asked."""
    return replace(repository, revision=commit_of_revision(repository.query()))


def is_folder(repository: Repository, path: str) -> bool:
    """Whether a path is a folder; raises SourceError where it is nothing."""
    if repository.cached(path):
        return False
    if is_offline():
        return os.path.isdir(os.path.join(repository.snapshot, path))
    paths = _cached_tree(repository)
    if paths is not None:
        if path in paths:
            return False
        if not any(one.startswith(f"{path}/") for one in paths):
            raise no_file(repository.query(path))
        return True
    from huggingface_hub import HfApi, RepoFolder

    with asking(repository.query(path)):
        found = HfApi().get_paths_info(repository.name, [path], revision=repository.revision)
    if not found:
        raise no_file(repository.query(path))
    return isinstance(found[0], RepoFolder)


def listed(repository: Repository, path: str) -> Listed:
    """Return what is in a folder: as the hub says, or said when all of it was fetched; offline what the cache has.

    Raises SourceError where nobody says.
    """
    if is_offline():
        return _on_disk(repository, path)
    paths = _cached_tree(repository)
    if paths is not None:
        return _level(paths, path)
    from huggingface_hub import HfApi, RepoFolder

    with asking(repository.query(path)):
        rows = list(HfApi().list_repo_tree(repository.name, path or None, revision=repository.revision))
    names = [row.path.rpartition("/")[2] for row in rows if not isinstance(row, RepoFolder)]
    folders = [row.path.rpartition("/")[2] for row in rows if isinstance(row, RepoFolder)]
    return Listed(sorted(names), sorted(folders))


def _cached_tree(repository: Repository) -> list[str] | None:
    """Return the paths of a commit, as the client keeps them of a repository that it fetched whole; else None."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return [one.path for one in get_cached_repo_tree(repository.name, revision=repository.revision)]
    except (CachedRepoTreeNotFoundError, OSError, ValueError):
        return None


def _level(paths: Iterable[str], folder: str) -> Listed:
    """Return what of some paths is directly in a folder, and the folders there."""
    begin = f"{folder}/" if folder else ""
    inside = [path.removeprefix(begin).partition("/") for path in paths if path.startswith(begin)]
    return Listed(
        sorted(name for name, _, rest in inside if not rest), sorted({name for name, _, rest in inside if rest})
    )


def _on_disk(repository: Repository, path: str) -> Listed:
    """Return what the cache has in a folder; raises SourceError where there is none."""
    try:
        with os.scandir(os.path.join(repository.snapshot, path)) as entries:
            found = [(entry.name, entry.is_dir()) for entry in entries]
    except OSError:
        raise not_here(repository.query(path)) from None
    return Listed(sorted(n for n, folder in found if not folder), sorted(n for n, folder in found if folder))
