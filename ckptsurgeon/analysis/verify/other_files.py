"""Lists what lies in an output's folder and is in no word of its recipe."""

from __future__ import annotations

from collections.abc import Iterator

from ...checkpoint.checkpoint import Checkpoint
from ...formats.base.sharded_writer import RECIPE_FILE
from ...planning.plan.receipt import Note
from ...planning.recipe.recipe import Recipe
from ...storage.read.base import File, Folder
from ...storage.read.local import contents
from ...storage.read.uri import open_source
from ...storage.signing.bundle import MODEL_SIGNATURE

__all__ = ["folder_of", "other_files"]


def folder_of(output: Checkpoint) -> Folder | None:
    """Return the folder that an output is, None where it is one file; raises SourceError."""
    source = open_source(output.path)
    if isinstance(source, File):  # an index, or one file among others
        source.close()
        if len(output.files) == 1:
            return None
    folder = source.folder() if isinstance(source, File) else source
    return folder if RECIPE_FILE in folder.names() else None


def other_files(output: Checkpoint, said: Recipe | None) -> Iterator[Note]:
    """Yield what an output's folder holds beside what was written; a folder in it counts as one."""
    folder = folder_of(output) if said is not None and not output.in_memory else None
    if folder is None or said is None:
        return
    known = {
        RECIPE_FILE,
        MODEL_SIGNATURE,
        *(file.name for file in output.files),
        *(one.name for one in said.target.companions),
    }
    for name in contents(folder):
        if name not in known:
            yield Note(name, "in the folder, and not in the recipe")
