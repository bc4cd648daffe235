"""Notes on layers: a wrong number in config.json, gaps in their indices, tensors that some layers lack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

from ....planning.merge.layers import LayerList, all_lists
from ....util.note_kind import NoteKind
from ....util.notes import Note, notes_of
from ....util.text import count, escape
from ..config import declared_layers
from ..weights.shape_checks import DescribedTensor
from .dtypes import dtype_notes
from .holes import STACKS, hole_notes, is_stack, layer_gap_notes, uneven_notes

__all__ = ["layer_notes"]

COUNTED_OTHERWISE = ("efficientnet", "hrm_text", "swin2sr")
"""Model types in which the number of layers in config.json is not the length of a list of modules."""


@notes_of(NoteKind.CONFIGURATION_REFUSED)
def layer_notes(tensors: Sequence[DescribedTensor], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield notes on layers that contradict a configuration or each other: number, gaps, kinds, shapes, dtypes.

    Without a configuration, only dtypes are compared.
    """
    if not config:
        yield from dtype_notes(tensors, config)
        return
    from .expert_layers import expert_layer_notes
    from .kinds import layer_kind_notes

    keys = [one.key for one in tensors]
    kinds, number = config.get("layer_types"), config.get("num_hidden_layers")
    if isinstance(kinds, list) and type(number) is int and len(kinds) != number:
        has = f"layer_types of config.json has {count(len(kinds), 'entry', 'entries')}"
        yield f"{has}, but num_hidden_layers is {number}: transformers 5 cannot load this model"
    yield from uneven_notes(tensors, config)
    yield from dtype_notes(tensors, config)
    yield from layer_kind_notes(keys, config)
    lists, gaps = all_lists(keys)
    yield from _gaps(lists, gaps, config)
    yield from layer_gap_notes(keys) if not declared_layers(config) else ()
    yield from hole_notes(lists, gaps, keys, config)
    every = (*lists, *(LayerList(prefix, len(numbers)) for prefix, numbers in gaps.items()))
    yield from expert_layer_notes([one for one in every if is_stack(one.prefix)], keys, config)
    stacks = [one for one in lists if one.prefix.rpartition(".")[2] in STACKS]
    for name, value in declared_layers(config).items() if stacks else ():
        side = next((one for one in ("decoder", "encoder") if one in name), "")
        if (side and not any(f"{side}." in key for key in keys)) or config.get("model_type") in COUNTED_OTHERWISE:
            continue
        counts = (value, value + _more_layers(config))
        own = [one for one in stacks if not side or f"{side}." in f"{one.prefix}."]
        if own and not any(one.count in counts for one in lists):
            most = max(own, key=lambda one: one.count)
            has = f"{escape(most.prefix)} has {count(most.count, 'layer')}"
            rest = "ignores the others" if most.count > value else "initialises the others"
            yield Note(NoteKind.MISSING_TENSORS, f"config.json says {value} ({name}), but {has}: transformers {rest}")
            return


@notes_of(NoteKind.LAYER_GAP)
def _gaps(lists: Sequence[LayerList], gaps: Mapping[str, Set[int]], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if the layer indices in the keys have gaps or do not begin at 0.

    ``lists`` are the lists of numbered modules without gaps, and ``gaps`` has the indices in each other list. There is
    no note if a list without gaps has the declared number of layers: in the other lists, some modules then have no
    weights.
    """
    declared = set(declared_layers(config).values())
    if not declared - {one.count for one in lists}:
        return
    for prefix, numbers in gaps.items():
        if is_stack(prefix):
            first = next(number for number in range(max(numbers)) if number not in numbers)
            lost = count(max(numbers) + 1 - len(numbers), "layer")
            has = f"{escape(prefix)} has layers up to {max(numbers)} but lacks {lost} (the first is {first})"
            yield f"{has}: transformers initialises what is missing"
            return


def _more_layers(config: Mapping[str, Any]) -> int:
    """Return the number of layers for multi-token prediction, after the declared layers (DeepSeek-V3, GLM-4.5)."""
    more = config.get("num_nextn_predict_layers")
    return more if type(more) is int else 0
