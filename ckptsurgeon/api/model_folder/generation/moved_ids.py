"""Notes on ``eos_token_id`` and a second id (padding or beginning) if both seem to be ids of another tokeniser."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ....util.note_kind import NoteKind
from ....util.notes import notes_of
from ..tokenizer.tokenizer_files import brief_token

__all__ = ["moved_id_notes"]

WHOLE = "text|turn|sentence|sequence|utterance|message|response|reply|answer|document"
"""Units that end with an end token. Images, thoughts and prompts are not included, because more text follows them."""
ENDS = re.compile(
    rf"[\[<|｜]+(/s|eo[stdmp]|(im_|turn_)?end|end[_▁ ]?of[_▁ ]?({WHOLE})|return)(_id|_token)?[\]>|｜]+", re.IGNORECASE
)
"""Matches tokens with which texts or messages end, such as ``</s>``, ``<|eot_id|>`` and ``<|im_end|>``."""


@notes_of(NoteKind.TOKEN_IDS)
def moved_id_notes(
    sections: Mapping[str, Mapping[str, Any]], names: Mapping[str, str], places: Mapping[str, int], *, generates: bool
) -> Iterator[str]:
    """Yield notes if ``eos_token_id`` and one of ``pad_token_id`` and ``bos_token_id`` are ids of another tokeniser.

    ``sections`` has {name: fields} of each configuration. ``names`` maps roles to special tokens (``{"eos_token":
    "</s>"}``), and ``places`` maps each token to its id. If ``generates`` is false (the model generates no text), there
    is no note on ``bos_token_id``: encoders do not use it, and may have the default of their class.
    """
    own = {name: places[token] for name, token in names.items() if token in places}
    found: dict[tuple[str, ...], list[str]] = {}
    for file, fields in sections.items():
        roles = _moved_roles(fields, own)
        if not roles or ("bos_token" in roles and not generates) or _is_end(_ids_of(fields, roles[0]), places):
            continue
        ids = (", ".join(map(str, _ids_of(fields, role))) for role in roles)
        found.setdefault((*roles, *ids), []).append(file)
    for (one, two, first, second), files in found.items():
        has = f"{one}_id of {' and of '.join(files)} is {first}, and {two}_id is {second}"
        meant = " and ".join(f"{role} is {brief_token(names[role])} ({own[role]})" for role in (one, two))
        yield f"{has}, while {meant}: perhaps they are the ids of another tokeniser"


def _is_end(ids: list[Any], places: Mapping[str, int]) -> bool:
    """Return whether one of ``ids`` belongs to a token that ends texts, according to the token's name.

    Such ids do not come from another tokeniser. When a model is trained to chat, its tokeniser may get other special
    tokens (``<|im_start|>`` and ``<|im_end|>``), while the configuration keeps the ids of ``<s>`` and ``</s>``.
    """
    asked = {one for one in ids if type(one) is int}
    return any(row in asked and ENDS.fullmatch(token) for token, row in places.items())


def _moved_roles(fields: Mapping[str, Any], own: Mapping[str, int]) -> tuple[str, ...]:
    """Return two roles whose ids in ``fields`` seem to be ids of another tokeniser: (eos, pad), (eos, bos) or ().

    ``own`` maps roles to the ids in the model's own tokeniser. A single role may differ from them on purpose: chat
    models have an end token of their own, and many models pad with the end token. ``bos_token_id`` may be the default
    of a class, so (eos, bos) is returned only if both ids differ from the tokeniser's by the same number. The result is
    () if ``eos_token_id`` is the id of any token with a role in the tokeniser.
    """
    if any(type(one) is not int for role in ("eos_token", "pad_token") for one in _ids_of(fields, role)):
        return ()
    end, begin, padding = (_ids_of(fields, role) for role in ("eos_token", "bos_token", "pad_token"))
    first, last, pad = own.get("bos_token"), own.get("eos_token"), own.get("pad_token")
    if last is None or not end or set(end).intersection(own.values()):
        return ()
    if pad not in (None, last) and padding and not {*padding}.intersection((*own.values(), *end)):
        return "eos_token", "pad_token"
    is_moved = first is not None and len(begin) == len(end) == 1 and type(begin[0]) is int
    return ("eos_token", "bos_token") if is_moved and begin[0] != end[0] and first - begin[0] == last - end[0] else ()


def _ids_of(fields: Mapping[str, Any], role: str) -> list[Any]:
    """Return the ids in the field for a role, such as ``eos_token_id`` for "eos_token"; [] if there are none."""
    value = fields.get(f"{role}_id")
    return value if isinstance(value, list) else [] if value is None else [value]
