"""A note on token lists that have changed since ckpt wrote them, with the weights beside them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from ....checkpoint.checkpoint import Checkpoint
from ....errors import CheckpointError
from ....formats.base.sharded_writer import RECIPE_FILE
from ....storage.small_files import SMALL_BYTES
from ....util.text import escape
from ..documents import VOCABULARIES
from ..folder import ModelFolder

__all__ = ["changed_list_notes"]

_COMPANIONS = re.compile(r'"companions":(?=\[)')
"""Matches where a recipe lists the small files of its output. (Quotes inside a string of JSON are escaped.)"""
_MOST = 4 * SMALL_BYTES


def changed_list_notes(checkpoint: Checkpoint, folder: ModelFolder) -> Iterator[str]:
    """Yield a note on each token list that is not the file which the recipe in the folder says was written there.

    The settings of a tokeniser (tokenizer_config.json, chat templates) are left out, as they are often edited.
    """
    written = _written(checkpoint.recipe or "")
    for name in [one.name for one in folder.files if one.name in VOCABULARIES and one.name in written]:
        with suppress(CheckpointError, OSError):
            if hashlib.sha256(folder.read(name, _MOST)).hexdigest() != written[name]:
                is_not = f"{escape(name)} is not the list that was written with these weights ({RECIPE_FILE})"
                yield f"{is_not}: if it has other tokens, rows and tokens do not belong together"


def _written(recipe: str) -> dict[str, str]:
    """Return {name: SHA-256} of the small files that a recipe lists; the recipe, which may be large, is not parsed."""
    found = _COMPANIONS.search(recipe)
    if found is None:
        return {}
    try:
        rows: Any = json.JSONDecoder().raw_decode(recipe, found.end())[0]
        return {str(row["name"]): str(row["sha256"]) for row in rows}
    except (ValueError, LookupError, TypeError, RecursionError):
        return {}  # ckpt verify reports a damaged recipe
