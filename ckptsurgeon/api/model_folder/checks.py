"""Notes on contradictions between the files of a model's folder and its weights."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...checkpoint.checkpoint import Checkpoint
from ...destinations.hf.files import ADAPTER, CONFIG
from ...util.notes import Note, with_prefix
from ...util.text import escape
from .folder import ModelFolder, model_folder
from .layers.checks import layer_notes
from .layers.holes import gap_notes
from .weights.shape_checks import DescribedTensor

if TYPE_CHECKING:
    from ...planning.plan.plan import Plan

__all__ = [
    "contradictions",
    "converted_layer_notes",
    "folder_notes",
    "notes_beside",
    "numbered_gap_notes",
    "source_layer_notes",
    "sources_beside",
    "with_layers_said",
    "with_sources_said",
    "without_repeats",
]

_NUMBER = re.compile(r"\d")

# Notes on the files in the folders of a plan's sources, even if the output gets other files.


def source_layer_notes(checkpoint: Checkpoint, folder: ModelFolder) -> list[Note]:
    """Return notes on layers of a source that lack tensors, or have other tensors than its configuration implies.

    There are no notes if the source is a single shard. If the folder has no configuration, the only notes are on layers
    without any tensor, and on quantised tensors whose stored shape contradicts their codes. There are also notes on
    token lists that were changed after they were written together with the weights, or that the embedding contradicts.
    """
    if checkpoint.elsewhere:
        return []
    shapes = _shape_notes(checkpoint, folder.config)
    if folder.files:
        from .layers.rotary import frequency_notes
        from .tokenizer.changed_lists import changed_list_notes

        lists = (*changed_list_notes(checkpoint, folder), *_row_notes(checkpoint, folder))
        shapes = [*lists, *frequency_notes(checkpoint, folder.config), *shapes]
    if not _is_configured(folder):
        return [*numbered_gap_notes(list(checkpoint)), *shapes]
    from .weights.part_checks import part_notes

    decoded = {one.name for one in checkpoint.stored.codes.tensors} if checkpoint.stored else set[str]()
    tensors = [
        DescribedTensor(key, info.dtype, info.shape, is_quantised=key in decoded) for key, info in checkpoint.items()
    ]
    return [*layer_notes(tensors, folder.config), *part_notes(tensors, folder.config, checkpoint.codes), *shapes]


def numbered_gap_notes(keys: Sequence[str]) -> list[Note]:
    """Return notes on gaps in the numbers of layers and experts, for a checkpoint without a configuration."""
    return [*gap_notes(keys)] if any(map(_NUMBER.search, keys)) else []  # keys without a digit have no layers


def _shape_notes(checkpoint: Checkpoint, config: Mapping[str, Any] | None = None) -> list[Note]:
    """Return notes on stored shapes of quantised tensors that contradict their codes.

    ``config`` is the configuration of the model.
    """
    if not (checkpoint.codes or checkpoint.stored):
        return []
    from .codes.described_shapes import described_shape_notes

    return described_shape_notes(checkpoint, config)


def converted_layer_notes(plan: Plan, config: Mapping[str, Any]) -> list[Note]:
    """Return notes on tensors that a plan's output lacks, after the plan gave all tensors the names of transformers.

    The names of another layout, as in the source, do not show which tensors are missing. ``config`` is the
    configuration of the source.
    """
    from .weights.part_checks import part_notes

    tensors = [DescribedTensor(step.key, step.dtype, step.shape, step.tied_to) for step in plan.steps]
    return [*layer_notes(tensors, config), *part_notes(tensors, config)] if config else []


def _is_configured(folder: ModelFolder) -> bool:
    """Return whether a folder has a config.json or an adapter_config.json, even if the file cannot be read."""
    return bool(folder.config) or any(one.name in (CONFIG, ADAPTER) for one in folder.files)


def with_layers_said(plan: Plan, layers: Sequence[str], path: str, config: Mapping[str, Any]) -> Plan:
    """Return a plan with further notes: ``layers``, which ``source_layer_notes`` returned for one of its sources.

    ``path`` is the path of this source, and ``config`` its configuration. A note that applies to the source, but not to
    the output, gets the path as prefix.
    """
    if not layers:
        return plan
    from .weights.part_checks import part_notes

    tensors = [DescribedTensor(step.key, step.dtype, step.shape, step.tied_to) for step in plan.steps]
    own = {
        *layer_notes(tensors, config),
        *part_notes(tensors, config),
        *numbered_gap_notes([one.key for one in tensors]),
    }
    target = replace(plan.target, notes=tuple(note for note in plan.target.notes if note not in layers))
    said = (note if note in own else with_prefix(f"{escape(path)}: ", note) for note in layers)
    return replace(plan, target=target, notes=(*plan.notes, *(note for note in said if note not in plan.notes)))


def sources_beside(opened: Sequence[Checkpoint], destination: str) -> list[Checkpoint]:
    """Return the checkpoints that are in the same folder as a destination, which may be a folder or a file."""

    def folder_of(path: str) -> str:
        path = os.path.abspath(path)
        return path if os.path.isdir(path) else os.path.dirname(path)

    return [one for one in opened if destination and folder_of(one.path) == folder_of(destination)]


def without_repeats(plan: Plan, *sources: Checkpoint) -> Plan:
    """Return a plan in which no note on the output repeats a note on one of ``sources``.

    ``with_sources_said`` has already added the notes on the sources. Each begins with the path of its source.
    """
    begins = tuple(f"{escape(one.path)}: " for one in sources)
    said = {note.removeprefix(begin) for begin in begins for note in plan.notes if note.startswith(begin)}
    target = replace(plan.target, notes=tuple(note for note in plan.target.notes if note not in said))
    return replace(plan, target=target, notes=tuple(note for note in plan.notes if note not in said)) if said else plan


def with_sources_said(plan: Plan, opened: Sequence[Checkpoint], folders: Sequence[ModelFolder]) -> Plan:
    """Return a plan with notes on its sources: on missing layers, and on files that contradict layers or tokens.

    ``opened`` are the sources of the plan, and ``folders`` are their folders, in the same order. Each note begins with
    the path of the source.
    """
    found = dict[str, None]()
    for checkpoint, folder in zip(opened, folders, strict=False):
        layers = source_layer_notes(checkpoint, folder)
        adapter = _notes_on_adapter(checkpoint) if folder.files or folder.unlisted else ()
        if not folder.files or checkpoint.elsewhere:
            notes = [*layers, *adapter]
        else:
            from .folder_checks import source_file_notes

            notes = [*layers, *source_file_notes(checkpoint, folder), *adapter]
        found |= dict.fromkeys(with_prefix(f"{escape(checkpoint.path)}: ", note) for note in notes)
    if plan.verb in ("average", "merge") and any("inv_freq" in step.key for step in plan.steps):
        from .layers.rotary import unlike_frequency_notes

        found |= dict.fromkeys(unlike_frequency_notes(plan, opened))
    new = [note for note in found if note not in plan.notes]
    return replace(plan, notes=(*plan.notes, *new)) if new else plan


def folder_notes(plan: Plan, folder: ModelFolder, origin: ModelFolder | None = None) -> list[Note]:
    """Return notes on the files of a plan's output folder that contradict its weights or cannot be read.

    ``folder`` has these files, and ``origin`` is the folder that they are copied from. If both have the same tokeniser,
    the tokens of ``origin`` are used, so that its vocabulary is not read a second time.
    """
    read = origin if origin is not None and origin.tokenizer == folder.tokenizer else folder
    steps = [step for step in plan.steps if step.key not in plan.target.implied]  # only tensors that the output stores
    if not folder.files and not read.files and len({step.dtype for step in steps}) < 2:
        return []  # without files, layers can only be compared with each other, by their dtypes
    tensors = [DescribedTensor(step.key, step.dtype, step.shape, step.tied_to) for step in steps]
    if not folder.files and not read.files:
        return [*layer_notes(tensors, {})]
    from .folder_checks import output_file_notes

    former = [DescribedTensor(step.source_key or step.key, step.dtype, step.shape, step.tied_to) for step in steps]
    return output_file_notes(tensors, former, folder, read, origin)


def contradictions(checkpoint: Checkpoint, folder: ModelFolder | None = None) -> list[Note]:
    """Return notes on missing layers of a checkpoint, and on files in its folder that contradict its weights.

    Pass the checkpoint's ``folder`` if it has been read already.
    """
    adapter = _notes_on_adapter(checkpoint)
    if checkpoint.folder is not None:
        return [*notes_beside(checkpoint, folder), *adapter]
    return [] if checkpoint.elsewhere else [*numbered_gap_notes(list(checkpoint)), *_shape_notes(checkpoint), *adapter]


def _notes_on_adapter(checkpoint: Checkpoint) -> tuple[Note, ...]:
    from ..lora.adapter_files import adapter_of  # a plain file needs no imports of adapters

    return adapter_of(checkpoint)[1]


def notes_beside(checkpoint: Checkpoint, folder: ModelFolder | None = None) -> list[Note]:
    """Return notes on the files in the folder of an open checkpoint that contradict its weights.

    Pass the checkpoint's ``folder`` if it has been read already. There are no notes for a single shard. For a file in a
    folder without a configuration, the only notes are on quantised tensors whose stored shape contradicts their codes.
    """
    folder = folder or model_folder(checkpoint)
    if checkpoint.elsewhere:
        return []
    shapes = _shape_notes(checkpoint, folder.config)
    if folder.config:
        from .layers.rotary import frequency_notes

        shapes += frequency_notes(checkpoint, folder.config)
    gaps = shapes if _is_configured(folder) else [*numbered_gap_notes(list(checkpoint)), *shapes]
    if not folder.files:
        return gaps if checkpoint.folder is not None and folder.path == checkpoint.folder.uri else shapes
    from .folder_checks import file_notes

    return list(dict.fromkeys((*gaps, *file_notes(checkpoint, folder), *_row_notes(checkpoint, folder))))


def _row_notes(checkpoint: Checkpoint, folder: ModelFolder) -> Iterator[Note]:
    """Yield notes on embedding rows that contradict the token list. Some of the rows are read from the file."""
    from .weights.token_rows import last_row_notes, token_pair_notes

    yield from last_row_notes(checkpoint, folder)
    yield from token_pair_notes(checkpoint, folder)
