"""Notes on layers that have experts although config.json says that they have none, and the reverse."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ....planning.merge.layers import LayerList, layers_of
from ....util.note_kind import NoteKind
from ....util.notes import notes_of
from ....util.text import count, escape, listing
from .derived_kinds import LayerKinds, layer_kinds
from .experts import INITIALISED, NUMBERS
from .renumbered import part_of

__all__ = ["DENSE_NAMES", "expert_layer_notes", "has_dense_layers"]

_FIELDS = (
    "expert_layer_period", "first_k_dense_replace", "mlp_layer_types", "mlp_only_layers", "moe_layer_interval",
    "moe_layers", "num_dense_layers",
)  # fmt: skip
"""The names of the properties (``LayerKinds``) that say which layers have experts."""
_SPARSE = ("hash_moe", "listed", "moe", "sparse")
"""The values that properties in ``_FIELDS`` have for layers with experts."""
_MLP = re.compile(
    r"(?:(?:mlp|feed_forward|block_sparse_moe)\.)?(experts|switch_mlp)\.|(?:mlp|feed_forward)\.(?:gate_up|gate|up|down)_proj\b"
)
"""Matches names of tensors in a layer: of experts or routers (then group 1 is set), or of an MLP without experts."""
DENSE_NAMES = frozenset(
    f"{module}.{name}_proj.weight" for module in ("mlp", "feed_forward") for name in ("gate", "up", "down")
)
"""Names of the weights of an MLP without experts."""


def has_dense_layers(kind: str) -> bool:
    """Return whether, in models of the type ``kind``, the configuration can give experts to only some of the layers."""
    return any(_rules(kind))


def _rules(kind: str) -> Iterator[LayerKinds]:
    return (one for one in layer_kinds({}, kind) if one.name in _FIELDS)


@notes_of(NoteKind.MISSING_TENSORS)
def expert_layer_notes(lists: Sequence[LayerList], keys: Sequence[str], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if layers have experts although the configuration says that they have none, or the reverse.

    ``lists`` are the lists of layers in ``keys``. There are no notes if the configuration refers to custom code
    (``auto_map``) or declares fewer than two experts: then no layer has any.
    """
    for stack in lists if not config.get("auto_map") else ():
        part = part_of(config, stack.prefix)
        if part is None or any(part.inner[name] in (None, 0, 1) for name in NUMBERS if name in part.inner):
            continue
        for one in _rules(part.kind):
            said = part.of(one)
            found = _have_experts(stack, keys) if said else {}
            odd = [at for at, has in sorted(found.items()) if at < len(said) and (said[at] in _SPARSE) != has]
            if odd:
                says, but = ("no experts", "some") if found[odd[0]] else ("experts", "none")
                fields = listing([name for name in one.fields if part.inner.get(name) is not None], where="")
                why = fields or f"{one.name} is not set"
                more = f"; {count(len(odd) - 1, 'other layer')} too" if odd[1:] else ""
                has = f"{escape(stack.key(odd[0], ''))} has {but}"
                yield f"config.json says that layer {odd[0]} has {says} ({why}), but {has}: {INITIALISED}{more}"


def _have_experts(stack: LayerList, keys: Sequence[str]) -> dict[int, bool]:
    """Return {index of a layer: whether it has experts}; layers without a known MLP are left out."""
    found: dict[int, bool] = {}
    for number, rests in layers_of(stack, keys).items():
        matches = [match for rest in rests if (match := _MLP.match(rest))]
        if matches:
            found[number] = any(match[1] for match in matches)
    return found
