"""``hf://org/repo[@revision][/path]``: files and folders of models on the Hugging Face hub, at one commit.

The commit is asked for once, when something is opened, and is what messages and records name from then on. What the
client's cache has of that commit is read from there, without a request where the revision is a commit.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..errors import ConfigError, SourceError
from ..text import escape
from ._http import Address
from ._http_ranges import open_http
from ._names import check_name
from .base import File, Folder, Source
from .local import LocalFile, LocalFolder

__all__ = ["SOURCE", "HubFolder"]

_URI = re.compile(
    r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/(?:pr|convert)/[\w.-]+|[^/@]+))?(?:/(?P<path>.*))?", re.ASCII
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_OTHER_KINDS = ("datasets", "spaces", "buckets")


@dataclass(frozen=True)
class _Repository:
    """A repository at a revision: a name at first, then a commit."""

    name: str
    revision: str

    def uri(self, path: str = "") -> str:
        return f"hf://{self.name}@{self.revision}" + (f"/{path}" if path else "")

    @property
    def is_pinned(self) -> bool:
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


class _Listed(NamedTuple):
    names: list[str]
    folders: list[str]


class HubFolder:
    """A folder of a repository at one commit."""

    def __init__(self, repository: _Repository, path: str = "") -> None:
        self.uri = repository.uri(path)
        self.name = (path or repository.name).rpartition("/")[2]
        self._repository = repository
        self._path = path
        self._found: _Listed | None = None

    def names(self) -> list[str]:
        """Return the names of the files in it, sorted; raises SourceError where the hub does not say."""
        return self._listed().names

    def folders(self) -> list[str]:
        """Return the names of the folders in it, sorted."""
        return self._listed().folders

    def file(self, name: str) -> File:
        """Open one file of the folder; raises FormatError when ``name`` points out of it."""
        check_name(self.uri, name)
        return _open_file(self._repository, f"{self._path}/{name}" if self._path else name)

    def _listed(self) -> _Listed:
        if self._found is None:
            self._found = _offline_list(self) if _is_offline() else _list(self._repository, self._path)
        return self._found

    def cached(self) -> LocalFolder:
        """Return what the cache has of it."""
        return LocalFolder(os.path.join(self._repository.snapshot, self._path), self.uri)


class _CachedFile(LocalFile):
    """A file of a commit in the client's cache, which tells it from all others: its time says nothing."""

    def __init__(self, repository: _Repository, path: str) -> None:
        super().__init__(repository.cached(path), repository.uri(path))
        self.mtime_ns = None
        self._around = HubFolder(repository, os.path.dirname(path))

    def folder(self) -> Folder:  # type: ignore[override]
        """Return the folder of the repository, of which the cache may have a part."""
        return self._around


class _Hub:
    schemes = ("hf",)

    def open(self, uri: str) -> Source:
        found = _URI.fullmatch(uri)
        if found is None or found["repo"].partition("/")[0] in _OTHER_KINDS:
            raise ConfigError(
                f"{escape(uri)} is no address of a model on the hub.", hint="Write hf://org/repo[@revision][/path]."
            )
        path = (found["path"] or "").strip("/")
        if ".." in path.split("/"):
            raise ConfigError(f"{escape(uri)} points out of its repository.")
        repository = _pinned(_Repository(found["repo"], found["revision"] or "main"))
        if not path or _is_folder(repository, path):
            return HubFolder(repository, path)
        return _open_file(repository, path)


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _pinned(repository: _Repository) -> _Repository:
    """Return the repository at the commit that its revision means now; offline, that it meant when last asked."""
    if repository.is_pinned:
        return repository
    if _is_offline():
        ref = os.path.join(os.path.dirname(os.path.dirname(repository.snapshot)), "refs", repository.revision)
        try:
            with open(ref, encoding="ascii") as file:
                return replace(repository, revision=file.read(40))
        except (OSError, ValueError):
            raise _not_cached(repository.uri()) from None
    from huggingface_hub import HfApi

    with _errors(repository.uri()):
        sha = HfApi().model_info(repository.name, revision=repository.revision).sha
    if sha is None or not _COMMIT.fullmatch(sha):
        raise SourceError(f"{escape(repository.uri())}: the hub does not say which commit that is.")
    return replace(repository, revision=sha)


def _is_folder(repository: _Repository, path: str) -> bool:
    """Whether a path is a folder; raises SourceError where it is nothing."""
    if repository.cached(path):
        return False
    if _is_offline():
        return os.path.isdir(os.path.join(repository.snapshot, path))
    from huggingface_hub import HfApi, RepoFolder

    with _errors(repository.uri(path)):
        found = HfApi().get_paths_info(repository.name, [path], revision=repository.revision)
    if not found:
        raise SourceError(f"{escape(repository.uri())} has no file {escape(path)}.")
    return isinstance(found[0], RepoFolder)


def _list(repository: _Repository, path: str) -> _Listed:
    from huggingface_hub import HfApi, RepoFolder

    with _errors(repository.uri(path)):
        rows = list(HfApi().list_repo_tree(repository.name, path or None, revision=repository.revision))
    names = [row.path.rpartition("/")[2] for row in rows if not isinstance(row, RepoFolder)]
    folders = [row.path.rpartition("/")[2] for row in rows if isinstance(row, RepoFolder)]
    return _Listed(sorted(names), sorted(folders))


def _offline_list(folder: HubFolder) -> _Listed:
    try:
        return _Listed(folder.cached().names(), folder.cached().folders())
    except SourceError:
        raise _not_cached(folder.uri) from None


def _open_file(repository: _Repository, path: str) -> File:
    """Open a file at a commit: from the cache if it is there, else in ranges from the hub."""
    if repository.cached(path):
        return _CachedFile(repository, path)
    if _is_offline():
        raise _not_cached(repository.uri(path))
    from huggingface_hub import get_token, hf_hub_url

    token = get_token()
    secret = {"Authorization": f"Bearer {token}"} if token else {}
    url = hf_hub_url(repository.name, path, revision=repository.revision)
    around = HubFolder(repository, os.path.dirname(path))
    return open_http(Address(url, repository.uri(path), secret), os.path.basename(path), lambda: around)


def _not_cached(uri: str) -> SourceError:
    return SourceError(
        f"{escape(uri)} is not in the cache of the hub, and HF_HUB_OFFLINE is set.", hint="Unset it to ask the hub."
    )


@contextmanager
def _errors(uri: str) -> Iterator[None]:
    """Turn what the hub's client raises into a SourceError that says what to do."""
    from huggingface_hub import errors

    shown = escape(uri)
    try:
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
        raise SourceError(f"{shown} cannot be had from the hub: {escape(str(error).strip(), 300)}") from None


SOURCE = _Hub()
