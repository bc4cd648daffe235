"""Uploads to a repository of the Hugging Face hub, and makes one commit of all files."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from ...errors import CheckpointError, ConfigError, OutputError
from ...util.text import escape
from ..read.base import Advance
from ..read.hugging_face.client import (
    HubQuery,
    commit_of_revision,
    hub_address,
    hub_error,
    hub_errors,
    is_offline,
    time_limits,
)
from ..read.uri import shown

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi

__all__ = ["HubDestination"]

ANSWER_S = 300.0
"""Seconds until a response must begin; the hub may check and copy gigabytes before it responds."""
WAITS_S = (1.0, 4.0, 16.0)
"""Seconds to wait before each retry of a commit; huggingface_hub itself repeats all other requests."""
BUSY = (429, 500, 502, 503, 504)


class HubDestination:
    """A folder of a repository at a branch: ``hf://org/repo[@branch][/folder]``."""

    def __init__(self, uri: str) -> None:
        found = hub_address(uri)
        self.uri = shown(uri)
        self._query = HubQuery(found.repository, found.revision or "main")
        self._folder = f"{found.path}/" if found.path else ""
        self._made: dict[str, CommitOperationAdd] = {}
        if is_offline():
            raise OutputError(f"cannot write {escape(self.uri)}: HF_HUB_OFFLINE is set.", hint="Unset it.")

    @cached_property
    def _api(self) -> HfApi:
        from huggingface_hub import HfApi

        return HfApi()

    @cached_property
    def _parent(self) -> str:
        """The newest commit of the branch before the upload; if there is a newer one, the hub rejects the upload."""
        return commit_of_revision(self._query)

    def _head(self) -> str:
        return commit_of_revision(self._query)

    def names(self) -> list[str]:
        """Return the names of the files that are in the folder."""
        return sorted(name for name in self._paths() if "/" not in name)

    def _paths(self) -> list[str]:
        with self._errors(), hub_errors(self._query):
            paths = self._api.list_repo_files(self._query.repository, revision=self._parent)
        return [path.removeprefix(self._folder) for path in paths if path.startswith(self._folder)]

    def has(self, name: str) -> bool:
        """Return whether the folder or one of its subfolders has the file ``name``, a path relative to the folder."""
        return name in self._paths()

    def begin(self, names: Sequence[str]) -> None:
        """Raise OutputError if the repository must not be written to.

        Uploads of a killed run are in no commit, so they need not be removed.
        """
        with self._errors():
            self._api.auth_check(self._query.repository, write=True)

    def put(self, name: str, path: str, advance: Advance) -> None:
        """Upload a file if the hub stores it in LFS; otherwise only read it, and let ``publish`` send it.

        Files outside LFS are sent with the commit. Raises OutputError if the upload fails, or if the .gitignore of the
        repository excludes the file.
        """
        from huggingface_hub import CommitOperationAdd

        with self._errors():
            made = CommitOperationAdd(f"{self._folder}{name}", path)
            self._api.preupload_lfs_files(self._query.repository, [made], revision=self._query.revision)
            if getattr(made, "_should_ignore", False):  # the hub would leave the file out of the commit
                raise OutputError(
                    f"the .gitignore of {escape(self.uri)} excludes {escape(name)}.", hint="Change the .gitignore."
                )
            if made.path_or_fileobj:  # not uploaded yet; the local file will be removed
                with made.as_file() as file:
                    made = CommitOperationAdd(f"{self._folder}{name}", file.read())
        self._made[name] = made
        advance(made.upload_info.size)

    def publish(self, names: Sequence[str], removed: Collection[str]) -> None:
        """Make one commit that adds the uploaded files and removes the files ``removed``.

        Raises OutputError if the commit fails.
        """
        from huggingface_hub import CommitOperationDelete

        gone = [CommitOperationDelete(f"{self._folder}{name}") for name in removed if name not in self._made]
        operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
            *(self._made[name] for name in names),
            *gone,
        ]
        for wait_s in (*WAITS_S, None):
            try:
                with self._errors():
                    self._api.create_commit(
                        self._query.repository,
                        operations,
                        commit_message="Write a checkpoint with ckptsurgeon",
                        revision=self._query.revision,
                        parent_commit=self._parent,
                    )
                break
            except _BusyError as error:
                if self._head() != self._parent:  # there is a new commit, perhaps ours, despite the error
                    break
                if wait_s is None:
                    raise OutputError(
                        error.message, hint="Try again later; nothing in the repository has changed."
                    ) from None
                time.sleep(wait_s)
        self._check()

    def _check(self) -> None:
        """Raise OutputError if the branch lacks a file that was uploaded."""
        from huggingface_hub import RepoFile

        with self._errors():
            paths = {made.path_in_repo: made.upload_info for made in self._made.values()}
            found = self._api.get_paths_info(self._query.repository, list(paths), revision=self._head())
            sizes = {one.path: (one.size, one.lfs) for one in found if isinstance(one, RepoFile)}
        for path, info in paths.items():
            size, lfs = sizes.get(path, (None, None))
            if size != info.size or (lfs is not None and lfs.sha256 != info.sha256.hex()):
                raise OutputError(
                    f"{escape(self.uri)} does not have the file {escape(path)}, which was uploaded.",
                    hint="Another commit may have replaced the file: run the command again.",
                )

    def discard(self) -> None:
        """Do nothing: the hub itself removes uploads that are in no commit."""

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Convert every error of huggingface_hub in the block to OutputError, or ``_BusyError`` if a retry may help."""
        try:
            with time_limits(ANSWER_S), _no_bars():
                yield
        except (ConfigError, OutputError):
            raise
        except CheckpointError as error:
            raise OutputError(error.message, hint=error.hint) from None
        except Exception as error:
            while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
                error = error.__cause__  # the cause of a failed upload, which huggingface_hub wraps
            said = hub_error(self._query, error, "written")
            status = getattr(getattr(error, "response", None), "status_code", 0)
            kind, hint = (_BusyError if status in BUSY else OutputError), said.hint
            if status in (401, 403):
                hint = hint or "Log in with a token that may write: hf auth login."
            elif status == 412:
                hint = "Another commit was made during the upload: run the command again."
            raise kind(said.message, hint=hint) from None


@contextmanager
def _no_bars() -> Iterator[None]:
    """Prevent huggingface_hub from drawing progress bars during the block."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    drawn = not are_progress_bars_disabled()
    if drawn:
        disable_progress_bars()
    try:
        yield
    finally:
        if drawn:
            enable_progress_bars()


class _BusyError(OutputError):
    """The error for a request that the hub cannot serve now, but may serve later."""
