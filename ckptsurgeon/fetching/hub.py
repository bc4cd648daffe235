"""Files from repositories of the Hugging Face hub, through its own client and cache."""

from __future__ import annotations

import hashlib
import os
import re

from ..errors import ConfigError, SourceError
from ..text import escape
from .config import FetchConfig
from .origin import Origin

__all__ = ["commit_of", "from_hub"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]")


def from_hub(origin: Origin, config: FetchConfig, cache_dir: str | None) -> str:
    """Return the path of a hub's file in the cache, fetched if it is not there; raises SourceError or ConfigError.

    The client believes a body of the right length: here its SHA-256 is held against the hub's, where that is what the
    cache calls it (files under LFS).
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        path = hf_hub_download(
            repo_id=origin.source, filename=origin.file, revision=origin.revision or None, cache_dir=cache_dir,
            token=config.token, local_files_only=not config.allow_network,
        )  # fmt: skip
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise _failed(origin, config, error) from None
    _check_digest(origin, path)
    return os.path.abspath(path)


def commit_of(path: str) -> str:
    """Return the commit that a path in the cache is of, '' where it does not say."""
    found = _COMMIT.search(path)
    return found.group(1) if found else ""


def _failed(origin: Origin, config: FetchConfig, error: Exception) -> SourceError | ConfigError:
    from huggingface_hub import errors

    repository = f"hub repository {escape(origin.source)}"
    at = f" at {escape(origin.revision)}" if origin.revision else ""
    if isinstance(error, errors.GatedRepoError):
        return SourceError(
            f"the {repository} asks for a login.", hint="Use FetchConfig(token=True) after hf auth login."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        private = "" if config.token else " A private one needs FetchConfig(token=True)."
        return SourceError(f"there is no {repository}, and no folder {escape(origin.source)} here.{private}")
    if isinstance(error, errors.RevisionNotFoundError):
        return SourceError(f"the {repository} has no revision {escape(origin.revision)}.")
    if isinstance(error, errors.LocalEntryNotFoundError):
        if not config.allow_network:
            return SourceError(
                f"{escape(origin.file)} of the {repository}{at} is not in the cache, and allow_network is False."
            )
        return SourceError(f"the hub cannot be reached for {escape(origin.path)}, and the cache does not have it.")
    if isinstance(error, errors.EntryNotFoundError):
        return SourceError(f"the {repository}{at} has no file {escape(origin.file)}.")
    if isinstance(error, errors.LocalTokenNotFoundError):
        return ConfigError("FetchConfig(token=True), and no token is stored.", hint="Run hf auth login.")
    return SourceError(f"{escape(origin.path)} cannot be had from the hub: {escape(str(error).strip(), 400)}")


def _check_digest(origin: Origin, path: str) -> None:
    blob = os.path.realpath(path)
    said = os.path.basename(blob)
    if not _SHA256.fullmatch(said):
        return
    with open(blob, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != said:
            raise SourceError(
                f"{escape(origin.path)} in the cache is not what the hub has: its SHA-256 differs.",
                hint=f"Remove {escape(blob)} and fetch it again.",
            )
