"""Notes on modules of a sentence-transformers folder that lack files, or do not fit the network or each other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from ....checkpoint.opening import open_checkpoint
from ....destinations.hf.sentence_modules import MODULES
from ....errors import CheckpointError
from ....storage.read.uri import leads_out, scheme_of
from ....tensors.info import TensorInfo
from ....util.note_kind import NoteKind
from ....util.notes import Note, notes_of
from ....util.text import escape, shape_text
from ..folder import ModelFolder
from .modules import Module, config_of, is_weights_of, modules_in, pooling_modes, settings_in, weights_in

__all__ = ["sentence_notes"]

_WIDTHS = ("word_embedding_dimension", "embedding_dimension")
"""Fields of a pooling: the width of what it pools. The second name is that of version 6."""
_WITHOUT_WEIGHTS = ("Pooling",)
_WITH_SETTINGS = ("CNN", "Dense", "LSTM", "LayerNorm", "Transformer", "WeightedLayerPooling", *_WITHOUT_WEIGHTS)
"""Classes of modules that cannot be loaded without their config.json."""
_WITH_WEIGHTS = tuple(name for name in _WITH_SETTINGS if name not in _WITHOUT_WEIGHTS)
_OF_SAME_WIDTH = ("Dropout", "LayerNorm", "Normalize")
"""Classes of modules whose outputs are as wide as their inputs."""


def sentence_notes(folder: ModelFolder) -> Iterator[Note]:
    """Yield notes on the modules that modules.json lists: missing files, and widths that contradict each other."""
    width = folder.config.get("hidden_size")
    yield from _pooling_notes(folder, width)
    modules = modules_in(folder)
    for module in modules:
        yield from _missing_notes(folder, module)
        if module.kind == "Dense":
            yield from _dense_notes(folder, module)
    yield from _width_notes(folder, modules, width)


@notes_of(NoteKind.CONFIGURATION)
def _pooling_notes(folder: ModelFolder, width: object) -> Iterator[str]:
    """Yield a note for each pooling in a subfolder whose width is not ``hidden_size`` in config.json."""
    for name in (one.name for one in folder.files if one.name.endswith("/config.json")):
        fields = settings_in(folder, name)
        for field in _WIDTHS:
            if type(fields.get(field)) is type(width) is int and fields[field] != width:
                yield f"{escape(name)} has {field} {fields[field]}, but the network has hidden_size {width}"


@notes_of(NoteKind.MISSING_COMPONENT)
def _missing_notes(folder: ModelFolder, module: Module) -> Iterator[str]:
    """Yield a note if a module lacks its settings or its weights; none if its files are left out of the output."""
    if not module.place or (f"{module.place}/" in folder.left and leads_out(_beside_index(folder, module.place))):
        return
    listed = f"{MODULES} lists {escape(module.place)} ({escape(module.kind)}), but its folder has no"
    names = [*(one.name for one in folder.files), *folder.left]
    if module.kind in _WITH_SETTINGS and config_of(module) not in names:
        yield f"{listed} config.json"
    if module.kind in _WITH_WEIGHTS and not any(is_weights_of(module, name) for name in names):
        yield f"{listed} weights"


def _beside_index(folder: ModelFolder, name: str) -> str:
    """Return the path of a file or folder that is in the same folder as modules.json."""
    index = next(one.path for one in folder.files if one.name == MODULES)
    return os.path.join(os.path.dirname(index), name)


def _dense_notes(folder: ModelFolder, module: Module) -> Iterator[Note]:
    """Yield a note if the weights of a dense layer cannot be read, or have another shape than its settings say.

    Weights at addresses are not read.
    """
    file, fields = weights_in(folder, module), settings_in(folder, config_of(module))
    if file is None or scheme_of(file.path):
        return
    tensors: Mapping[str, TensorInfo] = {}
    try:
        with open_checkpoint(file.path) as opened:
            tensors = dict(opened.items())
    except CheckpointError as error:
        yield Note(NoteKind.UNREADABLE_FILE, error.message.removesuffix("."))
    if tensors and "linear.weight" not in tensors:
        yield Note(NoteKind.MISSING_COMPONENT, f"{escape(file.name)} has no linear.weight, the weight of the module")
    info, sizes = tensors.get("linear.weight"), (fields.get("out_features"), fields.get("in_features"))
    if info is not None and all(type(size) is int for size in sizes) and info.shape != sizes:
        said = (
            f"{escape(config_of(module))} has in_features {sizes[1]} and out_features {sizes[0]}, but linear.weight in "
            f"{escape(file.name)} has shape {shape_text(info.shape)}"
        )
        yield Note(NoteKind.CONFIGURATION_REFUSED, said)


@notes_of(NoteKind.CONFIGURATION_REFUSED)
def _width_notes(folder: ModelFolder, modules: list[Module], width: Any) -> Iterator[str]:
    """Yield a note for each dense layer that takes another width than the modules before it have."""
    for module in modules:
        fields = settings_in(folder, config_of(module)) if module.place else {}
        if module.kind == "Pooling" and type(width) is int:
            width *= len(pooling_modes(fields))
        elif module.kind == "Dense":
            taken = fields.get("in_features")
            if type(taken) is type(width) is int and taken != width:
                yield f"{escape(config_of(module))} has in_features {taken}, but the modules before it are {width} wide"
            width = fields.get("out_features")
        elif module.kind not in ("Transformer", *_OF_SAME_WIDTH):
            width = None
