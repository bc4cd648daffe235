"""Renames unused tensors of the source whose names a result needs, because two tensors cannot have the same name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ...util.text import count, escape

__all__ = ["PREFIX", "is_note", "set_aside"]

PREFIX = "unused"
"""The module into which unused tensors are moved."""
SHOWN = 3
_WHY = " not used, and other tensors get "


def set_aside(
    keys: Iterable[str], names: Mapping[str, str], destination: Iterable[str]
) -> tuple[dict[str, str], list[str]]:
    """Return {key: new name} of the source's ``keys``, and a list with a note if unused tensors are renamed.

    ``names`` maps the keys that are used to keys of the destination. An unused key keeps its name, unless a result gets
    the same name.
    """
    wanted = {key: names.get(key, key) for key in keys}
    results = set(names.values())
    moved = [key for key in wanted if key not in names and key in results]
    taken = {*wanted, *wanted.values(), *destination} if moved else set()
    for key in moved:
        name = f"{PREFIX}.{key}"
        while name in taken:
            name = f"{PREFIX}.{name}"
        taken.add(name)
        wanted[key] = name
    return wanted, [_note(moved)] if moved else []


def _note(moved: list[str]) -> str:
    said = ", ".join(map(escape, moved[:SHOWN])) + (", ..." if len(moved) > SHOWN else "")
    they = ("it is", "its name", "it becomes") if len(moved) == 1 else ("they are", "their names", "they become")
    return f"{count(len(moved), 'tensor')} of the source ({said}): {they[0]}{_WHY}{they[1]}; {they[2]} {PREFIX}.KEY"


def is_note(text: str) -> bool:
    """Return whether a note is from ``set_aside``; such a note is wrong if other tensors are used afterwards."""
    return _WHY in text
