"""Renumbers the token ids in a model's configuration for another vocabulary. No file is opened.

Ids such as ``eos_token_id`` are rows of the old vocabulary, and would mean other tokens in the new one. The fields are
defined by transformers' configurations and generation configurations,
https://huggingface.co/docs/transformers/main_classes/text_generation#transformers.GenerationConfig.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .configuration_ids import Path, fields_with_ids, numbers_in, sizes_for, unsure_numbers
from .id_fields import BIASED, FORCED, MAPS, PAIRS, SEQUENCES, SETS
from .renumbering import LostId, Renumbering

__all__ = [
    "MovedIds",
    "ids_beyond",
    "ids_by_field",
    "moved_ids",
    "new_names",
    "stale_ids",
]

_NAMED = {"no_timestamps_token_id": "<|notimestamps|>", "prev_sot_token_id": "<|startofprev|>"}
"""{field: token} of the fields of Whisper that always have the id of the same token."""
_SPECIAL = re.compile(r"<.+>|\[.+\]")
"""Matches special tokens; a number that may be an id is only reported as unsure if it is the id of such a token."""


@dataclass(frozen=True)
class MovedIds:
    """The result of renumbering the token ids of a configuration.

    ``changed`` has the new values of fields, by path. ``lost`` has the ids whose token is not in the new vocabulary.
    ``dropped`` lists the fields from which such ids were removed: lists of suppressed tokens, bad words and biases, and
    maps of languages and tasks. These ids are not needed, because a token that does not exist cannot be generated.
    ``stale`` has old ids of wrong tokens; a field with such an id gets the new id of the token that the field is for.
    ``unsure`` has numbers that are not changed, but may be ids of old special tokens which have other ids now.
    """

    changed: Mapping[Path, Any]
    lost: tuple[LostId, ...] = ()
    dropped: tuple[str, ...] = ()
    stale: tuple[LostId, ...] = ()
    unsure: tuple[LostId, ...] = ()

    def applied(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration ``fields`` with the new values of the changed fields."""
        made = dict(fields)
        for path, value in self.changed.items():
            inner = made
            for name in path[:-1]:
                inner[name] = dict(inner[name])
                inner = inner[name]
            inner[path[-1]] = value
        return made


def moved_ids(fields: Mapping[str, Any], numbers: Renumbering, *, fixed: frozenset[str] = frozenset()) -> MovedIds:
    """Return the changes in ``fields``, the fields of a configuration, if ids are renumbered by ``numbers``.

    The fields named in ``fixed`` already have new ids, and are not changed.
    """
    mover, sizes = _Mover(numbers), sizes_for(fields, numbers)
    changed = {}
    for path, value in fields_with_ids(fields, sizes):
        if path[-1] not in fixed:
            moved = mover.moved(".".join(path), path[-1], value)
            if moved != value:
                changed[path] = moved
    unsure = (LostId(".".join(path), one, numbers.token(one)) for path, one in unsure_numbers(fields, sizes))
    kept = [one for one in unsure if _SPECIAL.fullmatch(one.token) and numbers.moved(one.number) != one.number]
    kept = [one for one in kept if one.field.rpartition(".")[2] not in fixed]
    return MovedIds(changed, tuple(mover.lost), tuple(mover.dropped), tuple(mover.stale), tuple(kept))


def ids_beyond(fields: Mapping[str, Any], rows: int) -> list[tuple[str, int]]:
    """Return (field, id) for each token id of a configuration that is ``rows`` (the vocabulary size) or more."""
    found = []
    for path, value in fields_with_ids(fields, frozenset({rows})):
        if path[-1] in (*PAIRS, *BIASED) and isinstance(value, list):  # [position, id]; [ids, bias]
            ids = slice(1, None) if path[-1] in PAIRS else slice(1)
            value = [row[ids] for row in value if isinstance(row, list)]
        numbers = numbers_in(value)
        found += [(".".join(path), one) for one in numbers if one >= rows]
    return found


def new_names(
    fields: Mapping[str, Any], others: Mapping[str, Any], tokens: Sequence[str], new: Mapping[str, int]
) -> dict[str, dict[str, int]]:
    """Return the entries that maps of names to ids, such as ``lang_to_id``, have in ``others`` but not in ``fields``.

    ``fields`` and ``others`` are the configurations of two models, and ``tokens`` are the tokens of the second model.
    The result is {field: {name: id}}, with the ids that the tokens have in ``new``, a mapping of tokens to ids. An
    entry is left out if its token is not in ``new``.
    """
    found = {}
    for field in MAPS:
        theirs, own = others.get(field), fields.get(field)
        if isinstance(theirs, dict) and (own is None or isinstance(own, dict)):
            lacking = {name: one for name, one in theirs.items() if name not in (own or {}) and type(one) is int}
            ids = {name: new.get(tokens[one]) for name, one in lacking.items() if 0 <= one < len(tokens)}
            found[field] = {name: place for name, place in ids.items() if place is not None}
    return {field: ids for field, ids in found.items() if ids}


def ids_by_field(fields: Mapping[str, Any], numbers: Renumbering) -> dict[str, tuple[int, ...]]:
    """Return {dotted path of a field: the token ids that it has now}, such as {"eos_token_id": (2,)}.

    Two kinds of fields are left out: those that pair ids with positions or biases (``forced_decoder_ids``,
    ``sequence_bias``), and those of nested configurations with another vocabulary than that of ``numbers``.
    """
    found = (
        (path, value)
        for path, value in fields_with_ids(fields, sizes_for(fields, numbers))
        if path[-1] not in (*PAIRS, *BIASED)
    )
    return {".".join(path): tuple(numbers_in(value)) for path, value in found}


def stale_ids(fields: Mapping[str, Any], tokens: Sequence[str]) -> list[LostId]:
    """Return the ids in a configuration whose token is not the token that their field is for.

    For example, ``no_timestamps_token_id`` is for the token ``<|notimestamps|>``. ``tokens`` has the tokens in the
    order of their ids.
    """
    return list(moved_ids(fields, Renumbering.of(tokens, tokens)).stale)


class _Mover:
    """Renumbers the ids in a field, also in nested lists and maps, and collects ids whose token was lost."""

    def __init__(self, numbers: Renumbering) -> None:
        self._numbers = numbers
        self._known = frozenset(numbers.old) if numbers.has_texts else frozenset[str]()
        self.lost: list[LostId] = []
        self.dropped: list[str] = []
        self.stale: list[LostId] = []

    def moved(self, field: str, name: str, value: Any) -> Any:
        if name in MAPS and isinstance(value, dict):
            found = self._by_name(field, MAPS[name], value)
            return self._kept(field, {key: one for key, one in found.items() if one is not None}, len(found))
        if name in SETS and isinstance(value, list):
            places = [self._place(one) for one in value]
            return self._kept(field, [one for one in places if one is not None], len(places))
        if name in SEQUENCES and isinstance(value, list):
            rows = [[self._place(one) for one in row] if isinstance(row, list) else row for row in value]
            kept = [row for row in rows if not isinstance(row, list) or None not in row]
            return self._kept(field, kept, len(rows))
        if name in BIASED and isinstance(value, list):
            pairs = [[self._row(row[0]), *row[1:]] if isinstance(row, list) and row else row for row in value]
            kept = [row for row in pairs if not (isinstance(row, list) and row and row[0] is None)]
            return self._kept(field, kept, len(pairs))
        if name in PAIRS and isinstance(value, list):
            return [
                [*row[:1], *(self._needed(field, one) for one in row[1:])] if isinstance(row, list) else row
                for row in value
            ]
        if name in FORCED and isinstance(value, list):
            return [self.moved(field, name, one) for one in value]
        if isinstance(value, list):
            return [self._needed(field, one) for one in value]
        named = _NAMED.get(name, "")
        if type(value) is int and self._is_stale(named, value):
            self.stale.append(LostId(field, value, self._numbers.token(value)))
            place = self._numbers.place_of(named)
            if place is None:
                self.lost.append(LostId(field, value, named))
            return value if place is None else place
        return self._needed(field, value)

    def _is_stale(self, named: str, number: int) -> bool:
        """Return whether the old tokens include ``named``, but ``number`` is not its old id."""
        return bool(named) and self._numbers.token(number) != named and named in self._known

    def _by_name(self, field: str, pattern: str, value: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``value``, a map from names to ids, with new ids.

        The id is None if the new vocabulary lacks the token. ``pattern`` is the text of a name's token, with a
        placeholder for the name. If the old tokens include this token, its new id is returned, even if ``value`` has
        the id of another token.
        """
        found = {}
        for key, one in value.items():
            named = pattern.format(key)
            if type(one) is int and self._is_stale(named, one):
                self.stale.append(LostId(f"{field}.{key}", one, self._numbers.token(one)))
                found[key] = self._numbers.place_of(named)
            else:
                found[key] = self._place(one)
        return found

    def _row(self, row: Any) -> Any:
        """Return the new ids of a sequence of token ids; None if one of the old ids has no new id."""
        places = [self._place(one) for one in row] if isinstance(row, list) else [row]
        return None if None in places else places if isinstance(row, list) else row

    def _kept(self, field: str, kept: Any, before: int) -> Any:
        if len(kept) < before:
            self.dropped.append(f"{before - len(kept)} of {field}")
        return kept

    def _needed(self, field: str, number: Any) -> Any:
        """Return the new id for an old id; if there is none, record the old id as lost and return it unchanged."""
        place = self._place(number)
        if place is None and number is not None:
            self.lost.append(LostId(field, number, self._numbers.token(number)))
            return number
        return place

    def _place(self, number: Any) -> Any:
        """Return the new id for an old id, or None if there is none.

        Values that are not ids (None, -1, a string) are returned unchanged.
        """
        if type(number) is not int or number < 0:
            return number
        return self._numbers.moved(number)
