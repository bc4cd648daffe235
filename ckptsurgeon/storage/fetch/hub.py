"""Fetches files and repositories of the Hugging Face hub with huggingface_hub and its cache, and checks digests."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...errors import SourceError
from ...util.text import escape
from ..read.hugging_face.answers import is_digest
from ..read.hugging_face.client import HubQuery, digest_listed, fetched_revision, hub_errors, is_offline
from ..write.output_paths import output_error
from .cache import CachedFile, blob_of, cache_base, check_cache, check_kept, read_blob, remove_kept
from .origin import FetchConfig, FetchOrigin

if TYPE_CHECKING:
    from ..read.base import Progress

__all__ = ["commit_of", "counter", "from_hub", "pinned", "repository_from_hub"]

# Replaces the progress bars of huggingface_hub by a count of bytes, which ckpt shows in its own progress bar.


def counter(progress: Progress | None) -> type[Any]:
    """Return a class that huggingface_hub can use as ``tqdm``: it draws nothing and reports bytes to ``progress``.

    For a repository, huggingface_hub has two bars that count the same bytes: one counts received bytes, the other
    counts bytes of assembled files. The larger count is reported. Bars that count files are ignored.
    """
    bars: list[Any] = []

    class Counter:
        """A progress bar for huggingface_hub that draws nothing, and reports the received bytes to ``progress``."""

        def __init__(self, iterable: Any = None, *_: Any, total: float | None = None, initial: int = 0, **given: Any):
            self.iterable, self.total, self.n = iterable, total, initial
            self.format_dict: dict[str, Any] = {}
            if given.get("unit") == "B":
                bars.append(self)

        def __iter__(self) -> Iterator[Any]:
            return iter(self.iterable or ())

        def __enter__(self) -> Counter:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_") or name == "update_transfer":
                raise AttributeError(name)
            return lambda *_, **__: None  # close, refresh, set_description: they only draw

        def update(self, n: float | None = 1) -> None:
            """Count bytes that were received."""
            self.n += int(n or 0)
            if progress is not None and self in bars:
                progress(max(bar.n for bar in bars), max(int(bar.total or 0) for bar in bars))

    return Counter


TRIES = 2
"""The most times that a file is fetched while its bytes do not match the hub's digest."""
_COMMIT = re.compile(r"[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]")


def pinned(origin: FetchOrigin, config: FetchConfig) -> tuple[FetchOrigin, tuple[str, ...]]:
    """Return ``origin`` with its revision resolved to a commit, and notes; a commit is not asked for at the hub.

    If the hub cannot be reached, the commit that the cache has for this revision is used, and a note says so. Raises
    SourceError or ConfigError.
    """
    if not is_offline(_query(origin, config)):
        check_cache(origin.source, config.huggingface_cache_dir)
    commit, is_cached = fetched_revision(_query(origin, config), config.huggingface_cache_dir)
    said = f"the hub did not answer: {commit} is the commit of {escape(origin.revision or 'main')} in the cache"
    return replace(origin, revision=commit), (said,) if is_cached else ()


def from_hub(
    origin: FetchOrigin, config: FetchConfig, cache_dir: str | None, progress: Progress | None = None
) -> CachedFile:
    """Return a file of the hub in the cache, after fetching it if necessary; raises SourceError or ConfigError.

    A file whose bytes do not match the hub's digest is removed from the cache and fetched once more.
    """
    cache, offline = cache_base(cache_dir), is_offline(_query(origin, config))
    for left in reversed(range(TRIES)):
        with _errors_translated(origin, config):
            from huggingface_hub import hf_hub_download

            path = hf_hub_download(
                repo_id=origin.source, filename=origin.file, revision=origin.revision or None, cache_dir=cache,
                token=config.token, local_files_only=offline, tqdm_class=counter(progress),
                force_download=left + 1 < TRIES,
            )  # fmt: skip
        check_kept(path, origin.source, origin.revision, origin.file, cache)
        if blob_of(path) or not os.path.islink(path):
            blob = read_blob(path, _expected_digest(origin, config, path))
            if blob is not None:
                return replace(blob, again=left + 1 < TRIES)
        remove_kept(path)
        if offline:
            break
    raise SourceError(
        f"{escape(origin.shown)} does not match the hub: its digest differs. The file was removed from the cache.",
        hint="Fetch it again with network access." if offline else "Fetch it again.",
    )


def repository_from_hub(
    origin: FetchOrigin, config: FetchConfig, progress: Progress | None = None
) -> tuple[str, dict[str, CachedFile]]:
    """Fetch the missing files of a commit into the cache; return the folder of the commit, and {name: file}.

    The revision of ``origin`` must be a commit. Raises SourceError or ConfigError.
    """
    with _errors_translated(origin, config):
        from huggingface_hub import snapshot_download

        folder = snapshot_download(
            origin.source, revision=origin.revision, cache_dir=config.huggingface_cache_dir, token=config.token,
            local_files_only=is_offline(_query(origin, config)), tqdm_class=counter(progress),
        )  # fmt: skip
        names = _names(origin, config, folder)
    cache = config.huggingface_cache_dir
    return folder, {name: from_hub(replace(origin, file=name), config, cache, progress) for name in names}


def commit_of(path: str) -> str:
    """Return the commit that is a part of ``path``, a path in the cache; '' if it has none."""
    found = _COMMIT.search(path)
    return found.group(1) if found else ""


def _names(origin: FetchOrigin, config: FetchConfig, folder: str) -> list[str]:
    """Return the names of a commit's files: from the hub's listing in the cache or, without one, from its folder."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    cache = config.huggingface_cache_dir
    with suppress(CachedRepoTreeNotFoundError):
        return sorted(
            one.path for one in get_cached_repo_tree(origin.source, revision=origin.revision, cache_dir=cache)
        )
    below = (os.path.relpath(os.path.join(at, name), folder) for at, _, names in os.walk(folder) for name in names)
    return sorted(below)


def _expected_digest(origin: FetchOrigin, config: FetchConfig, path: str) -> str:
    """Return the hub's digest of a file; '' if it is not known.

    The digest is the name of the blob to which ``path`` links in the cache. If ``path`` is not such a link, the digest
    is requested from the hub's listing.
    """
    called = os.path.basename(blob_of(path))
    if is_digest(called) or is_offline(_query(origin, config)):
        return called
    return digest_listed(_query(origin, config))


def _query(origin: FetchOrigin, config: FetchConfig) -> HubQuery:
    return HubQuery(origin.source, origin.revision, origin.file, config.token, config.allow_network)


@contextmanager
def _errors_translated(origin: FetchOrigin, config: FetchConfig) -> Iterator[None]:
    """Convert errors of the local file system to OutputError, and errors of the hub to SourceError or ConfigError."""
    with hub_errors(_query(origin, config)):
        try:
            yield
        except OSError as error:
            if error.errno is None:  # an error of the network
                raise
            raise output_error(os.fsdecode(error.filename or "the cache"), error) from None
