"""Compares Whisper's ``alignment_heads`` with config.json, and removes the entries of layers that are left out.

``alignment_heads`` are the [layer, head] pairs of the decoder from which word timestamps are computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ....errors import ConfigError, SourceError
from ....planning.target import Companion
from ....util.note_kind import NoteKind
from ....util.notes import notes_of
from ....util.text import count, listing
from ..documents import GENERATION, json_text
from ..folder import ModelFolder

__all__ = ["alignment_notes", "generation_settings", "with_heads_left"]

FIELD = "alignment_heads"


def with_heads_left(
    files: Sequence[Companion], folder: ModelFolder, config: Mapping[str, Any]
) -> tuple[tuple[Companion, ...], list[str]]:
    """Return ``files`` without the ``alignment_heads`` in removed layers, and notes on the heads that were removed.

    ``folder`` is the model's folder before layers were removed. ``config`` is the configuration after that.
    """
    layers, fields = config.get("decoder_layers"), generation_settings(folder)
    heads = fields.get(FIELD)
    if not isinstance(heads, list) or type(layers) is not int or layers == folder.config.get("decoder_layers"):
        return tuple(files), []
    left = [one for one in heads if not _is_beyond(one, 0, layers)]
    gone = len(heads) - len(left)
    if not gone:
        return tuple(files), []
    fields = {name: value for name, value in fields.items() if name != FIELD} | ({FIELD: left} if left else {})
    kept = tuple(one for one in files if one.name != GENERATION)
    loses = f"loses {count(gone, 'head')}" if left else f"is removed with all its {count(gone, 'head')}"
    why = f"{'its layer is' if gone == 1 else 'their layers are'} left out"
    return (*kept, Companion(GENERATION, text=json_text(fields))), [f"{FIELD} of {GENERATION} {loses}: {why}"]


@notes_of(NoteKind.CONFIGURATION)
def alignment_notes(folder: ModelFolder) -> Iterator[str]:
    """Yield a note if ``alignment_heads`` lists a layer or an attention head that config.json does not have."""
    heads = generation_settings(folder).get(FIELD)
    sizes = [folder.config.get(name) for name in ("decoder_layers", "decoder_attention_heads")]
    rows = heads if isinstance(heads, list) else []
    for place, size in enumerate(sizes):
        beyond = [str(one) for one in rows if type(size) is int and _is_beyond(one, place, size)]
        if beyond:
            has = count(size if type(size) is int else 0, "layer" if place == 0 else "head")
            of = "the decoder has" if place == 0 else "a layer of the decoder has"
            yield f"{of} {has}, but {FIELD} of {GENERATION} lists {listing(beyond, 3, where='')} (layer, head)"


def _is_beyond(pair: Any, place: int, size: int) -> bool:
    are_numbers = isinstance(pair, list) and len(pair) == 2 and all(type(one) is int for one in pair)
    return are_numbers and pair[place] >= size


def generation_settings(folder: ModelFolder) -> Mapping[str, Any]:
    """Return the fields of generation_config.json; {} if it is missing or cannot be read."""
    if all(one.name != GENERATION for one in folder.files):
        return {}
    with suppress(ConfigError, SourceError):
        return folder.document(GENERATION)
    return {}
