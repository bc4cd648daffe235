"""Defines ``Checkpoint``: a state dict as its file's header describes it."""

from __future__ import annotations

import json
from collections.abc import Collection, ItemsView, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, FormatError, SourceError
from ..formats.base.format_table import indexed_name, shards_of, tensor_rank
from ..formats.base.header import FilePrint, Header
from ..storage.read._memory import MemoryFile
from ..storage.read.base import File, Folder
from ..storage.read.uri import scheme_of
from ..tensors.info import Storage, TensorInfo, tied_keys
from ..tensors.quantised.encoding import NO_CODES, QuantisedTensor, QuantisedTensors, is_plain
from ..util.note_kind import NoteKind
from ..util.notebook import InNotebooks
from ..util.notes import Note, as_notes, notes_of
from ..util.text import count, escape
from .find_state_dict import Root, check_keys, find_root, other_roots_note, tensors_of
from .joined_scales import ENDS, NOTHING_JOINED, apart, scales_elsewhere
from .other_entries import NO_NAMES, Extra, ExtraEntry, entries_beside, entries_to_carry, extras_of, names_to
from .quantisation import SETTINGS, configuration, quantisation_settings, settings_in, without_settings
from .shard_notes import (
    ShardIndex,
    damaged_recipe_notes,
    lone_rank_notes,
    lone_shard_note,
    other_shard_notes,
    shard_index,
    shard_notes,
)
from .values.value_notes import value_notes
from .wrappers import NOT_WRAPPED, WRAPPERS, Unwrapping, lacking_prefix_note, unwrap, unwrap_as

if TYPE_CHECKING:
    import torch

    from ..tensors.odd_scales.notes import OddScales

__all__ = ["Checkpoint"]

EXTRA_STATE = "_extra_state"
"""The last part of the keys of what ``get_extra_state`` of a module returns."""
_WORKED_OUT = ("value_notes", "_is_plain", "codes", "extras", "metadata", "quant_states", "quantisation_notes", "ties")
"""Cached properties that depend on the tensors: they are computed again for a checkpoint with other keys."""


class Checkpoint(InNotebooks, Mapping[str, TensorInfo]):
    """A state dict as its file's header describes it: a mapping from key to TensorInfo; ``tensor`` reads the values.

    ``path`` is the path as the user wrote it. ``root`` is the dotted path of the state dict in the file; ``passed`` has
    the paths of the other state dicts in the file. ``checked`` has the storages whose checksum was verified. ``around``
    is the folder of the file; ``folder`` is the same folder if the file has a usual name of model weights, else None.
    If this checkpoint has decoded weights, ``stored`` is the checkpoint with the quantised tensors; else None.

    A quantised tensor is stored as several parts (codes, scales). Operations may rename or change these parts.
    ``operated_parts`` maps the key of each renamed or changed part to the quantised tensor of the file that the part
    belonged to.
    """

    def __init__(
        self,
        path: str,
        header: Header,
        root: Root,
        passed: Sequence[Root],
        *,
        unwrapped: bool = False,
        folder: Folder | None = None,
        around: Folder | None = None,
    ) -> None:
        self.path = path
        self.header = header
        self.folder = folder
        self.around = around
        self.root = root.path
        self.passed = tuple(other.path for other in passed)
        self.stored: Checkpoint | None = None
        self.operated_parts: Mapping[str, QuantisedTensor] = {}
        self._is_lent = False
        self._in_files = tensors_of(root)
        self._tensors, self._joined = self._in_files, NOTHING_JOINED
        if any(key.endswith(ENDS) for key in self._in_files):
            self._tensors, self._joined = apart(self._in_files)
        check_keys(path, self._tensors)
        self._entries = root.entries
        self._packing = root.packing
        self._keys = root.keys
        self._show(self._unwrapping() if unwrapped else NOT_WRAPPED)
        self.checked: set[Storage] = set()
        self._odd_scales: dict[str, OddScales] = {}  # shared by all views of the file

    def _show(self, view: Unwrapping) -> None:
        self._view = view if view.stripped else replace(view, stored={})  # keys are as in the file
        shown = {key: self._tensors[stored] for key, stored in view.stored.items()} if view.stripped else self._tensors
        self._shown: Mapping[str, TensorInfo] = shown

    def __getitem__(self, key: str) -> TensorInfo:
        return self._shown[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shown)

    def __len__(self) -> int:
        return len(self._shown)

    def items(self) -> ItemsView[str, TensorInfo]:
        """Return the (key, TensorInfo) pairs of all tensors, without a look-up of each key."""
        return self._shown.items()

    def __repr__(self) -> str:
        return f"<Checkpoint {escape(self.path)} {self.format}, {count(len(self), 'tensor')}>"

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def format(self) -> str:
        """The name of the format on disk."""
        return self.header.format

    @property
    def in_memory(self) -> bool:
        """Whether the tensors are in memory and not in a file.

        This is false for a checkpoint in a file, even if its reader has to keep decoded values in memory.
        """
        files = self.header.handles.values()
        return bool(files) and all(isinstance(file, MemoryFile) for file in files)

    @property
    def in_files(self) -> Mapping[str, TensorInfo]:
        """The tensors by their keys in the files, before tensors are split or renamed."""
        return self._in_files

    @property
    def closed(self) -> bool:
        """Whether the files are closed; then the values of tensors can no longer be read."""
        return any(file.closed for file in self.header.handles.values())

    @property
    def is_remote(self) -> bool:
        """Whether bytes must be fetched, because a file is at an address."""
        return any(file.remote for file in self.header.handles.values())

    @property
    def files(self) -> tuple[FilePrint, ...]:
        """Every file that was read, with its size and the SHA-256 of its header."""
        return self.header.files

    @cached_property
    def metadata(self) -> Mapping[str, str]:
        """The strings stored with the tensors: safetensors' ``__metadata__``, else the copy in ckptsurgeon's recipe."""
        found = self.header.metadata or _metadata_kept(self.header.recipe)
        return found if self.stored is None else without_settings(found, self)

    @property
    def recipe(self) -> str | None:
        """The text of the recipe that ckptsurgeon stored in the file; None if the file has none."""
        return self.header.recipe

    @property
    def stripped(self) -> tuple[str, ...]:
        """The wrappers (prefixes such as ``module``) that were removed from the keys, outermost first."""
        return self._view.stripped

    @property
    def notes(self) -> tuple[Note, ...]:
        """Notes for the user on how the file was opened, such as which state dict was chosen."""
        notes = list(as_notes(NoteKind.REMARK, self.header.notes))
        if self._packing is not None:
            notes += self._packing.notes()
        if self._joined.keys:
            notes += self._joined.notes()
        shard, number = self._shard
        if number:
            notes += [lone_shard_note(shard, number), *self._shard_notes]
        notes += self._rank_notes
        if self._view.lacking:
            notes.append(lacking_prefix_note(self._view.lacking, self.path))
        notes += [*self._other_shard_notes, *self.value_notes, *self.quantisation_notes]
        return (*notes, other_roots_note(self.root, self.passed)) if self.passed else tuple(notes)

    @cached_property
    def extras(self) -> tuple[Extra, ...]:
        """The entries of the file other than its tensors, such as epochs, optimizers and arguments.

        An object of an unknown class is not rebuilt: only the name of its class is shown.
        """
        aside = self._aside
        are_all_tensors = not self._keys and len(self._in_files) == len(self._entries)
        return () if are_all_tensors and not aside else extras_of(self.header.tree, self._keys, self._entries, aside)

    @property
    def _aside(self) -> dict[str, TensorInfo]:
        """The tensors that do not belong to the model: the counter of an averaged model, scales that no layer uses."""
        unused = self._packing.unused if self._packing is not None else {}
        return {**{key: self._tensors[key] for key in self._view.aside}, **unused}

    @property
    def root_names(self) -> tuple[str, ...] | None:
        """The keys of the dicts around the state dict, outermost first; None if a list or an object is among them."""
        return names_to(self.header.tree, self._keys)

    @property
    def others(self) -> Mapping[Any, Any]:
        """The entries of the state dict that are not tensors, such as the ``param_groups`` of an optimizer's state."""
        return {key: value for key, value in self._entries.items() if not isinstance(value, TensorInfo)}

    @property
    def extra_state(self) -> list[str]:
        """The keys of the extra state of modules (``get_extra_state`` in torch), without the removed prefixes."""
        found = [key for key in self.others if isinstance(key, str) and key.endswith(EXTRA_STATE)]
        for prefix in self.stripped:
            found = [key.removeprefix(f"{prefix}.") for key in found]
        return found

    def to_carry(self) -> list[ExtraEntry]:
        """Return the entries of the file other than its tensors, to copy them into an output.

        ``why`` of an entry is the reason why it cannot be written into another file, or ''.
        """
        aside = [ExtraEntry(key, key, (), None, "it is a tensor") for key in self._aside]
        entries = entries_to_carry(entries_beside(self.header.tree, self._keys, self._entries))
        if self.root_names is None:  # an output has only dicts: the entries would get another path
            entries = (replace(entry, why=entry.why or NO_NAMES) for entry in entries)
        return [*entries, *aside]

    @cached_property
    def ties(self) -> Mapping[str, str]:
        """The tied tensors: {key: first key whose tensor has the same bytes}; the first key itself is left out."""
        return tied_keys(self._shown)

    @cached_property
    def codes(self) -> QuantisedTensors:
        """The quantised tensors: the stored parts of each tensor, and how to decode them."""
        if self._is_plain:
            return NO_CODES
        from ..tensors.quantised.search import search_codes  # with all encodings

        return search_codes(self._shown, lambda: self.quantisation, lambda: (*self.elsewhere, *self._joined.unread))

    @cached_property
    def _is_plain(self) -> bool:
        return is_plain(self._shown)

    @property
    def odd_scales(self) -> OddScales:
        """The quantised tensors of the file that turned out to have implausible scales when they were decoded."""
        from ..tensors.odd_scales.notes import OddScales

        return self._odd_scales.setdefault("", OddScales())

    @property
    def odd_scale_notes(self) -> tuple[Note, ...]:
        """Notes on the quantised tensors in ``odd_scales``."""
        return self.odd_scales.notes(self.path) if self._odd_scales else ()

    @property
    def has_odd_scales(self) -> bool:
        """Whether decoding found implausible scales."""
        return any(self._odd_scales.values())

    @property
    def codes_before_operations(self) -> QuantisedTensors:
        """``codes``, and the quantised tensors of the file whose parts an operation has changed (``operated_parts``).

        An operation may change a part so much that ``codes`` alone no longer recognises the quantised tensor.
        """
        if not self.operated_parts:
            return self.codes
        originals = {id(one): one for one in self.operated_parts.values()}
        return QuantisedTensors(
            (*self.codes.tensors, *originals.values()), {**self.codes.by_key, **self.operated_parts}
        )

    @cached_property
    def quant_states(self) -> Mapping[str, Mapping[str, Any]]:
        """The ``quant_state`` of each 4-bit weight of bitsandbytes, by the weight's name; empty if files are remote.

        A ``quant_state`` is stored as the value of a small tensor, and so is not in the header.
        """
        from .quantised_values import quant_states, read_small_tensor

        return quant_states(self.codes, self._shown, partial(read_small_tensor, self.header.handles))

    @cached_property
    def elsewhere(self) -> Sequence[str]:
        """The keys of the other shards of the model, from the index of shards; empty if this file is not a shard."""
        elsewhere = self._index.elsewhere
        return scales_elsewhere(self._in_files, elsewhere) if elsewhere else ()

    @property
    def _shard(self) -> tuple[str, int]:
        """The name of the file, and the number of shards in this name; ('', 0) if the checkpoint has several files.

        The number is 2 for ``model-00001-of-00002.safetensors``, and 0 for a file that is not a shard.
        """
        name = next((file.name for name, file in self.header.handles.items() if not name), "")
        return name, shards_of(name)

    @cached_property
    def _index(self) -> ShardIndex:
        """The part of the shard index (``model.safetensors.index.json``) about this file; empty if there is none."""
        files = [*self.header.handles.values()]
        with suppress(CheckpointError):
            if len(files) == 1 and self.around is not None and any(map(indexed_name, self.around.names())):
                return shard_index(files[0].name, self.around)
        return ShardIndex()

    @cached_property
    def _shard_notes(self) -> tuple[Note, ...]:
        """Notes on a shard whose keys differ from the keys in its index, and on a wrong ``total_size`` in the index."""
        if self.root:
            return ()
        shard, _ = self._shard
        return tuple(shard_notes(shard, self._in_files, self._index, self.around))

    @cached_property
    def _rank_notes(self) -> tuple[Note, ...]:
        """Notes on a file of one rank of tensor parallelism that was opened without the files of the other ranks."""
        files = [*self.header.handles.values()]
        is_of_rank = len(files) == 1 and tensor_rank(files[0].name) is not None
        return tuple(lone_rank_notes(files[0].name, self.around)) if is_of_rank else ()

    @cached_property
    def _other_shard_notes(self) -> tuple[Note, ...]:
        """Notes on a damaged recipe, and on shards that are not from the output that the recipe describes."""
        recipe, handles = self.header.recipe, self.header.handles
        if recipe is None:
            return ()
        others = other_shard_notes(recipe, self._in_files, handles) if len(handles) > 1 else ()
        return (*damaged_recipe_notes(recipe, self.path), *others)

    @cached_property
    def value_notes(self) -> tuple[Note, ...]:
        """Notes on values that cannot be right, such as bytes that were never written, and codes without scales."""
        if self.stored is not None:
            return self.stored.value_notes
        config = configuration(self.folder) if self.folder is not None else {}
        is_gguf = self.format == "gguf"
        kind = self.metadata.get("general.architecture", "") if is_gguf else config.get("model_type")
        return tuple(
            value_notes(
                self._shown, self.header.handles, self.codes, are_described=bool(config),
                kind=str(kind), is_gguf=is_gguf,
            )
        )  # fmt: skip

    @cached_property
    def quantisation(self) -> Mapping[str, Any]:
        """The ``quantization_config`` in the file's metadata, or else in its folder; {} if there is none."""
        return settings_in(self.metadata) or quantisation_settings(self.around)

    @cached_property
    @notes_of(NoteKind.QUANTISATION)
    def quantisation_notes(self) -> tuple[str, ...]:
        """Notes on quantisation settings that contradict the tensors, and on quantised tensors with missing parts."""
        if self.stored is not None:
            return self.stored.quantisation_notes
        packed = tuple(self._packing.faults(self.path)) if self._packing is not None else ()
        return packed if self._is_plain and not self._is_said_quantised else (*packed, *self._notes_on_codes())

    @property
    def _is_said_quantised(self) -> bool:
        """Whether the folder of a model has quantisation settings, even empty ones; web addresses are not read."""
        if self.folder is None or scheme_of(self.folder.uri):
            return False
        return bool(quantisation_settings(self.folder)) or configuration(self.folder).get(SETTINGS) == {}

    def _notes_on_codes(self) -> list[str]:
        from .all_quantisation_notes import all_quantisation_notes

        _, shards = self._shard
        return all_quantisation_notes(self, self._shown, unread=self._joined.unread, is_shard=bool(shards))

    def file(self, info: TensorInfo) -> File:
        """Return the open file that stores a tensor; raises FormatError if the tensor is not stored."""
        if info.storage is None:
            raise FormatError(
                f"the values of a tensor of {escape(self.path)} cannot be read: {info.opaque}.", rule="opaque"
            )
        return self.header.handles[info.storage.file]

    def open_files(self) -> Mapping[str, File]:
        """Return {name within the checkpoint: open file}."""
        return self.header.handles

    def tensor(self, key: str) -> torch.Tensor:
        """Read a tensor, and return it as ``torch.load`` would; imports torch.

        Raises KeyError, or FormatError if the values cannot be read or fail their checksum.
        """
        from .materialise import materialise

        return materialise(self, key, self[key])

    def unwrapped(self, *, destination: Collection[str] = (), stripped: Sequence[str] | None = None) -> Checkpoint:
        """Return the same checkpoint with wrappers (prefixes such as ``module.``) removed from its keys.

        A wrapper that the keys of ``destination`` have, too, is kept. If ``stripped`` is not None, exactly these
        wrappers are removed.
        """
        other = self._copied()
        if stripped is None:
            other._show(self._unwrapping(destination))
        else:
            other._show(unwrap_as(self._tensors, stripped) if stripped else NOT_WRAPPED)
        return other

    def _unwrapping(self, destination: Collection[str] = ()) -> Unwrapping:
        """Return how the keys lose their wrappers; most files and destinations have no key with a wrapper's name."""
        text = "\n".join((*self._tensors, *destination))
        return unwrap(self._tensors, destination) if any(f"{one}." in text for one in WRAPPERS) else NOT_WRAPPED

    def _copied(self) -> Checkpoint:
        other = object.__new__(Checkpoint)
        other.__dict__.update({name: value for name, value in self.__dict__.items() if name not in _WORKED_OUT})
        return other

    def holding(self, tensors: Mapping[str, TensorInfo], *, decoded: bool = False) -> Checkpoint:
        """Return a checkpoint of the same file that has only ``tensors``, each computed from tensors of the file.

        ``decoded`` is true if no tensor is quantised any more; then the quantisation settings do not apply.
        """
        other = self._copied()
        if decoded:
            other.stored, other.quantisation = self, {}
        aside = {key: self._tensors[key] for key in self._view.aside}
        other._tensors = {**aside, **tensors}
        other._show(replace(self._view, stored={key: key for key in tensors}))
        return other

    def stating(self, quantisation: Mapping[str, Any]) -> Checkpoint:
        """Return the same checkpoint with other quantisation settings, for an output with these settings."""
        other = self.holding(dict(self))
        other.__dict__["quantisation"] = quantisation
        return other

    def stored_key(self, key: str) -> str:
        """Return the key of a tensor in the file, which includes wrappers such as ``module.``."""
        return self._view.stored[key] if self._view.stripped else key

    def lent(self, root: str | None = None, *, unwrap: bool = True) -> Checkpoint:
        """Return another Checkpoint of the same open file; closing that Checkpoint leaves the file open.

        ``root`` is the dotted path of another state dict of the file; ``unwrap`` removes wrappers such as ``module.``
        from the keys. Raises SourceError if the file is closed.
        """
        if self.closed:
            raise SourceError(
                f"{escape(self.path)} is closed.",
                hint="Open the checkpoint again, and close it only after its last use.",
            )
        if root is not None:
            found, passed = find_root(self.header.tree, root, self.path)
            other = Checkpoint(
                self.path, self.header, found, passed, unwrapped=unwrap, folder=self.folder, around=self.around
            )
        else:
            other = self.unwrapped(stripped=None if unwrap else ())
        other._is_lent = True
        return other

    def close(self) -> None:
        """Close the files. Afterwards, headers can still be read, but values cannot.

        A Checkpoint that ``lent`` returned leaves the files open.
        """
        for file in () if self._is_lent else self.header.handles.values():
            file.close()


def _metadata_kept(recipe: str | None) -> dict[str, str]:
    """Return the metadata stored in a recipe, for formats that cannot store metadata elsewhere; {} if there is none."""
    try:
        kept = json.loads(recipe or "{}").get("metadata", {})
        return {key: value for key, value in kept.items() if isinstance(value, str)}
    except (ValueError, AttributeError, RecursionError):
        return {}
