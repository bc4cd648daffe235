"""A repository of the Hugging Face hub: the commit that a revision means, what is in it, what the client's cache has.

The hub is asked through its own client, whose errors become ours.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..errors import SourceError
from ..text import escape
from .uri import without_queries

__all__ = ["Listed", "Repository", "hub_patience", "is_folder", "is_offline", "listed", "not_cached", "pinned"]

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Repository:
    """A repository at a revision: a name at first, then a commit."""

    name: str
    revision: str

    def uri(self, path: str = "") -> str:
        """Return the address of it, or of something in it."""
        return f"hf://{self.name}@{self.revision}" + (f"/{path}" if path else "")

    @property
    def is_pinned(self) -> bool:
        """Whether its revision is a commit, so that it is the same for ever."""
        return _COMMIT.fullmatch(self.revision) is not None

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


def is_offline() -> bool:
    """Whether the hub must not be asked."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def pinned(repository: Repository) -> Repository:
    """Return the repository at the commit that its revision means now; offline, that it meant when last asked."""
    if repository.is_pinned:
        return repository
    if is_offline():
        ref = os.path.join(os.path.dirname(os.path.dirname(repository.snapshot)), "refs", repository.revision)
        try:
            with open(ref, encoding="ascii") as file:
                return replace(repository, revision=file.read(40))
        except (OSError, ValueError):
            raise not_cached(repository.uri()) from None
    from huggingface_hub import HfApi

    with _errors(repository.uri()):
        sha = HfApi().model_info(repository.name, revision=repository.revision).sha
    if sha is None or not _COMMIT.fullmatch(sha):
        raise SourceError(f"{escape(repository.uri())}: the hub does not say which commit that is.")
    return replace(repository, revision=sha)


def is_folder(repository: Repository, path: str) -> bool:
    """Whether a path is a folder; raises SourceError where it is nothing."""
    if repository.cached(path):
        return False
    if is_offline():
        return os.path.isdir(os.path.join(repository.snapshot, path))
    from huggingface_hub import HfApi, RepoFolder

    with _errors(repository.uri(path)):
        found = HfApi().get_paths_info(repository.name, [path], revision=repository.revision)
    if not found:
        raise SourceError(f"{escape(repository.uri())} has no file {escape(path)}.")
    return isinstance(found[0], RepoFolder)


def listed(repository: Repository, path: str) -> Listed:
    """Return what the hub has in a folder; raises SourceError where it does not say."""
    from huggingface_hub import HfApi, RepoFolder

    with _errors(repository.uri(path)):
        rows = list(HfApi().list_repo_tree(repository.name, path or None, revision=repository.revision))
    names = [row.path.rpartition("/")[2] for row in rows if not isinstance(row, RepoFolder)]
    folders = [row.path.rpartition("/")[2] for row in rows if isinstance(row, RepoFolder)]
    return Listed(sorted(names), sorted(folders))


def not_cached(uri: str) -> SourceError:
    """Return the error for what is not in the cache, where nothing else may be asked."""
    return SourceError(
        f"{escape(uri)} is not in the cache of the hub, and HF_HUB_OFFLINE is set.", hint="Unset it to ask the hub."
    )


@contextmanager
def _errors(uri: str) -> Iterator[None]:
    """Turn what the hub's client raises into a SourceError that says what to do."""
    from huggingface_hub import errors

    shown = escape(uri)
    try:
        with hub_patience():
            yield
    except errors.GatedRepoError:
        raise SourceError(
            f"{shown}: its owner asks who reads it.", hint="Accept its terms, then hf auth login."
        ) from None
    except errors.RevisionNotFoundError:
        raise SourceError(f"{shown}: the repository has no such revision.") from None
    except errors.RepositoryNotFoundError:
        raise SourceError(
            f"{shown}: there is no such repository on the hub, or it is private.",
            hint="A private one needs hf auth login.",
        ) from None
    except Exception as error:  # the client's own, its HTTP library's, of whatever version
        raise SourceError(
            f"{shown} cannot be had from the hub: {escape(without_queries(str(error).strip()), 300)}"
        ) from None


@contextmanager
def hub_patience() -> Iterator[None]:
    """Give up a hub that stops in the middle of a listing: the client waits for ever there, unlike for files."""
    from huggingface_hub import constants, get_session

    def limit(request: Any) -> None:
        found = request.extensions.get("timeout") or dict.fromkeys(("connect", "read", "write", "pool"))
        request.extensions["timeout"] = {what: s or constants.HF_HUB_DOWNLOAD_TIMEOUT for what, s in found.items()}

    hooks = get_session().event_hooks["request"]
    hooks.append(limit)
    try:
        yield
    finally:
        hooks.remove(limit)
