"""``match``: proposes rules and operations that turn a source's tensors into a destination's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from ..analysis.match.operations.propose import with_operations
from ..analysis.match.proposal import Proposal
from ..analysis.match.propose import propose
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.opening import open_checkpoint, path_of
from ..destinations._load import is_configuration, load_target
from ..errors import ConfigError
from ..planning.target import TargetSpec
from ..storage.read.uri import shown
from ..tensors.info import TensorInfo
from ..util.text import count, escape
from .inputs.argument_types import CheckpointLike, Path, Progress, checked
from .inputs.fitting_notes import checkpoint_notes, destination_notes
from .inputs.proposal_file import check_proposal_file, write_proposal
from .model_folder.folder import ModelFolder, model_folder_at
from .model_folder.layers.found_heads import found_heads_notes
from .model_folder.layers.row_order import renaming_notes, row_orders
from .transplant.recognition import layouts_between

__all__ = ["match"]


@checked
def match(
    source: CheckpointLike,
    destination: CheckpointLike,
    *,
    values: bool = False,
    output: Path | None = None,
    force: bool = False,
    wait: float | None = None,
    task: str | None = None,
    root: str | None = None,
    progress: Progress | None = None,
) -> Proposal:
    """Propose the ``--map`` rules and the operations that turn a source's tensors into a destination's.

    By default names and shapes are compared. With ``values``, ``destination`` is a checkpoint with the same network,
    perhaps of another dtype; the proposal then follows from values, and each proposed pair of tensors has been
    compared. If several keys fit equally well, none of them is chosen. ``output`` is a file for the answer, a recipe of
    ``rename``, which is replaced if ``force`` is set. ``wait`` is the time in seconds to wait for another run that
    writes it. ``destination`` is a configuration or a checkpoint. ``task`` is the ESPnet task, if an ESPnet
    configuration fits several tasks; ``root`` is the dotted path of the state dict in ``source``. The result has the
    notes of ``inspect`` on both.

    Raises the errors of ``open_checkpoint`` and ``load_target``, ConfigError if ``destination`` has no values,
    PlanError if there is nothing to write, OutputError if ``output`` exists (without ``force``) or cannot be written.
    """
    target_file = None if output is None else os.fspath(output)
    if target_file is not None:
        check_proposal_file(target_file, force=force)
    with open_checkpoint(source, root, unwrap=False) as raw:
        if values:
            found, checkpoint = _by_values(raw, source, destination, progress, for_file=target_file is not None)
        else:
            found, checkpoint = _by_headers(raw, source, destination, task, for_file=target_file is not None)
        if checkpoint.stripped:
            prefix = f"the {'prefix' if len(checkpoint.stripped) == 1 else 'prefixes'} {', '.join(checkpoint.stripped)}"
            was = "was" if len(checkpoint.stripped) == 1 else "were"
            said = f"{prefix} {was} removed from the keys of {escape(shown(checkpoint.path))}"
            found = replace(found, notes=(*found.notes, said))
        found = replace(found, notes=tuple(dict.fromkeys(found.notes)))
        if target_file is not None:
            place = os.fspath(source) if isinstance(source, (str, os.PathLike)) else ""
            write_proposal(target_file, found, checkpoint, place, root=root, force=force, wait=wait)
    return found


def _by_headers(
    raw: Checkpoint, source: CheckpointLike, destination: CheckpointLike, task: str | None, *, for_file: bool
) -> tuple[Proposal, Checkpoint]:
    """Return the proposal by names and shapes, and the checkpoint without the wrappers of its keys."""
    target = load_target(destination, task=task)
    checkpoint = _unwrapped(raw, target.tensors, for_file=for_file)
    found = propose(shown(path_of(source)), checkpoint, shown(path_of(destination)), target.tensors)
    config = _config(target)
    orders = row_orders(found.names.items(), checkpoint, target.tensors.keys(), config)
    found = with_operations(found, checkpoint, target.tensors, orders)
    notes = [*checkpoint_notes(checkpoint), *target.notes, *destination_notes(destination, target), *found.notes]
    notes += _layout_notes(checkpoint, target.tensors)
    notes += renaming_notes(found.names.items(), checkpoint, target.tensors.keys(), config)
    return replace(found, notes=tuple(notes)), checkpoint


def _by_values(
    raw: Checkpoint, source: CheckpointLike, destination: CheckpointLike, progress: Progress | None, *, for_file: bool
) -> tuple[Proposal, Checkpoint]:
    """Return the proposal by values, and the checkpoint without the wrappers of its keys.

    Raises ConfigError if ``destination`` is a configuration, which has no values.
    """
    from ..analysis.match.values.find import with_values  # imports numpy

    name = path_of(destination)
    if isinstance(destination, (str, os.PathLike)) and is_configuration(name):
        raise ConfigError(
            f"{escape(name)} is a configuration, which has no values to compare.",
            hint="Leave --values out, or name a checkpoint.",
        )
    with open_checkpoint(destination, unwrap=False, called="destination") as other:
        checkpoint = _unwrapped(raw, other, for_file=for_file)
        by_names = propose(shown(path_of(source)), checkpoint, shown(name), other)
        found = with_values(by_names, checkpoint, other, progress)
        notes = [*checkpoint_notes(checkpoint), *checkpoint_notes(other), *found.notes]
        if by_names.names and not found.names:
            alike = f"{len(by_names.names)} of {count(len(other), 'tensor')} of {escape(shown(name))}"
            notes.append(f"names and shapes match for {alike}: leave out --values to see the rules")
        notes += found_heads_notes((one.row for one in found.operations), (checkpoint, other))
        return replace(found, notes=(*notes, *_layout_notes(checkpoint, other, by_values=True))), checkpoint


def _unwrapped(raw: Checkpoint, destination: Mapping[str, TensorInfo], *, for_file: bool) -> Checkpoint:
    """Return the source without those wrappers of its keys that the destination does not have, as ``transplant`` does.

    If the proposal is written to a recipe (``for_file``), and the destination has some of the wrappers, all wrappers
    stay: ``unwrap`` in a recipe would remove all of them. The proposed rules then remove the others.
    """
    some = raw.unwrapped(destination=list(destination))
    return raw if for_file and [*some] != [*raw.unwrapped()] else some


def _layout_notes(checkpoint: Checkpoint, tensors: Mapping[str, TensorInfo], *, by_values: bool = False) -> list[str]:
    """Return a note if the tensors of source and destination have the names that two libraries give to one network.

    With ``by_values``, the proposal follows from the values, and may contradict the names. The note then does not say
    that no rules are needed.
    """
    between = layouts_between(checkpoint, tensors)
    if not between:
        return []
    family, here, there = between
    if by_values:
        return [
            f"both are networks of the family {family.name}: without a map, ckpt transplant converts the layout "
            f"{here.name} to {there.name} by names; the rules and operations here are what the values show"
        ]
    return [
        f"no --map is needed: both are networks of the family {family.name}, and ckpt transplant converts the "
        f"layout {here.name} to {there.name}"
    ]


def _config(target: TargetSpec) -> Mapping[str, object]:
    beside = ModelFolder("", target.companions)
    return beside.config or (model_folder_at(target.keeps).config if os.path.isdir(target.keeps) else {})
