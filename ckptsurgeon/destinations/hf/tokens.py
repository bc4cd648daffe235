"""Adapts the small files of a transformers model to a new vocabulary: changes token ids, chooses a tokeniser."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ...errors import ConfigError, PlanError, SourceError
from ...planning.target import Companion
from ...storage.json_text import read_json
from ...storage.read.uri import read_small
from ...util.text import brief_repr, escape, listing
from ...vocabulary.beside_model import vocabulary_beside
from ...vocabulary.renumbered_ids import MovedIds, moved_ids
from ...vocabulary.renumbering import LostId, Renumbering
from ...vocabulary.replacement import NewVocabulary
from ...vocabulary.vocabulary import Vocabulary, read_vocabulary
from .files import GENERATION, PROCESSORS, is_of_tokenizer, tokenizer_beside

__all__ = [
    "IN_FIELDS",
    "IN_YAML",
    "renumbered",
    "renumbered_generation",
    "renumbering_of",
    "tokenizer_of",
    "with_tokenizer_of",
]

LISTED = 8
"""The maximum number of entries that a note lists."""
WITH_ROWS = ("tokenizer.json", "vocab.json", "vocab.txt")
WITH_PIECES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "spm.model")
"""Files with the pieces of sentencepiece in the order of their ids; other files of the tokeniser may add tokens."""
CODEC = "audio_tokenizer_config.json"
"""The configuration of an audio tokeniser: a model that has a separate vocabulary, so its token ids are not changed."""
SPECIAL = 4
"""The first pieces of a tokeniser may be special (<unk>, <s>, </s>, <pad>).

A vocabulary may have these in another order.
"""
IN_YAML = "{part}set it in the destination's YAML: {field}: ID, or null"
"""The hint for an id whose token is not in the new list; ``part`` is "" or a phrase about the option --token-map."""
IN_FIELDS = "{part}set it: --set {field}=ID, or null"
"""The same hint for commands that set fields of the configuration with options, such as ``ckpt resize``."""


def renumbering_of(
    change: NewVocabulary,
    own: Vocabulary | None,
    rows: int,
    fields: Mapping[str, Any],
    fixed: frozenset[str] = frozenset(),
    remedy: str = "",
) -> Renumbering | None:
    """Return a map from old token ids to ids of a new vocabulary; None if the configuration's ids need no change.

    They need none if they are of the new vocabulary, or if the map is unknown but no field has a token id.
    ``own`` is the token list next to the configuration, ``rows`` the configuration's vocabulary size. The ``fixed``
    fields already hold ids of the new vocabulary. Raises ConfigError if the map is unknown, but another field has a
    token id; ``remedy`` is a part of its hint that says how to set a field, "" if fields cannot be set.
    """
    try:
        return change.renumbering(own, rows)
    except LookupError as error:
        lost = moved_ids(fields, Renumbering.of((), ()), fixed=fixed).lost
        if not lost:
            return None
        said = f"the field {escape(lost[0].field)} of config.json is {lost[0].number}"
        is_alike = len(change.source.tokens) == len(change.new.tokens)
        give = "Put the model's tokeniser" if is_alike else "Give the token list of this model, or put its tokeniser"
        or_set = f", or {remedy.format(part='', field=_last(lost[0]))}" if remedy else ""
        raise ConfigError(
            f"{said}, but it is not known which token has this id: {error}.",
            hint=f"{give} next to config.json{or_set}.",
            details=[f"{one.field}: {one.number}" for one in lost],
        ) from None


def renumbered(
    name: str,
    fields: Mapping[str, Any],
    numbers: Renumbering,
    new: str,
    *,
    remedy: str = IN_YAML,
    fixed: frozenset[str] = frozenset(),
    told: frozenset[str] | None = None,
) -> tuple[MovedIds, list[str]]:
    """Return the new token ids of a file with these ``fields`` (``MovedIds``), and notes.

    ``numbers`` maps old ids to new ids. ``name`` is the name of the file, and ``new`` is the name of the new token
    list. The ``fixed`` fields already hold new ids. ``told`` are the names of the fields in the user's file: the ids in
    all other fields are defaults. If ``told`` is None, no id is a default.

    If the token of an id is not in the new list, a default id becomes null; for any other id, ConfigError is raised
    with the hint ``remedy``.
    """
    moved = moved_ids(fields, numbers, fixed=fixed)
    by_default = [one for one in moved.lost if told is not None and one.field.rpartition(".")[2] not in told]
    lost = [one for one in moved.lost if one not in by_default]
    if lost:
        raise _lost(name, lost, new, remedy, has_tokens=numbers.has_texts)
    moved = replace(moved, changed={**moved.changed, **{tuple(one.field.split(".")): None for one in by_default}})
    notes = []
    if moved.changed:
        said = [f"{'.'.join(path)} = {brief_repr(value, 24)}" for path, value in moved.changed.items()]
        shown = listing(said, LISTED, where="")
        notes.append(f"token ids in {name} are changed to the new ids of their tokens: {shown}")
    if moved.stale:
        wrong = [f"{escape(one.field)} was {one.number} ({escape(brief_repr(one.token, 24))})" for one in moved.stale]
        notes.append(f"ids in {name} were wrong, since other tokens had these ids: {listing(wrong, 4, where='')}")
    if moved.dropped:
        dropped = listing(moved.dropped, LISTED, where="")
        notes.append(f"left out of {name}, because {escape(new)} has no such tokens: {dropped}")
    if moved.unsure:
        kept = [f"{escape(one.field)} = {one.number} ({escape(brief_repr(one.token, 24))})" for one in moved.unsure]
        meant = f"numbers that may be ids of old tokens are not changed in {name}"
        notes.append(f"{meant}; if one of them is a token id, set its new value: {listing(kept, LISTED, where='')}")
    return moved, notes


def renumbered_generation(
    files: Sequence[Companion], numbers: Renumbering, new: str, given: Mapping[str, Any], *, remedy: str = IN_YAML
) -> tuple[tuple[Companion, ...], list[str]]:
    """Return ``files`` with new token ids in generation_config.json and in the files of processors, and notes.

    ``given`` are the fields that the destination sets; these fields get the destination's values. A processor's file
    that is not a JSON object is not changed. Raises ConfigError as ``renumbered`` does.
    """
    made, notes = list[Companion](), list[str]()
    for one in files:
        fields = _object(one) if one.name == GENERATION else _processor(one)
        fixed = {name: value for name, value in given.items() if name in fields}
        moved, more = renumbered(one.name, fields, numbers, new, remedy=remedy, fixed=frozenset(fixed))
        now = {**moved.applied(fields), **fixed}
        is_other = now != fields or one.name == GENERATION
        text = json.dumps(now, indent=2, ensure_ascii=False) + "\n" if is_other else ""
        made.append(Companion(one.name, text=text) if is_other else one)
        notes += more
    return tuple(made), notes


def _processor(one: Companion) -> dict[str, Any]:
    """Return the fields of a processor's file; {} for any other file, and for a file that cannot be read."""
    if one.name in PROCESSORS and one.name != CODEC:
        with suppress(ConfigError, SourceError):
            return _object(one)
    return {}


def _object(one: Companion) -> dict[str, Any]:
    try:
        data = read_json(one.text or read_small(one.path))
    except ValueError as error:
        raise ConfigError(f"{escape(one.path or one.name)} is not valid JSON: {escape(str(error))}.") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{escape(one.path or one.name)} is not a JSON object.")
    return data


def _lost(name: str, lost: Sequence[LostId], new: str, remedy: str, *, has_tokens: bool) -> ConfigError:
    first = lost[0]
    token = f" ({escape(brief_repr(first.token))})" if first.token else ""
    others = list(dict.fromkeys(one.field for one in lost if one.field != first.field))
    more = f"; the same is true of {listing(others, 4)}" if others else ""
    is_unknown = has_tokens and not token  # then the old vocabulary has fewer tokens
    why = "which no token of the old vocabulary has" if is_unknown else f"which is not in {escape(new)}"
    part = f"--token-map '{escape(first.token)}=TOKEN' replaces it by another token; or " if token else ""
    hint = remedy.format(part=part, field=_last(first))
    return ConfigError(
        f"{escape(first.field)} of {name} is {first.number}{token}, {why}{more}.",
        hint=f"{hint[0].upper()}{hint[1:]}.",
        details=[f"{one.field}: {one.number} {one.token}".rstrip() for one in lost],
    )


def _last(one: LostId) -> str:
    return escape(one.field.rpartition(".")[2])


def with_tokenizer_of(
    files: Sequence[Companion],
    path: str,
    new: Vocabulary,
    own: Vocabulary | None,
    made: Sequence[Companion] = (),
) -> tuple[tuple[Companion, ...], list[str]]:
    """Return the files of an output folder with the tokeniser that belongs to the token list at ``path``, and notes.

    ``own`` is the token list of the tokeniser in ``files``. If it is equal to the list ``new``, that tokeniser is kept.
    ``made`` are the files of the new tokeniser if it was made from the old one; then no files next to ``path`` are
    read.
    """
    if own is not None and own.tokens == new.tokens:
        return tuple(files), []
    rest = tuple(one for one in files if not is_of_tokenizer(one.name))
    theirs = list(made) or tokenizer_of(path, new)
    missing = sorted({one.name for one in files} - {one.name for one in (*rest, *theirs)})
    if made:
        left = f"files of the old tokeniser that are left out: {listing(missing, 12, where='')}"
        return (*rest, *theirs), [left] if missing else []
    if not theirs:
        has = "has other tokens than this list"
        lies = f"the one next to {{}} {has}" if tokenizer_beside(path) else "there is none next to {}"
        note = f"no tokeniser is copied: {lies.format(escape(path))}"
        note += f", and the destination's tokeniser ({listing(missing, 12, where='')}) {has}" if missing else ""
        return rest, [f"{note}; make a tokeniser in which the id of each token is its index in this list"]
    if not missing:
        return (*rest, *theirs), []
    beside = {one.name for one in tokenizer_beside(path)}
    other, absent = [one for one in missing if one in beside], [one for one in missing if one not in beside]
    absent_names = listing(absent, 12, where="")
    notes = [f"files left out, because none of them is next to {escape(path)}: {absent_names}"] if absent else []
    if other:
        other_names = listing(other, 12, where="")
        said = f"files left out, because the files next to {escape(path)} have other tokens than this list"
        notes.append(f"{said}: {other_names}")
    return (*rest, *theirs), notes


def tokenizer_of(path: str, new: Vocabulary) -> list[Companion]:
    """Return the files of the tokeniser next to the token list at ``path``.

    Returns [] unless the list is one of these files, or one of these files has the same tokens as the list.
    """
    name = os.path.basename(path)
    theirs = [(one, one.name == name or _agrees(one, new)) for one in tokenizer_beside(path)]
    if not is_of_tokenizer(name) and not any(agrees for _, agrees in theirs):
        return []
    return [one for one, agrees in theirs if agrees is not False]


def _agrees(one: Companion, new: Vocabulary) -> bool | None:
    """Return whether a tokeniser's file has the tokens of the new list; None if the file has no list of tokens."""
    if one.name not in (*WITH_ROWS, *WITH_PIECES) or not os.path.isfile(one.path):
        return None
    try:
        if one.name in WITH_ROWS:
            return vocabulary_beside(one.path).tokens == new.tokens
        return _has_pieces(new.tokens, read_vocabulary(one.path).tokens)
    except (ConfigError, PlanError):
        return False


def _has_pieces(tokens: Sequence[str], pieces: Sequence[str]) -> bool:
    """Return whether a vocabulary has all ``pieces`` in their order; the first four may be in another order."""
    places = {token: place for place, token in enumerate(tokens)}
    found = [places.get(piece, -1) for piece in pieces]
    return min(found) >= 0 and found[SPECIAL:] == sorted(found[SPECIAL:])
