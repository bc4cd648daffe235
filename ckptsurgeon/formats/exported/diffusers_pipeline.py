"""Reads a pipeline of diffusers as one model: ``model_index.json``, and a folder of weights for each component.

The keys of a component begin with its name: ``unet.conv_in.weight``. Components without weights, such as a scheduler or
a tokeniser, are not read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...errors import CheckpointError, ConfigError, FormatError
from ...storage.read.base import File, Folder, Source
from ...tensors.info import Storage, TensorInfo
from ...util.note_kind import NoteKind
from ...util.notes import Note, with_prefix
from ...util.text import escape, listing
from .._choosing import Choice, choose, note_of
from .._open import open_header
from ..base.flatten import named_once
from ..base.format_table import has_weights, is_exported, is_weights
from ..base.header import FilePrint, Header
from ..base.sharded_writer import folder_digest, folder_frame, folder_recipe
from ..unsupported.folders import PIPELINE, pipeline_index
from ._pipeline_writer import PipelineWriter

__all__ = ["FORMAT", "component_folder"]

_MOST = 16
"""The most subfolders of a pipeline: each is searched, which may cost a request over the network."""
CONFIG = "config.json"
_WITHOUT_WEIGHTS = ("Scheduler", "Tokenizer", "TokenizerFast", "Processor", "Extractor")
"""The ends of the names of classes that have no weights."""


class _Pipeline:
    name = "diffusers pipeline"
    magic: tuple[bytes, ...] = ()
    writer = PipelineWriter()

    def sniff(self, source: Source, head: bytes) -> bool:
        """Return whether a folder is a pipeline: it has no weights itself, but at least two components with weights.

        Returns False if it is not clear which file of a component to read: the error for the folder then names all
        components.
        """
        if not isinstance(source, Folder) or PIPELINE not in (names := source.names()) or any(map(is_weights, names)):
            return False
        try:
            return len(_components(source)[0]) > 1
        except CheckpointError:
            return False

    def read(self, source: Source, name: str = "") -> Header:
        """Return one header for all components.

        Raises FormatError if a component is not a state dict, or if tensors of two components get one key.
        """
        assert isinstance(source, Folder)
        parts: dict[str, Header] = {}
        components, others = _components(source)
        were = "it was" if len(others) == 1 else "they were"
        notes = [f"{PIPELINE} does not list {listing(others, 4, where='')}, so {were} not read"] if others else []
        try:
            for component, choice in components.items():
                inner = source.inside(component)
                header = open_header(choice.file or inner.file(choice.name), choice.name)
                parts[component] = header
                own = [*note_of(choice, {file.name for file in header.files}), *header.notes]
                notes += [with_prefix(f"{escape(component)}: ", note) for note in own]
            tree = named_once(one for component, header in parts.items() for one in _tensors(source, component, header))
        except BaseException:
            for header in parts.values():
                for file in header.handles.values():
                    file.close()
            raise
        return Header(
            format=f"{self.name} of {' and '.join(sorted({header.format for header in parts.values()}))}",
            tree=tree,
            files=tuple(_print(component, one) for component, header in parts.items() for one in header.files),
            handles=_handles(parts),
            metadata=(metadata := _metadata(parts)),
            notes=(
                f"read as one model: the components {listing([*parts], _MOST, where='')} of a pipeline; pass the "
                "folder of one to read it alone, or --root with its name",
                *notes,
                *_lost(source, parts),
                *_left(parts, metadata),
            ),
            recipe=folder_recipe(source),
            frame=lambda: _frame(source, parts),
        )


def component_folder(folder: Folder, component: str) -> Folder | None:
    """Return the folder of a component of a pipeline; None if ``folder`` has weights itself, or no component has any.

    Raises ConfigError if other components have weights, but not this one.
    """
    if any(map(is_weights, folder.names())):
        return None
    index = pipeline_index(folder)
    names = [name for name in folder.folders()[:_MOST] if name in index and _has_weights(folder.inside(name).names())]
    if names and component not in names:
        raise ConfigError(
            f"--root {escape(component)} is not a component of the pipeline that has weights.",
            hint=f"Use the name of such a component: {listing(names, _MOST, where='')}.",
        )
    return folder.inside(component) if names else None


def _frame(folder: Folder, parts: Mapping[str, Header]) -> str:
    """Return one digest for the bytes outside the tensors of all components.

    If ckptsurgeon wrote the folder, the digest in its recipe is returned.
    """
    if folder_recipe(folder) is None:
        return folder_digest({component: header.frame() for component, header in parts.items()})
    return folder_frame(
        folder, {_within(one, file.name): file.sha256 for one, header in parts.items() for file in header.files}
    )


def _components(folder: Folder) -> tuple[dict[str, Choice], list[str]]:
    """Return {component: the file to read} for all components with weights, and other subfolders that have weights.

    The index of the pipeline does not list these other subfolders. Raises FormatError if it is not clear which file of
    a component to read, or if there are too many subfolders.
    """
    inside, index = folder.folders(), pipeline_index(folder)
    if len(inside) > _MOST:
        raise FormatError(f"{escape(folder.uri)} has too many subfolders for a pipeline.", rule="pipeline")
    found, others = {}, []
    for name in inside:
        inner = folder.inside(name)
        names = inner.names()
        if not _has_weights(names):
            continue
        if name in index:
            found[name] = choose(inner, names)
        else:
            others.append(name)
    return found, others


def _lost(folder: Folder, found: Collection[str]) -> Iterator[Note]:
    """Yield a note on each component of the index that should have weights, but has none in the folder.

    ``found`` are the components with weights. An entry of null is a component that the pipeline does without.
    """
    inside = set(folder.folders())
    for name, entry in pipeline_index(folder).items():
        if name in found or not _is_component(entry):
            continue
        if name not in inside:
            why = "but there is no such folder"
        elif not (names := folder.inside(name).names()) and not folder.inside(name).folders():
            why = "but its folder is empty"
        elif _lacks_weights(names) and not entry[1].endswith(_WITHOUT_WEIGHTS):
            why = "but its folder has no weights"
        else:
            continue
        yield Note(NoteKind.MISSING_COMPONENT, f"{PIPELINE} lists the component {escape(name)}, {why}")


def _is_component(entry: object) -> bool:
    """Return whether an entry of the index is a component, [library, class]; other lists are settings."""
    if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(one, str) for one in entry):
        return False
    return bool(entry[1].isidentifier() and entry[1][0].isupper())


def _has_weights(names: Sequence[str]) -> bool:
    return has_weights(names) or any(map(is_weights, names))


def _lacks_weights(names: Collection[str]) -> bool:
    """Return whether the folder of a network has no weights, not even for Flax or ONNX; ``names`` are its files."""
    return CONFIG in names and not any(map(is_exported, names))


def _tensors(folder: Folder, component: str, header: Header) -> list[tuple[str, TensorInfo]]:
    """Return (key, tensor) for each tensor of a component; raises FormatError if the component is not a state dict.

    The name of the component is added in front of each key and each ``Storage.file``.
    """
    if not isinstance(header.tree, Mapping) or not all(map(_is_plain, header.tree.values())):
        raise FormatError(
            f"{escape(folder.uri)} cannot be read as one model: its component {escape(component)} is not a state dict "
            "of plain tensors.",
            hint="Pass the folder of a component.",
            rule="pipeline",
        )
    moved: dict[int, Storage] = {}  # tied tensors have one storage
    for info in header.tree.values():
        stored = info.storage
        moved.setdefault(id(stored), replace(stored, file=_within(component, stored.file)))
    return [(f"{component}.{key}", replace(info, storage=moved[id(info.storage)])) for key, info in header.tree.items()]


def _is_plain(value: Any) -> bool:
    return isinstance(value, TensorInfo) and value.storage is not None and not value.parts


def _handles(parts: Mapping[str, Header]) -> dict[str, File]:
    return {_within(one, name): file for one, header in parts.items() for name, file in header.handles.items()}


def _metadata(parts: Mapping[str, Header]) -> dict[str, str]:
    """Return the metadata of all components; an entry is left out if two components have different values for it."""
    found: dict[str, str] = {}
    differing: set[str] = set()
    for key, value in (entry for header in parts.values() for entry in header.metadata.items()):
        if found.setdefault(key, value) != value:
            differing.add(key)
    return {key: value for key, value in found.items() if key not in differing}


def _left(parts: Mapping[str, Header], kept: Mapping[str, str]) -> list[str]:
    lost = sorted({key for header in parts.values() for key in header.metadata} - kept.keys())
    return [f"left out: metadata that differ between components: {listing(lost, where='')}"] if lost else []


def _within(component: str, name: str) -> str:
    return f"{component}/{name}"


def _print(component: str, one: FilePrint) -> FilePrint:
    return replace(one, name=_within(component, one.name))


FORMAT = _Pipeline()
