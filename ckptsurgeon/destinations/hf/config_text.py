"""Describes JSON data with numbers in place of the strings of the user's file, so that no cache stores strings."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

__all__ = ["changed_fields", "config_text", "texts_in", "with_changes", "with_texts", "without_texts"]

Fields = dict[str, Any]
GIVEN, INNER, VALUE = 0, 1, 2
"""The kinds of changes: the user's value is kept, an object differs in some of its fields, or the value is new."""
OWN, FIELDS = "own", "fields"
"""``{"own": n}`` stands for the n-th string of the user's file, ``{"fields": [[name, value], …]}`` for an object."""


def config_text(fields: Mapping[str, Any]) -> str:
    """Return the text of a config.json with these fields."""
    return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"


def changed_fields(made: Any, given: Any) -> list[Any]:
    """Return the changes (also of the order of fields) that turn ``given`` into ``made``, both parsed JSON.

    In the result, a field that ``given`` also has is represented by its index in ``given``, any other field by its
    name.
    """
    if json.dumps(made) == json.dumps(given):
        return [GIVEN]
    if not (isinstance(made, dict) and isinstance(given, dict)):
        return [VALUE, made]
    places = {name: place for place, name in enumerate(given)}
    return [INNER, [[places.get(name, name), changed_fields(one, given.get(name))] for name, one in made.items()]]


def with_changes(changes: list[Any], given: Any) -> Any:
    """Return ``given`` with the changes that ``changed_fields`` found.

    Raises LookupError, TypeError or ValueError if the changes do not fit ``given``.
    """
    kind, *rest = changes
    if kind == GIVEN:
        return given
    if kind == VALUE:
        return rest[0]
    names = list(given)
    fields = {}
    for place, change in rest[0]:
        name = names[place] if isinstance(place, int) else place
        fields[name] = with_changes(change, given.get(name))
    return fields


def texts_in(value: Any) -> Iterator[str]:
    """Yield every string in parsed JSON, also the names of fields."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield from (str(name), *texts_in(one))
    elif isinstance(value, Collection):
        for one in value:
            yield from texts_in(one)


def without_texts(value: Any, given: Any) -> Any:
    """Return ``value`` with a number in place of each string that also occurs in ``given``; both are parsed JSON.

    The number is the index of the string among the different strings in ``given``.
    """
    places = {text: place for place, text in enumerate(dict.fromkeys(texts_in(given)))}

    def stored(one: Any) -> Any:
        if isinstance(one, str):
            return {OWN: places[one]} if one in places else one
        if isinstance(one, Mapping):
            return {FIELDS: [[stored(name), stored(inner)] for name, inner in one.items()]}
        return [stored(inner) for inner in one] if isinstance(one, list) else one

    return stored(value)


def with_texts(kept: Any, given: Any) -> Any:
    """Return the value from which ``without_texts`` made ``kept``, with the same ``given``.

    Raises LookupError, TypeError or ValueError if ``without_texts`` cannot have made ``kept``.
    """
    texts = list(dict.fromkeys(texts_in(given)))

    def read(one: Any) -> Any:
        if isinstance(one, dict):
            if OWN in one:
                return texts[one[OWN]]
            return {read(name): read(inner) for name, inner in one[FIELDS]}
        return [read(inner) for inner in one] if isinstance(one, list) else one

    return read(kept)
