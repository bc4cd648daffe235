"""A note on experts with the names of another family of models, such as Mixtral's names in a Qwen-MoE model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ....util.note_kind import NoteKind
from ....util.notes import notes_of
from ....util.text import escape
from .required_parts import known_patterns, pattern_of

__all__ = ["expert_name_notes"]

_OF_ONE = re.compile(r"(?:^|\.)(\w+)\.experts\.#\.(w[123]|(?:gate|up|down)_proj)\.weight$")
"""Matches patterns of weights of single experts: group 1 is the module with the experts, group 2 the projection."""
_EXPERTS = re.compile(r"(?:^|\.)(\w+)\.experts\.")


@notes_of(NoteKind.MISSING_TENSORS)
def expert_name_notes(keys: Sequence[str], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if all experts have names that no model of this type has, but that models of another type have.

    ``keys`` are the keys of all tensors; for a quantised tensor, the key that it would have if stored plainly. There
    are no notes for types whose experts are always stacked, and for configurations that refer to custom code
    (``auto_map``).
    """
    kind = str(config.get("model_type"))
    known = {one: match for one in known_patterns(kind) if (match := _EXPERTS.search(one))}
    usual = {one: match[2] for one in sorted(known) if (match := _OF_ONE.search(one))}
    if not usual or config.get("auto_map"):
        return
    modules, projections = {match[1] for match in known.values()}, set(usual.values())
    found = {pattern_of(key): key for key in reversed(keys) if ".experts." in key}
    own = {key: match for one, key in found.items() if (match := _OF_ONE.search(one))}
    if own and len(own) == len(found) and not any(one[1] in modules and one[2] in projections for one in own.values()):
        key, name = min(own), next(iter(usual)).replace("#", "*")
        has = f"{escape(key)} is a name that no expert of a {escape(kind)} model has (a valid name is {escape(name)})"
        yield f"{has}: transformers ignores these experts and initialises its own"
