"""Lays out the weights of a diffusers pipeline: files in the folder of each component, next to its other files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from ...errors import ConfigError, OutputError
from ...formats.base.format_table import indexed_name, is_weights
from ...formats.base.header import IndexFile, OutputLayout, OutTensor, Writer
from ...formats.base.sharded_writer import IndexedShards
from ...formats.unsupported.folders import PIPELINE, object_in, pipeline_index
from ...planning.plan.step import Step
from ...storage.read.base import Folder
from ...storage.read.uri import open_source, scheme_of
from ...tensors.dtypes import DTYPES
from ...util.text import escape, listing
from .option_names import OPTIONS, Spelling

__all__ = [
    "ComponentWriter",
    "check_pipeline",
    "check_subfolder",
    "component_files",
    "component_notes",
    "component_weights",
]


CONFIG, DTYPE = "config.json", ("dtype", "torch_dtype")
"""The configuration of a component that is a model, and its fields with the dtype; tokenisers have other files."""


class ComponentWriter(Writer, Protocol):
    """The interface of a writer that writes a folder for each component of a pipeline."""

    def components(self, tensors: Sequence[OutTensor], known: Sequence[str]) -> dict[str, list[OutTensor]]:
        """Return the tensors of each component; raises OutputError for a tensor of an unknown component."""
        ...

    def sharding_of(self, library: str) -> IndexedShards:
        """Return the names of the files of a component that this library saves."""
        ...

    def stripped(self, tensors: Sequence[OutTensor]) -> list[OutTensor]:
        """Return tensors of one component with their keys in its files."""
        ...


def check_pipeline(path: str, spelling: Spelling = OPTIONS) -> dict[str, str]:
    """Return {component: its library} for the pipeline in the folder ``path``; raises ConfigError if there is none.

    Components that the pipeline does not use have no library, and are left out.
    """
    if scheme_of(path):
        raise ConfigError(
            f"{spelling.given('--to', 'diffusers')} cannot write to the address {escape(path)}.",
            hint="Write into a folder on this machine, which has the other files of a pipeline.",
        )
    found = _libraries(path)
    own = [name for name in sorted(os.listdir(path)) if is_weights(name)] if found else []
    if own:
        raise ConfigError(
            f"{escape(path)} has weights next to the folders of its components ({listing(own, 2, where='')}): ckpt "
            "would not read it as a pipeline.",
            hint="Move these weights to another folder.",
        )
    if not found:
        raise ConfigError(
            f"{escape(path)} has no {PIPELINE}, or one that lists no components of a pipeline.",
            hint="First copy the other files of such a pipeline (configurations, tokenisers) into this folder: ckpt "
            "writes only the weights.",
        )
    return found


def component_files(
    writer: ComponentWriter,
    tensors: Sequence[OutTensor],
    metadata: Mapping[str, str],
    path: str,
    sharded: Callable[[Sequence[OutTensor]], list[list[OutTensor]]],
) -> tuple[dict[str, OutputLayout], dict[str, IndexFile]]:
    """Return the layout of each file with tensors, and the indexes of shards, by their paths in the folder ``path``.

    ``sharded`` divides the tensors of a component between its shards. Raises ConfigError if the folder has no pipeline.
    Raises OutputError if a tensor belongs to no component of the pipeline, or if a component is not a folder.
    """
    files: dict[str, OutputLayout] = {}
    index: dict[str, IndexFile] = {}
    libraries = check_pipeline(path)
    for component, own in writer.components(tensors, list(libraries)).items():
        check_subfolder(path, component, "a folder that has the component's files, except for its weights")
        shards, sharding = sharded(own), writer.sharding_of(libraries[component])
        layouts = {
            name: (writer.stripped(shard), writer.layout(shard, metadata, ()))
            for name, shard in zip(sharding.names(len(shards)), shards, strict=True)
        }
        files |= {f"{component}/{name}": layout for name, (_, layout) in layouts.items()}
        index |= {f"{component}/{name}": _inside(component, made) for name, made in sharding.index(layouts).items()}
    return files, index


def _libraries(path: str) -> dict[str, str]:
    """Return {component: its library}, as the index of a pipeline lists them; {} if there is no index."""
    source = open_source(path) if os.path.isdir(path) else None
    index = pipeline_index(source) if isinstance(source, Folder) else {}
    return {
        name: value[0]
        for name, value in index.items()
        if isinstance(value, list) and value and isinstance(value[0], str) and not name.startswith("_")
    }


def check_subfolder(path: str, name: str, by: str) -> None:
    """Raise OutputError if a subfolder that is written into is a link or a file: a new folder would replace it.

    ``by`` is what the user should replace it by.
    """
    place = os.path.join(path, name)
    if os.path.islink(place) or (os.path.lexists(place) and not os.path.isdir(place)):
        raise OutputError(
            f"{escape(place)} is {'a link' if os.path.islink(place) else 'a file'}, not a folder of the output.",
            hint=f"Replace {escape(place)} by {by}.",
        )


def _inside(component: str, index: IndexFile) -> IndexFile:
    """Return a function that makes the same index from file names that begin with the component's folder."""
    return lambda read: index(lambda name, offset, nbytes: read(f"{component}/{name}", offset, nbytes))


def component_weights(path: str, components: Sequence[str]) -> Iterator[str]:
    """Yield the paths of weights and of their indexes in the folders ``components`` of the folder ``path``."""
    for component in components:
        yield from (f"{component}/{name}" for name in _weights_in(path, component))


def component_notes(path: str, written: Sequence[str], steps: Sequence[Step]) -> Iterator[str]:
    """Yield notes on components that got no weights although they are models, or that still have other weights.

    ``path`` is the output folder, ``written`` are the components with new weights, and ``steps`` their tensors. There
    are also notes on configurations that state another dtype. If ``written`` is empty, nothing is yielded.
    """
    others = [name for name in _libraries(path) if name not in written] if written else []
    for component in written:
        if not os.path.isfile(os.path.join(path, component, CONFIG)):
            yield f"{escape(component)} has no {CONFIG}, which loaders need: copy it from another pipeline"
        yield from _dtype_notes(path, component, steps)
    for component in others:
        if weights := _weights_in(path, component):
            yield f"{escape(component)} still has weights from before this run: {listing(weights, 2, where='')}"
        elif os.path.isfile(os.path.join(path, component, CONFIG)):
            yield f"{escape(component)} has no weights: no tensor belongs to this component of the pipeline"


def _dtype_notes(path: str, component: str, steps: Sequence[Step]) -> Iterator[str]:
    """Yield a note if the configuration of a component states another dtype than all floats of its new weights have."""
    folder = open_source(os.path.join(path, component))
    config = object_in(folder, CONFIG) if isinstance(folder, Folder) else {}
    field = next((name for name in DTYPE if config.get(name)), "")
    own = {step.dtype for step in steps if step.key.startswith(f"{component}.") and DTYPES[step.dtype].kind == "float"}
    if field and len(own) == 1 and str(config[field]).removeprefix("torch.") not in own:
        yield (
            f"{escape(component)}/{CONFIG} says {escape(str(config[field]))} ({field}), but its new weights are "
            f"{own.pop()}, and ckpt does not change this file: loaders cast them back unless you correct the field"
        )


def _weights_in(path: str, component: str) -> list[str]:
    folder = os.path.join(path, component)
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return [name for name in names if is_weights(name) or indexed_name(name)]
