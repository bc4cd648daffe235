"""A note on T5's sentinels (``<extra_id_0>``) if the token list lacks them, and so their ids have the wrong order."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ....util.note_kind import NoteKind
from ....util.notes import notes_of
from ....util.text import escape
from ..folder import ModelFolder
from .special_names import new_ids
from .tokenizer_files import brief_token, local_tokens

__all__ = ["sentinel_notes"]

OF_T5 = ("t5", "mt5", "umt5", "longt5", "switch_transformers")
"""Model types in which the ids of the sentinels count down: ``<extra_id_0>`` has the largest id."""
SENTINEL = re.compile(r"<extra_id_(\d{1,6})>")


@notes_of(NoteKind.CONFIGURATION)
def sentinel_notes(folder: ModelFolder, read: ModelFolder) -> Iterator[str]:
    """Yield a note if the token list lacks the sentinels, and transformers gives them ids in the wrong order.

    The wrong order is the order of their names, with ``<extra_id_0>`` first. ``read`` is the folder from which the
    vocabulary is read: ``folder`` itself, or a folder with the same tokeniser whose vocabulary is already in memory.
    """
    tokens = local_tokens(read)
    if folder.config.get("model_type") not in OF_T5 or not tokens or folder.rows < len(tokens):
        return
    new = {int(match[1]): one for token, one in new_ids(folder, tokens).items() if (match := SENTINEL.fullmatch(token))}
    if len(new) < 2 or new[min(new)].number > new[max(new)].number or any(map(SENTINEL.fullmatch, tokens)):
        return
    first, last = (f"{brief_token(f'<extra_id_{one}>')} gets {new[one].number}" for one in (min(new), max(new)))
    lacks = f"{len(new)} sentinels that {escape(folder.vocabulary)} lacks"
    yield f"{new[min(new)].file} lists {lacks}: {first} and {last}, but T5 numbers them in the reverse order"
