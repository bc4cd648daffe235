"""Finds values in a ``quantization_config`` that transformers refuses or ignores, whatever the tensors are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..tensors.quantised.contradictions import STORED_BY
from ..tensors.quantised.settings import values_called
from ..util.note_kind import NoteKind
from ..util.notes import Note, as_notes
from ..util.text import escape, listing

__all__ = ["refused_settings"]

NUMBERS = ("bits", "w_bit", "group_size", "q_group_size", "num_bits", "weight_block_size", "block_structure")
"""Fields whose values are numbers or lists of numbers."""
LOADS = ("load_in_4bit", "load_in_8bit")
"""Fields by which transformers knows settings of bitsandbytes; exactly one must be true."""
FLAGS = (*LOADS, "desc_act", "sym", "zero_point", "symmetric")
"""Fields whose values are true or false."""
OLD_NAMES = {"w_bit": ("bits", 4), "q_group_size": ("group_size", 128)}
"""{old name of an AWQ field: (name that transformers reads, the value that transformers uses without such a field)}."""
FORMATS = {*STORED_BY, "dense", "fakequant", "mixed-precision", "sparse-24-bitmask", "sparse-bitmask"}
"""The values of ``format`` in compressed-tensors; "fakequant" is the default of its class.

https://github.com/vllm-project/compressed-tensors/blob/main/src/compressed_tensors/config/base.py
"""
UNLOADED = "transformers refuses to load the model"
SHOWN = 3


def refused_settings(settings: Mapping[str, Any]) -> Iterator[Note]:
    """Yield texts that follow "its quantization_config": each says what transformers refuses or ignores.

    There is one text for each kind of fault, for example "has strings in place of numbers".
    """
    yield from _loads(settings)
    yield from as_notes(NoteKind.QUANTISATION, _ignored(settings))


def _loads(settings: Mapping[str, Any]) -> Iterator[Note]:
    """Yield a text that follows "its quantization_config" if both or none of ``LOADS`` are true."""
    asked = [name for name in LOADS if settings.get(name)]
    if len(asked) == 2:
        yield Note(NoteKind.QUANTISATION_REFUSED, f"sets both {LOADS[0]} and {LOADS[1]} to true: {UNLOADED}")
    elif not asked and str(settings.get("quant_method", "")).lower() == "bitsandbytes":
        yield Note(NoteKind.QUANTISATION_REFUSED, f"sets neither {LOADS[0]} nor {LOADS[1]} to true: {UNLOADED}")


def _ignored(settings: Mapping[str, Any]) -> Iterator[str]:
    texts = [
        f"{name} {escape(repr(value), 40)}"
        for name in (*NUMBERS, *FLAGS)
        for value in values_called(settings, name)
        if _is_quoted(value, name)
    ]
    if texts:
        named = listing(texts, SHOWN)
        yield f"has strings in place of numbers or booleans, which libraries refuse or ignore: {named}"
    method = str(settings.get("quant_method", "")).lower()
    if method == "awq":
        for old, (name, usual) in OLD_NAMES.items():
            if name not in settings and type(settings.get(old)) is int and settings[old] != usual:
                yield f"has {old} {settings[old]} and no {name}: transformers ignores {old}, and uses {name} {usual}"
    if method == "compressed-tensors":
        yield from _odd_formats(settings)


def _odd_formats(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield texts that follow "its quantization_config" on formats that are unknown or contradict each other.

    The outer ``format`` contradicts the config groups if each of them stores codes in another encoding.
    """
    groups = settings.get("config_groups")
    own = [one.get("format") for one in groups.values() if isinstance(one, dict)] if isinstance(groups, dict) else []
    stated, formats = settings.get("format"), [one for one in own if isinstance(one, str)]
    unknown = [escape(one, 40) for one in (stated, *formats) if isinstance(one, str) and one not in FORMATS]
    if unknown:
        named = listing(list(dict.fromkeys(unknown)), SHOWN)
        yield f"says format {named}, which compressed-tensors does not have: a loader may refuse it, or use another"
    stores = set(STORED_BY.get(stated, ())) if isinstance(stated, str) else set()
    others = [set(STORED_BY.get(one, stores)) for one in formats]
    if stores and others and len(formats) == len(own) and all(stores.isdisjoint(one) for one in others):
        named = listing(list(dict.fromkeys(formats)), SHOWN)
        yield f"says format {escape(str(stated))}, but its config_groups say {named}: loaders may use either"


def _is_quoted(value: object, name: str) -> bool:
    """Return whether ``value``, or an item of the list ``value``, is a quoted number or boolean, such as "4"."""
    if isinstance(value, list):
        return any(_is_quoted(one, name) for one in value)
    expected = r"\s*-?\d+(\.\d+)?\s*" if name in NUMBERS else r"(?i)\s*(true|false|yes|no|on|off|0|1)\s*"
    return isinstance(value, str) and re.fullmatch(expected, value) is not None
