"""Writes the components of a diffusers pipeline: each is a folder with safetensors and other files."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from ...errors import OutputError
from ...util.text import escape, listing
from .._safetensors_layout import SafetensorsWriter
from ..base.header import ExtraEntries, OutputLayout, OutTensor
from ..base.sharded_writer import OF_DIFFUSERS, IndexedShards, OneFile

__all__ = ["PipelineWriter"]

_NAME = re.compile(r"[A-Za-z0-9_-]+")
"""Matches names of components, which become names of folders."""


class _ComponentLayout:
    """The layout of one file of a component.

    Keys in the file lack the component's name: ``conv_in.weight``. Keys in ``slots`` have it: ``unet.conv_in.weight``.
    """

    def __init__(self, layout: OutputLayout, component: str) -> None:
        self._layout = layout
        self._names = {f"{component}.{key}": key for key in layout.slots}
        self.slots: Mapping[str, tuple[int, int]] = {key: layout.slots[name] for key, name in self._names.items()}
        self.size = layout.size

    def frame(self, checksums: Mapping[str, int], recipe: Sequence[str]) -> Iterator[tuple[int, bytes]]:
        """Return the bytes outside the tensors, as (offset, bytes) in order."""
        own = {name: checksums[key] for key, name in self._names.items() if key in checksums}
        return iter(self._layout.frame(own, recipe))


class PipelineWriter:
    """Lays out the files of a pipeline; the first part of each key is the name of its component."""

    name = "diffusers"
    sharding = OneFile("diffusers")
    suffixes: tuple[str, ...] = ()
    shares = False
    most = SafetensorsWriter.most
    dtypes = SafetensorsWriter.dtypes
    carries = False

    def components(self, tensors: Sequence[OutTensor], known: Sequence[str]) -> dict[str, list[OutTensor]]:
        """Return {component: its tensors}; raises OutputError for a tensor of a component that is not ``known``.

        If a tensor is tied to a tensor of another component, both components store the values.
        """
        found: dict[str, list[OutTensor]] = defaultdict(list)
        for tensor in tensors:
            component, dot, _ = tensor.key.partition(".")
            if not dot or component not in known or not _NAME.fullmatch(component):
                raise OutputError(
                    f"{escape(tensor.key)} belongs to no component of the pipeline: {listing(known, where='')}.",
                    hint="Use --layout diffusers, or rename the keys: unet.conv_in.weight is in the component unet.",
                )
            apart = tensor.alias_of.partition(".")[0] != component
            found[component].append(tensor._replace(alias_of="") if apart else tensor)
        return dict(found)

    def sharding_of(self, library: str) -> IndexedShards:
        """Return the sharding of a component: the file names that its library (transformers or diffusers) uses."""
        return SafetensorsWriter.sharding if library == "transformers" else OF_DIFFUSERS

    def layout(
        self,
        tensors: Sequence[OutTensor],
        metadata: Mapping[str, str],
        recipe: Sequence[str],
        beside: ExtraEntries | None = None,
    ) -> OutputLayout:
        """Return the layout of a file of one component; all keys of ``tensors`` begin with its name."""
        component = tensors[0].key.partition(".")[0]
        return _ComponentLayout(SafetensorsWriter().layout(self.stripped(tensors), metadata, recipe), component)

    def stripped(self, tensors: Sequence[OutTensor]) -> list[OutTensor]:
        """Return a component's tensors with their keys in its files: ``conv_in.weight`` for ``unet.conv_in.weight``."""
        return [one._replace(key=one.key.partition(".")[2], alias_of=one.alias_of.partition(".")[2]) for one in tensors]
