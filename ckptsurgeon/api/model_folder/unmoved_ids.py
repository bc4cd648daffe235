"""Notes on token ids in a destination's files that were probably copied from the source by mistake.

In the destination's new vocabulary, such an id belongs to another token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...destinations.hf.files import CONFIG
from ...planning.plan.plan import Plan
from ...util.text import brief_repr, escape, listing
from ...vocabulary.renumbered_ids import ids_by_field
from ...vocabulary.renumbering import Renumbering
from .documents import GENERATION
from .folder import ModelFolder
from .generation.alignment import generation_settings

if TYPE_CHECKING:
    from ...vocabulary.replacement import NewVocabulary

__all__ = ["with_unmoved_ids_noted"]

SHOWN = 4
ROLES = {
    "bos": ("bos", "<s>"), "cls": ("cls",), "eos": ("eos", "</s>"), "mask": ("mask",), "pad": ("pad",),
    "sep": ("sep", "</s>"), "unk": ("unk",),
}  # fmt: skip
"""{beginning of a field's name: texts that the special token of this field usually contains}"""


def with_unmoved_ids_noted(
    plan: Plan, source: ModelFolder, destination: ModelFolder, config: Mapping[str, Any], change: NewVocabulary | None
) -> Plan:
    """Return a plan with a note on token ids that seem to be copied from the source's files to the destination's files.

    ``change`` has the source's token list and the new list, and ``config`` the fields of the destination's
    configuration. The ids in the destination's files should be ids of the new list. If a field has the same id as in
    the source, although the source's token has another id in the new list, the id was probably copied by mistake.
    """
    if change is None:
        return plan
    pairs = [(CONFIG, source.config, config)]
    pairs.append((GENERATION, generation_settings(source), generation_settings(destination)))
    notes = [
        f"{name} still has ids of the source's token list: {listing(said, SHOWN, where='')}; if a field should mean "
        "the same token as before, set it to the id of this token in the new list"
        for name, before, after in pairs
        if (said := list(_unmoved(before, after, change)))
    ]
    return replace(plan, notes=(*plan.notes, *notes)) if notes else plan


def _unmoved(before: Mapping[str, Any], after: Mapping[str, Any], change: NewVocabulary) -> Iterator[str]:
    old, new = change.source.tokens, change.new.tokens
    numbers = Renumbering.of(old, new)
    known, theirs = frozenset(new), ids_by_field(before, numbers)
    for field, ids in ids_by_field(after, numbers).items():
        if ids != theirs.get(field):
            continue
        for number in ids:
            if not 0 <= number < min(len(old), len(new)) or _is_for(field, new[number]):
                continue
            if old[number] != new[number] and old[number] in known:
                was, now = (escape(brief_repr(tokens[number], 24)) for tokens in (old, new))
                yield f"{escape(field)} ({number}: {was} in the old list, {now} in the new one)"


def _is_for(field: str, token: str) -> bool:
    """Return whether a token's text fits ``field``, as "<pad>" fits ``pad_token_id``."""
    texts = ROLES.get(field.rpartition(".")[2].partition("_")[0], ())
    return any(text in token.lower() for text in texts)
