"""``fits``: says whether a checkpoint loads into a destination, and which transplant makes it fit."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from ..analysis.fits.compare import compared, layer_notes
from ..analysis.fits.fit import Fit
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.in_memory import path_of
from ..checkpoint.opening import open_checkpoint
from ..destinations._load import load_target
from ..errors import ConfigError
from ..planning.target import TargetSpec
from ..storage.json_text import read_json
from ..storage.read.uri import shown
from ..storage.small_files import read_file
from ..tensors.encodings._find import find_codes
from ..util.text import escape, listing, notes_about
from .fitting_command import with_command
from .inputs.argument_types import CheckpointLike
from .model_folder.adapter_beside import adapter_notes
from .model_folder.folder import ModelFolder, model_folder
from .model_folder.layers.row_order import renaming_notes
from .quantised_class import ignored_keys

__all__ = ["fits"]

CONFIG = "config.json"
WITHOUT_VERSIONS = ("safetensors", "sharded safetensors")
"""Formats that do not store ``_metadata``, the attribute of a state dict in which torch records module versions."""


def fits(
    source: CheckpointLike, destination: CheckpointLike, *, task: str | None = None, root: str | None = None
) -> Fit:
    """Return whether ``load_state_dict(strict=True)`` of a destination would accept a checkpoint; reads only headers.

    ``destination`` is a configuration, a model's folder (its config.json is used) or another checkpoint. ``task`` is
    the ESPnet task, if an ESPnet configuration fits several tasks. ``root`` is the dotted path of the state dict in
    ``source``. Keys that the destination's library ties when it loads may be missing, and other dtypes are allowed,
    because loading casts them. If the checkpoint does not fit, the result has the command of a transplant that makes it
    fit; this transplant is planned but not carried out. Raises what ``open_checkpoint`` and ``load_target`` raise.
    """
    place = _destination(destination)
    target = load_target(place, task=task)
    with open_checkpoint(source, root, unwrap=False) as raw:
        checkpoint = raw.unwrapped(destination=list(target.tensors))
        names = shown(path_of(source)), shown(path_of(place))
        versions = checkpoint.header.format not in WITHOUT_VERSIONS
        found = compared(names[0], checkpoint, names[1], target, has_versions=versions)
        found = replace(found, stripped=tuple(checkpoint.stripped))
        if not found.fits:
            found = with_command(found, checkpoint, target, source, place, task=task, root=root)
        notes = [*_notes(found, checkpoint, target), *found.notes]
    return replace(found, notes=tuple(dict.fromkeys(notes)))


def _destination(given: CheckpointLike) -> CheckpointLike:
    """Return the path of the config.json if ``given`` is the folder of a model; otherwise return ``given``.

    The folder of a quantised model is returned as it is: no module can be built from its configuration, but its weights
    have the keys and shapes.
    """
    if not isinstance(given, (str, os.PathLike)) or not os.path.isdir(given):
        return given
    config = os.path.join(os.fspath(given), CONFIG)
    try:
        fields = read_json(read_file(config))
    except (OSError, ValueError):
        return given
    known = isinstance(fields, dict) and ("model_type" in fields or "architectures" in fields)
    return config if known and fields.get("quantization_config") is None else given


def _notes(fit: Fit, checkpoint: Checkpoint, target: TargetSpec) -> Iterator[str]:
    yield from notes_about(checkpoint.path, checkpoint.notes)
    if checkpoint.folder is not None:
        yield from notes_about(checkpoint.path, adapter_notes(model_folder(checkpoint).adapter_beside))
    yield from target.notes
    yield from _encoding_notes(fit, checkpoint, target)
    yield from _loading_notes(fit, checkpoint, target)
    yield from layer_notes(fit, list(checkpoint), list(target.tensors))
    config = ModelFolder("", target.companions).config
    yield from renaming_notes(fit.renamed.items(), checkpoint, target.tensors.keys(), config)


def _encoding_notes(fit: Fit, checkpoint: Checkpoint, target: TargetSpec) -> Iterator[str]:
    """Yield a note if only the checkpoint is quantised, or only the destination."""
    here, there = checkpoint.codes, find_codes(target.tensors)
    first, second = escape(fit.first), escape(fit.second)
    if here and not there:
        yield f"{first} is quantised and {second} is not: --encoding dequantize decodes {first}"
    if there and not here:
        yield f"{second} is quantised and {first} is not"


def _loading_notes(fit: Fit, checkpoint: Checkpoint, target: TargetSpec) -> Iterator[str]:
    """Yield notes on what from_pretrained does that loading a state dict strictly does not."""
    if target.kind != "transformers" or target.recognise is None or fit.fits:
        return
    with suppress(ConfigError):
        known = target.recognise(checkpoint)
        if known.operations or 2 * len(known.names) > len(fit.missing):
            yield f"from_pretrained of {known.by} renames or converts tensors of this layout itself"
    name = _class_of(target) if fit.missing else ""
    ignored = ignored_keys(name, is_missing=True) if name else ()
    made = [key for key in fit.missing if any(re.search(pattern, key) for pattern in ignored)]
    if made:
        named = listing(made, 3, where="")
        yield f"from_pretrained of {escape(name)} initialises {named} itself, and accepts checkpoints without them"


def _class_of(target: TargetSpec) -> str:
    """Return the name of the class of transformers that a destination builds; '' if its config.json has none."""
    texts = [one.text for one in target.companions if one.name == CONFIG and one.text]
    named = read_json(texts[0]).get("architectures") if texts else None
    return str(named[0]) if isinstance(named, list) and named else ""
