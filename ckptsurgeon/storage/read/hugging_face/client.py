"""Asks the Hugging Face hub: parses ``hf://`` addresses, finds the commit of a revision, and translates errors."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

from ....errors import CheckpointError, ConfigError, SourceError
from ....util.text import escape, without_secrets
from .answers import checked_answers, is_commit

__all__ = [
    "HubAddress",
    "HubQuery",
    "commit_of_revision",
    "digest_listed",
    "fetched_revision",
    "hub_address",
    "hub_error",
    "hub_errors",
    "is_offline",
    "no_file_error",
    "not_cached_error",
    "time_limits",
]

# Addresses of a model repository, or of a file or folder in it, in huggingface_hub's form.

_PART = r"\w[\w.-]*"
_ADDRESS = re.compile(
    rf"(?:models/)?(?P<repo>{_PART}/{_PART}|{_PART}(?=@|$))(?:@(?P<rev>refs/(?:pr|convert)/[^/@]+|[^/@]+))?(?:/(?P<path>.*))?",
    re.ASCII,
)
_OTHER_KINDS = ("datasets/", "spaces/", "buckets/", "kernels/")
_SPELT = "hf://org/repo, hf://org/repo@revision, hf://org/repo@revision/file"


@dataclass(frozen=True)
class HubAddress:
    """An ``hf://`` address: a repository, its ``revision`` (branch, tag or commit, '' if none is given) and a ``path``.

    The path is '' if the address is that of the whole repository.
    """

    repository: str
    revision: str = ""
    path: str = ""


def hub_address(uri: str, revision: str | None = None) -> HubAddress:
    """Return the parts of an ``hf://`` address; no request is made.

    The revision may be given after the @ or as ``revision``. Raises ConfigError for an invalid address.
    """
    text = uri.partition("://")[2].rstrip("/")
    if text.startswith(_OTHER_KINDS):
        raise ConfigError(
            f"{escape(uri)} is not a model repository; only model repositories can be read.", hint=f"Write {_SPELT}."
        )
    found = _ADDRESS.fullmatch(text)
    if found is None:
        raise ConfigError(f"{escape(uri)} is not the address of a hub repository.", hint=f"Write {_SPELT}.")
    at = unquote(found["rev"] or "")
    if at and revision and at != revision:
        raise ConfigError(
            f"{escape(uri)} and the revision {escape(revision)} contradict each other.", hint="Remove one of them."
        )
    return HubAddress(found["repo"], _checked_revision(at or revision or ""), _checked_path(found["path"] or "", uri))


def _checked_revision(text: str) -> str:
    """Return the revision ``text`` if it is safe as a part of paths and addresses; raises ConfigError if it is not."""
    if text and (text.startswith(("/", "-")) or not {"", ".", ".."}.isdisjoint(text.split("/"))):
        raise ConfigError(f"{escape(text)} is not a valid revision.", hint="Give a branch, a tag or a commit.")
    return text


def _checked_path(text: str, uri: str) -> str:
    """Return the relative path ``text`` if it stays inside its repository; raises ConfigError if it does not."""
    if text and (not {"", ".", ".."}.isdisjoint(text.split("/")) or "\0" in text or "\\" in text):
        raise ConfigError(
            f"{escape(uri)}: {escape(text)} is not a path inside the repository.",
            hint="Put single slashes between the names of folders and files, and leave out the names . and ..",
        )
    return text


@dataclass(frozen=True)
class HubQuery:
    """A query to the hub for a ``file`` or folder of a repository, or, if ``file`` is '', for the whole repository.

    ``token`` is a token, True to send the stored token (an error if there is none), None to send it if there is one, or
    False to send no token. If ``network`` is false, only the cache of huggingface_hub is used.
    """

    repository: str
    revision: str = ""
    file: str = ""
    token: bool | str | None = None
    network: bool = True

    @property
    def shown(self) -> str:
        """The name of the repository in messages."""
        return f"hub repository {escape(self.repository)}"

    @property
    def at(self) -> str:
        """The name of the repository in messages, with its revision."""
        return f"{self.shown} at {escape(self.revision)}" if self.revision else self.shown


def is_offline(query: HubQuery | None = None) -> bool:
    """Return whether the hub must not be asked, because of the query's ``network`` or of HF_HUB_OFFLINE."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE) or (query is not None and not query.network)


def commit_of_revision(query: HubQuery) -> str:
    """Return the commit of a revision; nothing is written to the cache of huggingface_hub.

    No request is made if the revision is a commit. Without a network, the commit of a branch is the one in the cache.
    Raises SourceError or ConfigError.
    """
    if is_commit(query.revision):
        return query.revision
    if is_offline(query):
        return fetched_revision(query)[0]
    with hub_errors(query):
        from huggingface_hub import HfApi

        found = HfApi(token=query.token).model_info(query.repository, revision=query.revision or None).sha
        return _checked(found)


def fetched_revision(query: HubQuery, cache: str | None = None) -> tuple[str, bool]:
    """Return the commit of a revision, and whether it is the cache's because the hub was asked and did not answer.

    The commit is stored in the cache folder ``cache``, for runs without a network. Neither an error 5xx nor a
    response that breaks off is an answer.
    """
    answers = list[Any]()
    with hub_errors(query), _answers_noted(answers):
        from huggingface_hub import HfApi

        offline = is_offline(query)
        found = HfApi(token=query.token).resolve_revision(
            query.repository, revision=query.revision or None, cache_dir=cache, local_files_only=offline
        )
        has_answered = is_commit(query.revision) or any(
            one.status_code < 500 and query.repository in one.request.url.path and _is_read(one) for one in answers
        )
        return _checked(found.resolved), not offline and not has_answered


@contextmanager
def _answers_noted(answers: list[Any]) -> Iterator[None]:
    """Append each response that huggingface_hub gets during the block to ``answers``."""
    from huggingface_hub import get_session

    hooks, note = get_session().event_hooks["response"], answers.append
    hooks.append(note)
    try:
        yield
    finally:
        hooks.remove(note)


def _is_read(response: Any) -> bool:
    """Return whether the body of a response was read to its end."""
    with suppress(RuntimeError):  # of httpx: the body was not read
        return response.content is not None
    return False


def digest_listed(query: HubQuery) -> str:
    """Return a file's digest from the hub's listing, a SHA-256 or git's SHA-1; '' if no digest can be read there."""
    with suppress(CheckpointError), hub_errors(query):
        from huggingface_hub import HfApi

        found = HfApi(token=query.token).get_paths_info(query.repository, [query.file], revision=query.revision or None)
        for one in found:
            lfs = getattr(one, "lfs", None)
            return str(lfs.sha256 if lfs is not None else one.blob_id) if one.path == query.file else ""  # type: ignore[union-attr]
    return ""


def _checked(commit: str | None) -> str:
    if commit is None or not is_commit(commit):
        raise ValueError(f"{commit!r} is not a commit")
    return commit


@contextmanager
def hub_errors(query: HubQuery) -> Iterator[None]:
    """Convert every exception of huggingface_hub in the ``with`` block to SourceError or ConfigError.

    huggingface_hub has about thirty kinds of exceptions, and the libraries that it uses have more.
    """
    try:
        commit = query.revision if is_commit(query.revision) else ""
        with checked_answers(commit, lambda name: digest_listed(replace(query, file=name))), time_limits():
            yield
    except CheckpointError:
        raise
    except Exception as error:
        raise hub_error(query, error) from None


@contextmanager
def time_limits(seconds: float = 0.0) -> Iterator[None]:
    """Give requests of huggingface_hub a time limit if they have none: without it, huggingface_hub would wait for ever.

    A hub may stop in the middle of a listing. If ``seconds`` is 0, the limit is the one that huggingface_hub has for
    downloads.
    """
    from huggingface_hub import constants, get_session

    def limit(request: Any) -> None:
        found = request.extensions.get("timeout") or dict.fromkeys(("connect", "read", "write", "pool"))
        request.extensions["timeout"] = {
            what: s or seconds or constants.HF_HUB_DOWNLOAD_TIMEOUT for what, s in found.items()
        }

    hooks = get_session().event_hooks["request"]
    hooks.append(limit)
    try:
        yield
    finally:
        hooks.remove(limit)


def hub_error(query: HubQuery, error: Exception, done: str = "fetched") -> CheckpointError:
    """Return the error for a failed request; its message is specific for known exceptions of huggingface_hub.

    If the hub has answered with an error and the cache lacks the file, the message has the hub's answer.

    ``done`` is the participle in the message "X cannot be fetched".
    """
    from huggingface_hub import errors

    not_cached, cause = (errors.LocalEntryNotFoundError, errors.RevisionResolutionError), error.__cause__
    has_answered = isinstance(cause, (errors.HfHubHTTPError, errors.FileMetadataError))
    is_wrapped = type(error) is ValueError  # BadRequestError is a ValueError, too, and has the hub's answer itself
    if isinstance(cause, Exception) and (is_wrapped or (isinstance(error, not_cached) and has_answered)):
        error = cause
    say: tuple[tuple[type[Exception], Callable[[HubQuery], CheckpointError]], ...] = (
        (errors.GatedRepoError, _gated),
        (errors.RepositoryNotFoundError, _no_repository),
        (errors.RevisionNotFoundError, _no_revision),
        (errors.LocalEntryNotFoundError, not_cached_error),
        (errors.RevisionResolutionError, not_cached_error),
        (errors.OfflineModeIsEnabled, not_cached_error),
        (errors.EntryNotFoundError, no_file_error),
        (errors.LocalTokenNotFoundError, _no_token),
    )
    for kind, saying in say:
        if isinstance(error, kind):
            return saying(query)
    why = without_secrets(str(error).strip() or type(error).__name__)
    what = f"{escape(query.file)} of the {query.at}" if query.file else f"the {query.at}"
    return SourceError(f"{what} cannot be {done}: {escape(why, 400)}")


def _gated(query: HubQuery) -> SourceError:
    login = "Use FetchConfig(token=True) after hf auth login." if query.token is False else (
        "Accept its terms on its page, and run hf auth login."
    )  # fmt: skip
    return SourceError(f"the {query.shown} requires a login.", hint=login)


def _no_repository(query: HubQuery) -> SourceError:
    if query.token is None:
        return SourceError(f"there is no {query.shown}.", hint="A private repository needs hf auth login.")
    private = "" if query.token else " A private repository needs FetchConfig(token=True)."
    is_folder = os.path.isdir(query.repository)  # the source was an address hf://
    local = "" if is_folder else f" and no local folder {escape(query.repository)}"
    return SourceError(f"there is no {query.shown}{local}.{private}")


def _no_revision(query: HubQuery) -> SourceError:
    return SourceError(f"the {query.shown} has no revision {escape(query.revision)}.")


def not_cached_error(query: HubQuery) -> SourceError:
    """Return the error for a file that is not in the cache, if the hub must not be asked or cannot be reached."""
    what = f"{escape(query.file)} of the {query.at}" if query.file else f"the whole of the {query.at}"
    if not query.network:
        return SourceError(f"{what} is not in the cache, and allow_network is False.")
    if is_offline():
        return SourceError(f"{what} is not in the cache, and HF_HUB_OFFLINE is set.", hint="Unset it to ask the hub.")
    return SourceError(
        f"the hub cannot be reached for {what}, and the cache does not have it.",
        hint="Check the network connection, and try again.",
    )


def no_file_error(query: HubQuery) -> SourceError:
    """Return the error for a file or folder that the hub does not have."""
    return SourceError(f"the {query.at} has no file {escape(query.file)}.")


def _no_token(query: HubQuery) -> ConfigError:
    return ConfigError("FetchConfig(token=True) needs a token, but none is stored.", hint="Run hf auth login.")
