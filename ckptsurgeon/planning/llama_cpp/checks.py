"""Checks that a model has all of its tensors, and that each tensor has a name in the other layout."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from ...errors import PlanError
from ...util.text import count, listing, natural_key

__all__ = ["check_complete", "check_named"]

_OF_ONE_EXPERT = re.compile(r"\.experts\.\d+\.")


def check_complete(keys: Collection[str]) -> None:
    """Raise PlanError if a layer of a model of transformers lacks a tensor that other layers have.

    The tensors of each expert are not compared: ``experts_of`` counts them.
    """
    layers: dict[str, dict[str, str]] = {}
    numbers = set[str]()
    for key in keys:
        parts = key.split(".", 3)
        if key.startswith("model.layers.") and len(parts) == 4 and not _OF_ONE_EXPERT.search(parts[3]):
            layers.setdefault(parts[3], {})[parts[2]] = key
            numbers.add(parts[2])
    for name, found in layers.items():
        lost = sorted(numbers - set(found), key=natural_key)
        if lost and not name.startswith("self_attn.rotary_emb"):
            raise PlanError(
                f"model.layers.{lost[0]}.{name} is missing, although other layers have this tensor.",
                hint="Complete the model, or convert without changing the layout: --layout keep.",
            )


def check_named(odd: Sequence[str], there: str) -> None:
    """Raise PlanError unless ``odd``, the keys of the tensors without a name in the program ``there``, is empty."""
    if odd:
        raise PlanError(
            f"{count(len(odd), 'tensor')} {'has' if len(odd) == 1 else 'have'} no name in {there}: {listing(odd)}.",
            hint="Leave these tensors out first, with ckpt filter --exclude, or keep the names: --layout keep.",
            details=odd,
        )
