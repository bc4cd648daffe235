"""Opens the address of an output: a file system of fsspec (such as an object store), or a repository of the hub."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from ...errors import OutputError
from ...util.text import escape
from ..read.base import Advance
from ..read.hugging_face.answers import is_commit
from ..read.hugging_face.client import hub_address
from ..read.uri import scheme_of, shown

__all__ = ["Destination", "check_writable", "open_destination"]


class Destination(Protocol):
    """A folder at an address, to which the files of one output are uploaded.

    Until ``publish`` is called, no file in the folder is changed. Every method may raise OutputError or ConfigError.
    """

    def names(self) -> list[str]:
        """Return the names of the files that are in the folder."""
        ...

    def has(self, name: str) -> bool:
        """Return whether the folder has a file with this name; raises OutputError if a folder has this name."""
        ...

    def begin(self, names: Sequence[str]) -> None:
        """Remove unfinished uploads of killed runs, and prepare the upload of the files ``names``.

        Raises OutputError if the address is already known not to be writable.
        """
        ...

    def put(self, name: str, path: str, advance: Advance) -> None:
        """Upload a local file, which the caller may remove afterwards.

        ``advance`` is called with the number of bytes that were sent.
        """
        ...

    def publish(self, names: Sequence[str], removed: Collection[str]) -> None:
        """Remove the files ``removed``, and then make the uploaded files visible, in the order of ``names``."""
        ...

    def discard(self) -> None:
        """Abandon the uploads that are not published; never raises an error."""
        ...


def check_writable(uri: str) -> None:
    """Raise OutputError if an address is of a kind that can be read but not written; no request is made."""
    scheme, why, hint = scheme_of(uri), "", ""
    if scheme in ("http", "https"):
        why, hint = "ckpt only reads from web servers", "Use an object store (s3://, gs://), or hf://org/repo."
    elif "::" in uri:
        why, hint = "ckpt only reads from addresses with ::", "Use the address of the folder or file itself."
    elif "?" in uri:
        why, hint = "ckpt only reads from addresses with ?", "Remove the ? and the text after it."
    elif scheme == "hf" and is_commit(hub_address(uri).revision):
        why, hint = "a commit cannot be changed", "Use a branch: hf://org/repo@branch."
    if why:
        raise OutputError(f"cannot write {escape(shown(uri))}: {why}.", hint=hint)


def open_destination(uri: str, *, file: str = "") -> Destination:
    """Return the folder at an address; it need not exist yet.

    ``file`` is the name of the output if the output is a single file. Raises OutputError or ConfigError.
    """
    check_writable(uri)
    if scheme_of(uri) == "hf":
        from .hub import HubDestination

        return HubDestination(uri)
    from .file_systems import FsspecDestination

    return FsspecDestination(uri, file=file)
