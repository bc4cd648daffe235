"""A note on token lists that have changed since ckpt wrote them, with the weights beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress

from ....checkpoint.checkpoint import Checkpoint
from ....errors import CheckpointError
from ....formats.base.sharded_writer import RECIPE_FILE
from ....storage.small_files import SMALL_BYTES
from ....util.text import escape
from ..documents import VOCABULARIES
from ..folder import ModelFolder

__all__ = ["changed_list_notes"]

_MOST = 4 * SMALL_BYTES
"""The largest token list, in bytes, that is read."""


def changed_list_notes(checkpoint: Checkpoint, folder: ModelFolder) -> Iterator[str]:
    """Yield a note on each token list that is not the file which the recipe in the folder says was written there.

    The settings of a tokeniser (tokenizer_config.json, chat templates) are left out, as they are often edited.
    """
    if checkpoint.recipe is None or not folder.files:
        return
    from ...inputs.stored_recipes import stored_recipe  # most checkpoints have no recipe

    recipe = stored_recipe(checkpoint)
    written = {one.name: one.sha256 for one in recipe.target.companions} if recipe is not None else {}
    for name in [one.name for one in folder.files if one.name in VOCABULARIES and one.name in written]:
        with suppress(CheckpointError, OSError):
            if hashlib.sha256(folder.read(name, _MOST)).hexdigest() != written[name]:
                is_not = f"{escape(name)} is not the list that was written with these weights ({RECIPE_FILE})"
                yield f"{is_not}: if it has other tokens, rows and tokens do not belong together"
