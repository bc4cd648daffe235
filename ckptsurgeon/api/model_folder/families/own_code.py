"""Notes on custom code (``auto_map``) that a folder's configurations refer to but that is not in the folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ....destinations.hf.files import CONFIG, PROCESSORS
from ....util.note_kind import NoteKind
from ....util.notes import notes_of
from ....util.text import escape, listing
from ..documents import TOKENIZER
from ..folder import ModelFolder
from ..tokenizer.tokenizer_files import object_in

__all__ = ["own_code_notes"]

_CLASS = re.compile(r"([A-Za-z_]\w*)\.\w+")
"""Matches ``module.Class``, but not a class in another repository, which is ``repo--module.Class``."""


@notes_of(NoteKind.CONFIGURATION)
def own_code_notes(folder: ModelFolder) -> Iterator[str]:
    """Yield a note on each configuration that refers to Python modules that are not in the folder."""
    there = {*(one.name for one in folder.files), *folder.left}
    if folder.unlisted or not there:
        return
    for name in (CONFIG, TOKENIZER, *PROCESSORS):
        fields = folder.config if name == CONFIG else object_in(folder, name)
        lacking = [one for one in _files_of(fields.get("auto_map")) if one not in there]
        if lacking:
            said = f"auto_map of {name} refers to {listing([escape(one) for one in lacking], 3, where='')}"
            are = "which is" if len(lacking) == 1 else "which are"
            yield f"{said}, {are} not in the folder: transformers can load the model only if it does not need this code"


def _files_of(auto_map: Any) -> list[str]:
    """Return the names of the Python files to which an ``auto_map`` refers, without duplicates."""
    classes: list[Any] = []
    for one in auto_map.values() if isinstance(auto_map, dict) else ():
        classes += one if isinstance(one, list) else [one]
    found = (_CLASS.fullmatch(one) for one in classes if isinstance(one, str))
    return list(dict.fromkeys(f"{match[1]}.py" for match in found if match is not None))
