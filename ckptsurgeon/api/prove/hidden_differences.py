"""Says what happened to weights that differ by more than rounding explains, but whose effect no output shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ...analysis.prove.change_text import experts_text
from ...analysis.prove.proof import MovedExpert, Proof
from ...util.note_kind import NoteKind
from ...util.notes import Note
from ...util.text import count, listing
from .experts import experts_around
from .weights import RECOGNISED, beyond_rounding, changed_tensors, hidden_embeddings, without_effect

if TYPE_CHECKING:
    from .inputs import Inputs
    from .network import Network
    from .vocabularies import SharedTokens

__all__ = ["with_unseen"]

SHOWN = 8


def with_unseen(proof: Proof, networks: Sequence[Network], shared: SharedTokens | None, inputs: Inputs) -> Proof:
    """Return ``proof`` with tensors that differ by more than rounding explains, although the outputs do not differ.

    The inputs may be unable to show the effect of such a tensor, for example because they do not use the values that
    differ. Such tensors are in ``unused_differing`` of the result, and the first ``RECOGNISED`` of them also in
    ``changed``. A note lists the other tensors.
    """
    apart = list(beyond_rounding(networks, shared))
    alone = [key for key in proof.unused if key in apart]
    alone += [key for key in without_effect(apart, (*proof.blocks, proof.output)) if key not in alone]
    changed = changed_tensors(networks, alone[:RECOGNISED])
    alone += hidden_embeddings(networks, shared, inputs.token_ids())
    hidden = [key for key in apart if key not in alone]
    notes = (*proof.notes, _hidden_note(networks, hidden)) if hidden else proof.notes
    return replace(proof, changed=changed, unused_differing=tuple(alone), notes=notes)


def _hidden_note(networks: Sequence[Network], keys: list[str]) -> Note:
    what = count(len(keys), "tensor differs", "tensors differ")
    said = f"{what} by more than rounding explains, but the outputs for these inputs do not show it"
    return Note(NoteKind.SERIOUS, f"{said}: {listing(list(_described(networks, keys)), SHOWN, where='')}")


def _described(networks: Sequence[Network], keys: list[str]) -> Iterator[str]:
    """Yield a text for each mixture of experts whose experts are in another order, then the keys of all other tensors.

    Only the first ``RECOGNISED`` tensors of mixtures of experts are examined.
    """
    around = experts_around(networks[0].module, keys)
    changed = changed_tensors(networks, list(around)[:RECOGNISED])
    left = list(keys)
    for path in dict.fromkeys(around.values()):
        inside = {one.key: one.experts for one in changed if around[one.key] == path}
        orders = set(inside.values())
        moved: Sequence[MovedExpert] = next(iter(orders), ())
        if len(orders) == 1 and len(_modules(inside)) > 1 and _is_order(moved):
            yield f"the router and the experts of {path or 'the network'} are in another order ({experts_text(moved)})"
            left = [key for key in left if key not in inside]
    yield from left


def _modules(keys: Sequence[str] | dict[str, tuple[MovedExpert, ...]]) -> set[str]:
    """Return the names of the modules of tensors; the experts of a layer are one module, their router is another."""
    return {key.rpartition(".")[0] for key in keys}


def _is_order(moved: Sequence[MovedExpert]) -> bool:
    """Return whether the experts in ``moved`` equal the same experts of the first network, in another order."""
    return bool(moved) and {one.equals for one in moved} == {one.index for one in moved}
