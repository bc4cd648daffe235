"""``fits``: says whether a checkpoint loads into a destination, and which transplant makes it fit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

from ..analysis.fits.compare import compared, layer_notes
from ..analysis.fits.fit import Fit
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.opening import open_checkpoint, path_of
from ..destinations._load import load_target
from ..errors import CheckpointError
from ..planning.target import TargetSpec
from ..planning.transplant.by_place import HEAD
from ..storage.json_text import read_json
from ..storage.read.uri import shown
from ..storage.small_files import read_file
from ..tensors.find_codes import find_codes
from ..util.notes import notes_about
from ..util.text import escape
from .diff import folder_differences
from .inputs.argument_types import CheckpointLike, checked
from .inputs.fitting_notes import checkpoint_notes, destination_notes
from .inputs.older_names import older_name_notes
from .model_folder.folder import ModelFolder, model_folder, model_folder_at
from .model_folder.layers.row_order import renaming_notes

__all__ = ["fits"]

CONFIG = "config.json"
WITHOUT_VERSIONS = ("safetensors", "sharded safetensors")
"""Formats that do not store ``_metadata``, the attribute of a state dict in which torch records module versions."""


@checked
def fits(
    source: CheckpointLike, destination: CheckpointLike, *, task: str | None = None, root: str | None = None
) -> Fit:
    """Return whether a checkpoint loads into a destination; reads only headers.

    It loads if ``load_state_dict(strict=True)`` of the destination accepts it (``Fit.strict``), or if the destination
    is a model of transformers whose ``from_pretrained`` loads the whole checkpoint (``Fit.loader``).

    ``destination`` is a configuration, a model's folder (its config.json is used) or another checkpoint. ``task`` is
    the ESPnet task, if an ESPnet configuration fits several tasks. ``root`` is the dotted path of the state dict in
    ``source``. Keys that the destination's library ties when it loads may be missing, and other dtypes are allowed,
    because loading casts them. If ``load_state_dict`` does not accept the checkpoint, the result has the command of a
    transplant that makes it fit; this transplant is planned but not carried out. If the destination is a quantised
    model, keys and shapes are those of its weights; a checkpoint that has them is decoded, by its headers, and compared
    with the class that config.json describes, too. The result has the notes of
    ``inspect`` on both, and on files in their folders that contradict the weights. If source and destination are both
    model folders, notes list how their tokenisers differ, and which fields of their configurations let equal weights
    compute different results.

    Raises the errors of ``open_checkpoint`` and ``load_target``.
    """
    place, said = _destination(destination)
    target = load_target(place, task=task)
    with open_checkpoint(source, root, unwrap=False) as raw:
        checkpoint = raw.unwrapped(destination=list(target.tensors))
        names = shown(path_of(source)), shown(path_of(place))
        versions = checkpoint.header.format not in WITHOUT_VERSIONS
        found = compared(names[0], checkpoint, names[1], target, has_versions=versions)
        found = replace(_as_codes(found, checkpoint, target), stripped=tuple(checkpoint.stripped))
        notes = [*said, *_notes(found, checkpoint, target, place)]
        if not found.strict:
            notes += older_name_notes((source, destination), root)
            from .from_pretrained import with_loader
            from .transplant_that_fits import with_command

            found = with_loader(found, checkpoint, target)
            if target.cache_key:
                dict(target.vocabulary)  # read it now: plans need it, and do not cache the targets that they build
            found = with_command(found, checkpoint, target, source, place, task=task, root=root)
            config = ModelFolder("", target.companions).config
            notes += renaming_notes(found.renamed.items(), checkpoint, target.tensors.keys(), config)
        elif _is_quantised_folder(place):
            from .checking.decoded_class import with_decoded_class

            found = with_decoded_class(found, os.fspath(cast("str", place)))
        ours = _folder_of(place, target)
        notes = [*_advice(found, checkpoint, ours, target, source, root), *notes, *found.notes]
        notes += _model_notes(found, checkpoint, ours, target)
        notes += folder_differences(source, place) if checkpoint.header.stored else []
        uncopied = {**found.uncopied, **dict(_extra_state(found, checkpoint, target))}
    return replace(found, uncopied=uncopied, notes=tuple(dict.fromkeys(notes)))


def _extra_state(fit: Fit, checkpoint: Checkpoint, target: TargetSpec) -> Iterator[tuple[str, str]]:
    """Yield (key, reason) for the extra state of modules that only the checkpoint or only the destination has."""
    here = {*checkpoint.extra_state}
    for key in sorted(here ^ {*target.extra_state}):
        yield key, f"extra state, which only {escape(fit.first if key in here else fit.second)} has"


def _destination(given: CheckpointLike) -> tuple[CheckpointLike, list[str]]:
    """Return the path from which to read keys and shapes, and a list with a note, or empty.

    For the folder of a model, the path is its config.json. But no module can be built from the config.json of a
    quantised model, so its path is the folder with the weights. There is a note only if ``given`` is the config.json of
    a quantised model, and the folder replaces it.
    """
    if not isinstance(given, (str, os.PathLike)):
        return given, []
    path = os.fspath(given)
    if os.path.isdir(path):
        fields = _configuration(os.path.join(path, CONFIG))
        is_plain = fields and fields.get("quantization_config") is None
        return (os.path.join(path, CONFIG), []) if is_plain else (given, [])
    folder = os.path.dirname(path) or "."
    if os.path.basename(path) == CONFIG and _configuration(path).get("quantization_config") is not None:
        with suppress(CheckpointError), open_checkpoint(folder):
            said = f"{escape(path)} describes a quantised model: keys and shapes are read from the weights next to it"
            return folder, [said]
    return given, []


def _is_quantised_folder(place: CheckpointLike) -> bool:
    """Return whether ``place`` is the folder of a quantised model, whose weights are compared with its config.json."""
    if not isinstance(place, (str, os.PathLike)) or not os.path.isdir(place):
        return False
    return _configuration(os.path.join(os.fspath(place), CONFIG)).get("quantization_config") is not None


def _configuration(path: str) -> dict[str, Any]:
    """Return the fields of a config.json of transformers; {} for any other file."""
    try:
        fields = read_json(read_file(path))
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) and ("model_type" in fields or "architectures" in fields) else {}


def _notes(fit: Fit, checkpoint: Checkpoint, target: TargetSpec, place: CheckpointLike) -> Iterator[str]:
    yield from checkpoint_notes(checkpoint)
    yield from target.notes
    yield from destination_notes(place, target)
    yield from _encoding_notes(fit, checkpoint, target)
    yield from layer_notes(fit, list(checkpoint), list(target.tensors))


def _as_codes(fit: Fit, checkpoint: Checkpoint, target: TargetSpec) -> Fit:
    """Return ``fit`` without dtype differences of codes, if only one of checkpoint and destination is quantised.

    A cast between the dtypes of codes and weights does not decode the codes, so such a difference is not reported as a
    cast. The result also has the number of quantised weights of the checkpoint.
    """
    here, there = checkpoint.codes, find_codes(target.tensors)
    if bool(here) == bool(there):
        return fit
    codes = {one.codes for one in (*here.tensors, *there.tensors)}
    retyped = tuple(pair for pair in fit.retyped if pair.key not in codes)
    return replace(fit, retyped=retyped, quantised=len(here.tensors))


def _encoding_notes(fit: Fit, checkpoint: Checkpoint, target: TargetSpec) -> Iterator[str]:
    """Yield a note if only one of checkpoint and destination is quantised."""
    here, there = checkpoint.codes, find_codes(target.tensors)
    first, second = escape(fit.first), escape(fit.second)
    if here and not there:
        yield f"{first} is quantised and {second} is not: ckpt transplant --encoding dequantize decodes {first}"
    if there and not here:
        yield f"{second} is quantised and {first} is not"


def _advice(
    fit: Fit, checkpoint: Checkpoint, ours: ModelFolder, target: TargetSpec, source: CheckpointLike, root: str | None
) -> Iterator[str]:
    """Yield a note with another command if it keeps trained weights that the command in ``fit`` would initialise."""
    if fit.command and fit.counts.get("initialised") and ours.config:
        from .resize.one_expert import one_expert_notes

        yield from one_expert_notes(source, model_folder(checkpoint).config, ours.config, target, root)


def _folder_of(place: CheckpointLike, target: TargetSpec) -> ModelFolder:
    """Return the configuration and tokeniser files of the destination ``place``, which was loaded as ``target``.

    These are the files that an output would get or, if there are none, the files in the folder ``place``.
    """
    if target.companions:
        return ModelFolder("", target.companions)
    if isinstance(place, (str, os.PathLike)) and os.path.isdir(place):
        return model_folder_at(os.fspath(place))
    return ModelFolder("")


def _model_notes(fit: Fit, checkpoint: Checkpoint, ours: ModelFolder, target: TargetSpec) -> Iterator[str]:
    """Yield notes on differences of two models other than keys and shapes; ``ours`` is the destination's folder."""
    theirs = model_folder(checkpoint)
    if (theirs.files and ours.files) or (theirs.parts and ours.parts):
        from .folder_differences import folder_difference_notes
        from .model_folder.config_fields import label_differences

        yield from folder_difference_notes(fit.first, theirs, fit.second, ours)
        shapes = [(key, info.shape) for key, info in checkpoint.items()]
        yield from label_differences(shapes, (fit.first, theirs.config), (fit.second, ours.config))
    if theirs.config and target.ties:
        from .model_folder.weights.shape_checks import DescribedTensor
        from .model_folder.weights.shared_embeddings import shared_embedding_notes
        from .model_folder.weights.tied_heads import stored_head_notes

        ties = checkpoint.ties
        tensors = [DescribedTensor(key, info.dtype, info.shape, ties.get(key, "")) for key, info in checkpoint.items()]
        stored = (*stored_head_notes(tensors, theirs), *shared_embedding_notes(tensors, theirs))
        yield from notes_about(checkpoint.path, stored)
    if theirs.config and not theirs.is_tied:
        for key, owner in target.ties.items():
            if key in checkpoint and owner in checkpoint and (HEAD.search(key) or HEAD.search(owner)):
                apart = f"{escape(fit.first)} stores both {escape(key)} and {escape(owner)} as separate tensors"
                yield f"{apart}, but {escape(fit.second)} ties them: only one of the two tensors is used after loading"
