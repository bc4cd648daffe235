"""``hf://org/repo[@revision][/path]``, as huggingface_hub spells it: a model's repository, or what is in it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from ....errors import ConfigError
from ....util.text import escape

__all__ = ["HubAddress", "hub_address"]

_PART = r"\w[\w.-]*"
_ADDRESS = re.compile(
    rf"(?:models/)?(?P<repo>{_PART}/{_PART}|{_PART}(?=@|$))(?:@(?P<rev>refs/(?:pr|convert)/[^/@]+|[^/@]+))?(?:/(?P<path>.*))?",
    re.ASCII,
)
_OTHER_KINDS = ("datasets/", "spaces/", "buckets/", "kernels/")
_SPELT = "hf://org/repo, hf://org/repo@revision, hf://org/repo@revision/file"


@dataclass(frozen=True)
class HubAddress:
    """A repository, and what of it: ``revision`` is a branch, tag or commit, '' unsaid; ``path`` '' for all of it."""

    repository: str
    revision: str = ""
    path: str = ""


def hub_address(uri: str, revision: str | None = None) -> HubAddress:
    """Return what an ``hf://`` address names; nothing is asked.

    ``revision`` is what may stand behind the @ too. Raises ConfigError for what cannot be meant.
    """
    text = uri.partition("://")[2].rstrip("/")
    if text.startswith(_OTHER_KINDS):
        raise ConfigError(f"{escape(uri)} is no model repository; only those are read.", hint=f"Write {_SPELT}.")
    found = _ADDRESS.fullmatch(text)
    if found is None:
        raise ConfigError(f"{escape(uri)} names no repository of a hub.", hint=f"Write {_SPELT}.")
    at = unquote(found["rev"] or "")
    if at and revision and at != revision:
        raise ConfigError(f"{escape(uri)} and the revision {escape(revision)} say two things.", hint="Leave one out.")
    return HubAddress(found["repo"], _checked_revision(at or revision or ""), _checked_path(found["path"] or "", uri))


def _checked_revision(text: str) -> str:
    """Return a revision; it becomes part of a path on this machine and of an address."""
    if text and (text.startswith(("/", "-")) or not {"", ".", ".."}.isdisjoint(text.split("/"))):
        raise ConfigError(f"{escape(text)} is no revision.", hint="It is a branch, a tag or a commit.")
    return text


def _checked_path(text: str, uri: str) -> str:
    """Return a relative path that stays inside its repository."""
    if text and (not {"", ".", ".."}.isdisjoint(text.split("/")) or "\0" in text or "\\" in text):
        raise ConfigError(f"{escape(uri)} names a file outside its folder: {escape(text)}.")
    return text
