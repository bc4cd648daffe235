"""Notes on layers that have another kind (sliding or full attention, for example) in the output than in the source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ....destinations.hf.files import CONFIG
from ....planning.merge.layers import LayerList, layer_lists
from ....planning.plan.plan import Plan
from ....storage.json_text import read_json
from ....util.text import escape, number_in, reasons
from ..config import layer_counts
from .derived_kinds import layer_kinds
from .renumbered import differing_kinds, part_of

__all__ = ["moved_layer_notes", "written_config"]

Fields = Mapping[str, Any]
MOST = 8
"""The largest number of sentences in a note."""
_Places = dict[int, int]
"""{index of a layer in the output: index of the source's layer from which it is copied}"""


def written_config(plan: Plan) -> dict[str, Any]:
    """Return the fields of the config.json that a plan writes; empty if it copies a file or writes none."""
    files = plan.target.companions
    return next((read_json(one.text) for one in files if one.name == CONFIG and one.text), {})


def moved_layer_notes(plan: Plan, source: int, theirs: Fields, ours: Fields, *, is_own: bool) -> Iterator[str]:
    """Yield a note if layers of a source get another kind in the output, because they have another index there.

    ``theirs`` is the configuration of the source at index ``source``, and ``ours`` the configuration of the output.
    ``is_own`` is true if the output's configuration is made from the source's. Then layers that keep their index are
    compared too; for other sources, ``config_notes`` compares such layers.
    """
    found = [
        reason
        for one in layer_lists([step.key for step in plan.steps], layer_counts(ours))
        for prefix, places in _places(plan, source, one).items()
        for reason in _reasons(theirs, ours, (prefix, one.prefix), places, is_own=is_own)
    ]
    if found:
        of = escape(plan.sources[source].name)
        yield (
            f"some layers have a different kind (of attention, for example) in the output than in {of}: "
            f"{reasons(found, MOST)}"
        )


def _reasons(
    theirs: Fields, ours: Fields, prefixes: tuple[str, str], places: _Places, *, is_own: bool
) -> Iterator[str]:
    """Yield a sentence on each group of layers of one list that have another kind in the output than in the source.

    ``theirs``, ``ours`` and ``is_own`` are as in ``moved_layer_notes``. ``prefixes`` are the list's key prefixes in the
    source and in the output. ``places`` maps the index of each layer in the output to its index in the source.
    """
    there, here = part_of(theirs, prefixes[0]), part_of(ours, prefixes[1])
    if there is None or here is None or there.kind != here.kind:
        return
    for one in layer_kinds({**there.inner, **here.inner}, here.kind):
        kinds, made = there.of(one), here.of(one)
        moved = [(at, kinds[old]) for at, old in sorted(places.items()) if old < len(kinds) and (is_own or at != old)]
        yield from differing_kinds(one.name, moved, made)


def _places(plan: Plan, source: int, one: LayerList) -> dict[str, _Places]:
    """Return {key prefix in the source: {index of a layer in the output: its index in the source}}.

    Only layers of the output's list ``one`` that are copied from the source at index ``source`` are included.
    """
    found: dict[str, _Places] = {}
    for step in plan.steps:
        here = one.split(step.key)
        for given in step.inputs if here is not None else ():
            there = _layer_in(given.key, here[1]) if given.source == source and here is not None else None
            if there is not None and here is not None:
                found.setdefault(there[0], {})[here[0]] = there[1]
    return found


def _layer_in(key: str, rest: str) -> tuple[str, int] | None:
    """Return (prefix, index) of the source's layer that contains the tensor ``key``; None if no layer does.

    ``rest`` is the name of the tensor within the output's layer. If ``key`` does not end with it, the first number in
    ``key`` is the index.
    """
    if rest and key.endswith(f".{rest}"):
        prefix, _, number = key[: -len(rest) - 1].rpartition(".")
        index = number_in(number)
        if index is not None:
            return prefix, index
    segments = key.split(".")
    numbers = [
        (".".join(segments[:at]), index) for at, one in enumerate(segments) if (index := number_in(one)) is not None
    ]
    return numbers[0] if numbers else None
