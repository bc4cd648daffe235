"""Notes on files of an earlier model in the folder where an output was written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Sequence
from contextlib import suppress

from ...checkpoint.opening import open_checkpoint
from ...errors import CheckpointError
from ...formats.unsupported.folders import PIPELINE
from ...planning.plan.files import PlanCompanion
from ...storage.read.uri import read_small
from ...util.text import escape, listing
from .checks import notes_beside
from .folder import ModelFolder, model_folder

__all__ = ["earlier_files_notes"]


def earlier_files_notes(output: str, written: Collection[str], planned: Sequence[PlanCompanion]) -> tuple[str, ...]:
    """Return notes on older files in the folder of an output, and on contradictions between the files and its weights.

    ``output`` is the path of the output. ``written`` has the names of the files that were written in addition to the
    weights. ``planned`` has the files that an output folder would get; existing files with the same content are not
    reported. There are no notes if the output cannot be opened by its path.
    """
    with suppress(CheckpointError), open_checkpoint(output) as checkpoint:
        folder = model_folder(checkpoint)
        if checkpoint.elsewhere:
            return ()
        same = {one.name for one in planned if one.name not in written and _is_there(folder, one)}
        there = (*folder.files, *folder.licences)
        stay = [one.name for one in there if one.name not in written and one.name not in same]
        # the folder of a single file may have any other files
        left = (*folder.cards, *folder.left) if os.path.isdir(output) else ()
        own = (*written, *([PIPELINE] if checkpoint.format.startswith("diffusers pipeline") else []))
        others = [name for name in left if not name.endswith("/") and name not in own]
        if not stay and not others:
            return ()
        where = escape(os.path.dirname(output.rstrip("/")) if os.path.isfile(output) else output.rstrip("/")) or "."
        return (
            *([f"{where} still has files of an earlier model: {listing(stay, 12, where='')}"] if stay else ()),
            *(
                [f"{where} still has other files from before this run: {listing(others, 12, where='')}"]
                if others
                else ()
            ),
            *checkpoint.quantisation_notes,
            *notes_beside(checkpoint),
        )
    return ()


def _is_there(folder: ModelFolder, one: PlanCompanion) -> bool:
    """Return whether a folder has a file with the name and the content of a planned file."""
    there = (*folder.files, *folder.licences)
    path = next((other.path for other in there if other.name == one.name), "")
    with suppress(CheckpointError):
        return bool(path) and hashlib.sha256(read_small(path, 256 << 20)).hexdigest() == one.sha256
    return False
