"""The text of a written config.json as changes of the given fields, so that a cache has nothing of the user's text."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

__all__ = ["changed_fields", "config_text", "texts_in", "with_changes"]

Fields = dict[str, Any]
GIVEN, INNER, VALUE = 0, 1, 2
"""What stands for a value: the given one, an object that differs inside, or a value of the library."""


def config_text(fields: Mapping[str, Any]) -> str:
    """Return the text of a config.json with these fields."""
    return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"


def changed_fields(made: Any, given: Any) -> list[Any]:
    """Return what turns ``given`` into ``made``, both data of JSON; the order of fields counts.

    A field that is also given is named by its place there, not by its name.
    """
    if json.dumps(made) == json.dumps(given):
        return [GIVEN]
    if not (isinstance(made, dict) and isinstance(given, dict)):
        return [VALUE, made]
    places = {name: place for place, name in enumerate(given)}
    return [INNER, [[places.get(name, name), changed_fields(one, given.get(name))] for name, one in made.items()]]


def with_changes(changes: list[Any], given: Any) -> Any:
    """Return ``given`` with the changes that ``changed_fields`` found; raises LookupError, TypeError or ValueError."""
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
    """Yield every text in data of JSON, also the names of fields."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield from (str(name), *texts_in(one))
    elif isinstance(value, Collection):
        for one in value:
            yield from texts_in(one)
