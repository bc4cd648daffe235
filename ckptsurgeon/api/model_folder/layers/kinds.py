"""A note on layers of another kind than config.json says: with Mamba instead of attention, for example."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ....planning.merge.layers import layers_of, numbered_lists
from ....util.note_kind import NoteKind
from ....util.notes import notes_of
from ....util.text import count, escape, listing
from .derived_kinds import layer_kinds
from .holes import is_stack
from .renumbered import part_of

__all__ = ["layer_kind_notes"]

FIELDS = ("layer_types", "layers_block_type")
"""Fields of config.json with the kind of each layer."""
PERIOD = "attn_layer_period"
"""The name of the property that says which of Jamba's layers have attention."""
WHOLE = ("attention", "full_attention", "sliding_attention", "chunked_attention")
"""Kinds whose layers have a module with "attention" or "attn" in its name; linear attention may have another name."""
MIXES = re.compile(
    r"^(?!.*norm).*(att|conv|delta|gru|lstm|mamba|mixer|recurrent|retention|rnn|ssm|temporal)", re.IGNORECASE
)
"""Matches names of modules that show the kind of a layer.

It does not match norms and experts, which may differ for other reasons.
"""
ATTENTION = re.compile(r"(self_?)?att(ention|n)(_layer)?", re.IGNORECASE)


@notes_of(NoteKind.MISSING_TENSORS)
def layer_kind_notes(keys: Sequence[str], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if layers have modules that are typical of another kind than the configuration says."""
    for stack in numbered_lists(list(keys)):
        field, kinds = _stated(config, stack.prefix) if is_stack(stack.prefix) else ("", [])
        if stack.count != len(kinds) or not all(isinstance(one, str) for one in kinds) or len({*kinds}) < 2:
            continue
        modules = _mixers({number: list(rests) for number, rests in layers_of(stack, keys).items()})
        usual = {name: _most([modules[at] for at, one in enumerate(kinds) if one == name]) for name in {*kinds}}
        others_attend = any(_attends(modules[at]) for at, one in enumerate(kinds) if one not in WHOLE)
        odd = {}
        for number, own in modules.items():
            lacks_attention = others_attend and kinds[number] in WHOLE and not _attends(own)
            if own and (lacks_attention or _is_of_another(own, kinds[number], usual)):
                odd[number] = own
        for number, own in odd.items():
            more = f"; {count(len(odd) - 1, 'other layer')} too" if len(odd) > 1 else ""
            at = f"({field}[{number}])" if isinstance(config.get(field), list) else f"for layer {number} ({field})"
            said = f"config.json says {escape(kinds[number])} {at}"
            has = f"{escape(stack.key(number, ''))} has {listing(sorted(own), 3, where='')}"
            yield f"{said}, but {has}, as layers of another kind do: transformers initialises what is missing{more}"
            break


def _stated(config: Mapping[str, Any], prefix: str) -> tuple[str, list[Any]]:
    """Return (field, kind of each layer) for the layers with a key prefix; ('', []) if the kinds are not known.

    If config.json has no list of kinds, they are derived from other fields, as the class of the model does.
    """
    field = next((one for one in FIELDS if isinstance(config.get(one), list)), "")
    if field:
        return field, config[field]
    part = part_of(config, prefix) if not config.get("auto_map") else None
    rules = layer_kinds({}, part.kind) if part is not None else ()
    found = ((one.name, part.of(one)) for one in rules if part is not None and one.name in (*FIELDS, PERIOD))
    return next(((name, kinds) for name, kinds in found if kinds), ("", []))


def _mixers(layers: Mapping[int, Sequence[str]]) -> dict[int, frozenset[str]]:
    """Return {layer: names of its modules that mix tokens (such as attention)}.

    Modules that all layers have are left out.
    """
    found = {
        number: {name for rest in rests if "." in rest and MIXES.search(name := rest.partition(".")[0])}
        for number, rests in layers.items()
    }
    common = set[str].intersection(*found.values()) if found else set()
    return {number: frozenset(own - common) for number, own in found.items()}


def _is_of_another(own: frozenset[str], kind: str, usual: Mapping[str, frozenset[str]]) -> bool:
    """Return whether a layer has the typical modules of another kind, and not those of its own kind.

    ``own`` are the modules of the layer, and ``kind`` is its kind. ``usual`` has, for each kind, the set of modules
    that most layers of this kind have.
    """
    others = [found for name, found in usual.items() if name != kind]
    return bool(usual[kind]) and own != usual[kind] and own in others


def _attends(modules: frozenset[str]) -> bool:
    return any(map(ATTENTION.fullmatch, modules))


def _most(found: Sequence[frozenset[str]]) -> frozenset[str]:
    return Counter(found).most_common(1)[0][0]
