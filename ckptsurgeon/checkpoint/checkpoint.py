"""``open_checkpoint`` and the mapping it returns."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, ItemsView, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from ..errors import FormatError, UnsafeError
from ..formats import FileHeader, Header, limits, read_header
from ..notebook import InNotebooks
from ..sources import File, Source, open_source
from ..tensors import Storage, TensorInfo, alias_groups
from ..text import count, escape, listing
from .carry import NO_NAMES, Entry, entries_to_carry, names_to
from .extras import Extra, entries_beside, extras_of
from .roots import Root, find_root
from .wrappers import Unwrapping, unwrap, unwrap_as

if TYPE_CHECKING:
    import torch

__all__ = ["Checkpoint", "checkpoint_of", "open_checkpoint"]


class Checkpoint(InNotebooks, Mapping[str, TensorInfo]):
    """A state dict as its file's header describes it: key → TensorInfo. Reads no tensor until asked.

    ``path`` is what the user wrote; ``root`` where the state dict hangs; ``passed`` the other state dicts;
    ``stripped`` the wrappers taken off the keys; ``extras`` what else is in the file; ``recipe`` the text that
    ckptsurgeon left in it, if it made it; ``checked`` the storages whose checksum was seen to be right.
    """

    def __init__(
        self, path: str, header: Header, root: Root, passed: Sequence[Root], *, unwrapped: bool = False
    ) -> None:
        self.path = path
        self.header = header
        self.root = root.path
        self.passed = tuple(other.path for other in passed)
        self._tensors = _tensors_of(root)
        _check_keys(path, self._tensors)
        self._entries = root.entries
        self._keys = root.keys
        self._show(unwrap(self._tensors) if unwrapped else unwrap_as(self._tensors, ()))
        self.checked: set[Storage] = set()

    def _show(self, view: Unwrapping) -> None:
        self._view = view
        shown = {key: self._tensors[stored] for key, stored in view.stored.items()} if view.stripped else self._tensors
        self._shown: Mapping[str, TensorInfo] = shown

    def __getitem__(self, key: str) -> TensorInfo:
        return self._shown[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shown)

    def __len__(self) -> int:
        return len(self._shown)

    def items(self) -> ItemsView[str, TensorInfo]:
        """Return the keys and headers without a look-up for each."""
        return self._shown.items()

    def __repr__(self) -> str:
        return f"<Checkpoint {self.path} {self.format}, {count(len(self), 'tensor')}>"

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def format(self) -> str:
        """The name of the format on disk."""
        return self.header.format

    @property
    def files(self) -> tuple[FileHeader, ...]:
        """Every file that was read, with its size and the SHA-256 of its header."""
        return self.header.files

    @cached_property
    def metadata(self) -> Mapping[str, str]:
        """The free text that it carries: safetensors' ``__metadata__``; of others, what our recipe in them keeps."""
        return self.header.metadata or _metadata_kept(self.header.recipe)

    @property
    def recipe(self) -> str | None:
        """The text of the recipe in it, None when ckptsurgeon did not make it."""
        return self.header.recipe

    @property
    def stripped(self) -> tuple[str, ...]:
        """The wrappers taken off the keys, outermost first."""
        return self._view.stripped

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided on the way that a user may want to know."""
        notes = [*self.header.notes]
        lacking = self._view.lacking
        if lacking:
            notes.append(
                f"the keys of the destination begin with {lacking}., those of {escape(self.path)} do not: "
                f"--map ={lacking} puts it there"
            )
        if not self.passed:
            return tuple(notes)
        where = f"root {self.root}" if self.root else "the top level"
        others = [path or "the top level" for path in self.passed]
        return (*notes, f"took {where}; also there: {listing(others)} (choose with --root)")

    @cached_property
    def extras(self) -> tuple[Extra, ...]:
        """What else is in the file: epochs, optimizers, arguments; opaque where its class is not known."""
        aside = {key: self._tensors[key] for key in self._view.aside}
        return extras_of(self.header.tree, self._keys, self._entries, aside)

    @property
    def root_names(self) -> tuple[str, ...] | None:
        """The keys of the dicts that lead to the state dict, outermost first; None where not only dicts lead there."""
        return names_to(self.header.tree, self._keys)

    def to_carry(self) -> list[Entry]:
        """Return the entries beside the tensors, each with why it cannot be carried into another file, if it cannot."""
        aside = [Entry(key, key, (), None, "it is a tensor") for key in self._view.aside]
        entries = entries_to_carry(entries_beside(self.header.tree, self._keys, self._entries))
        if self.root_names is None:  # written as dicts by name, they would hang elsewhere
            entries = (replace(entry, why=entry.why or NO_NAMES) for entry in entries)
        return [*entries, *aside]

    @cached_property
    def ties(self) -> Mapping[str, str]:
        """Every key that shares its bytes with an earlier key, and that key."""
        return alias_groups(self)

    def file(self, info: TensorInfo) -> File:
        """Return the open file in which a tensor lies; raises FormatError when nothing of it is stored."""
        if info.storage is None:
            raise FormatError(f"a tensor of {escape(self.path)} has no values: {info.opaque}.", rule="opaque")
        return self.header.handles[info.storage.file]

    def open_files(self) -> Mapping[str, File]:
        """Return every open file by its name within the checkpoint."""
        return self.header.handles

    def tensor(self, key: str) -> torch.Tensor:
        """Return the tensor that ``torch.load`` would give; reads its bytes, and imports torch.

        Raises KeyError, or FormatError when the values cannot be had or fail their checksum.
        """
        from .materialise import materialise

        return materialise(self, key, self[key])

    def unwrapped(self, *, destination: Collection[str] = (), stripped: Sequence[str] | None = None) -> Checkpoint:
        """Return the same checkpoint with the wrappers off its keys.

        Wrappers that the keys of ``destination`` have too stay. ``stripped`` repeats what was done before.
        """
        other = object.__new__(Checkpoint)
        other.__dict__.update({k: v for k, v in self.__dict__.items() if k not in ("extras", "ties", "metadata")})
        other._show(unwrap(self._tensors, destination) if stripped is None else unwrap_as(self._tensors, stripped))
        return other

    def holding(self, tensors: Mapping[str, TensorInfo]) -> Checkpoint:
        """Return the same file as a checkpoint of other tensors, made of those that it has."""
        other = self.unwrapped(stripped=self.stripped)
        aside = {key: self._tensors[key] for key in self._view.aside}
        other._tensors = {**aside, **tensors}
        other._show(replace(self._view, stored={key: key for key in tensors}))
        return other

    def stored_key(self, key: str) -> str:
        """Return the key as it stands in the file."""
        return self._view.stored[key]

    def close(self) -> None:
        """Close the files; headers stay, values can no longer be read."""
        for file in self.header.handles.values():
            file.close()


def _metadata_kept(recipe: str | None) -> dict[str, str]:
    """Return the metadata that a recipe carries through formats that have no place for it."""
    try:
        kept = json.loads(recipe or "{}").get("metadata", {})
        return {key: value for key, value in kept.items() if isinstance(value, str)}
    except (ValueError, AttributeError, RecursionError):
        return {}


def _tensors_of(root: Root) -> dict[str, TensorInfo]:
    if root.tensors == len(root.entries) and set(map(type, root.entries)) <= {str}:
        return dict(root.entries)  # the usual case, a fifth of the time
    return {key: info for key, info in root.entries.items() if isinstance(key, str) and isinstance(info, TensorInfo)}


def _check_keys(path: str, keys: Collection[str]) -> None:
    """Refuse keys in a number or of a length that no model has: what shows or compares keys may rely on it."""
    if len(keys) > limits.TENSORS:
        raise UnsafeError(f"{escape(path)} has {len(keys)} tensors; at most {limits.TENSORS} are read.", rule="tensors")
    usual = max(map(len, keys), default=0) < limits.KEY_SEGMENTS  # then there are fewer dots in each, too
    if usual and "".join(keys).count(".") + len(keys) <= limits.SEGMENTS:
        return
    segments = 0
    for key in keys:
        dots = key.count(".")
        segments += dots + 1
        if segments > limits.SEGMENTS:
            raise UnsafeError(f"{escape(path)} has keys of over {limits.SEGMENTS} segments in all.", rule="segments")
        if len(key) > limits.KEY_CHARACTERS or dots >= limits.KEY_SEGMENTS:
            raise FormatError(
                f"{escape(path)} has a key of {count(len(key), 'character')} and "
                f"{count(dots + 1, 'segment')}, {escape(key, 40)}; at most {limits.KEY_CHARACTERS} "
                f"and {limits.KEY_SEGMENTS} are read.",
                rule="key length",
            )


def open_checkpoint(path: str | os.PathLike[str], root: str | None = None, *, unwrap: bool = True) -> Checkpoint:
    """Open a checkpoint by its header: any format, nothing imported or run, no tensor read.

    ``root`` is the dotted path of the state dict inside the file, found when not given. With ``unwrap`` the keys
    are shown as ``inspect`` shows them, wrappers such as ``module.`` off.

    Raises SourceError when the file is missing, FormatError or UnsafeError when it is no sound checkpoint,
    ConfigError when it holds several state dicts and none is obvious.
    """
    uri = os.fspath(path)
    source = open_source(uri)
    return checkpoint_of(source, source.uri if "://" in uri else uri, root, unwrap=unwrap)


def checkpoint_of(source: Source, uri: str, root: str | None = None, *, unwrap: bool = True) -> Checkpoint:
    """Return what an open file or folder holds, which messages call ``uri``; raises as ``open_checkpoint``."""
    header = read_header(source)
    found, passed = find_root(header.tree, root, uri)
    return Checkpoint(uri, header, found, passed, unwrapped=unwrap)
