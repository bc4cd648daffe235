"""Notes on the checkpoint and the destination of ``fits`` and ``match``, and on the files in their folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import cast

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.opening import open_checkpoint
from ...destinations.hf.files import CONFIG
from ...errors import CheckpointError
from ...planning.target import TargetSpec
from ...storage.read.uri import scheme_of
from ...util.notes import notes_about
from ...util.text import escape
from ..model_folder.checks import contradictions
from ..model_folder.folder import ModelFolder, model_folder
from .argument_types import CheckpointLike
from .inputs import notes_on

__all__ = ["checkpoint_notes", "destination_notes"]


def checkpoint_notes(checkpoint: Checkpoint, folder: ModelFolder | None = None) -> list[str]:
    """Return the notes of ``inspect`` on an open checkpoint and the files in its folder, each with its path.

    Pass the checkpoint's ``folder`` if it has been read already.
    """
    notes = (*notes_on(checkpoint, 1), *contradictions(checkpoint, folder))
    return list(dict.fromkeys(notes_about(checkpoint.path, notes)))


def destination_notes(given: CheckpointLike, target: TargetSpec) -> Iterator[str]:
    """Yield the notes of ``inspect`` on a destination, each with its path.

    The destination is ``given``, a checkpoint or a configuration, and was loaded as ``target``. If it is a config.json,
    the notes are on the whole model in its folder; if the folder has no weights, its files are compared with the
    tensors of ``target``. Only the headers of the weights are read, and other parts that are needed to open a
    checkpoint. A remote checkpoint has no notes, because it is not opened a second time.
    """
    if target.keeps and not scheme_of(target.keeps):
        with open_checkpoint(_kept(target), target.keeps_root or ".", unwrap=False) as kept:
            yield from checkpoint_notes(kept.unwrapped())
    elif (place := _folder_with_config(given)) and target.companions:
        try:
            with open_checkpoint(place) as checkpoint:
                yield from checkpoint_notes(checkpoint, model_folder(checkpoint))
        except CheckpointError as error:
            if error.rule != "no checkpoint":
                yield f"the weights in {escape(place)} cannot be opened: {error.message.rstrip('.')}"
            yield from notes_about(place, _on_files(target))


def _kept(target: TargetSpec) -> CheckpointLike:
    return cast("CheckpointLike", target.kept) if target.kept is not None else target.keeps


def _folder_with_config(given: CheckpointLike) -> str:
    """Return the folder of a config.json; '' for any other destination."""
    path = os.fspath(given) if isinstance(given, (str, os.PathLike)) else ""
    return os.path.dirname(path) or "." if os.path.basename(path) == CONFIG else ""


def _on_files(target: TargetSpec) -> list[str]:
    """Return notes on files in the folder of a config.json that contradict the tensors of the model that it describes.

    ``target`` has these tensors, and the other files of the folder.
    """
    from ..model_folder.folder_checks import weights_notes  # imports many checks
    from ..model_folder.unreadable import unreadable_file_notes
    from ..model_folder.weights.shape_checks import DescribedTensor

    folder = ModelFolder("", target.companions)
    tensors = [
        DescribedTensor(key, info.dtype, info.shape, target.ties.get(key, ""))
        for key, info in target.tensors.items()
        if key not in target.implied
    ]
    unread = unreadable_file_notes(folder, folder)
    return [*unread, *weights_notes(tensors, folder, folder)]
