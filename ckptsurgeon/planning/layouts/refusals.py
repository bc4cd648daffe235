"""Refuses conversions after which a network would lack tensors, or compute something else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any

from ...errors import PlanError
from ...util.text import count, escape, listing
from ..keys.row_order import HALVES, PAIRS
from ..operations.markers import is_marker
from .layout import Family, Layout, Row

__all__ = ["check_fit", "check_named", "check_rotated"]

_QUANTISED = ("scale", "zeros", "zero_point", "absmax")
"""Words in the names of the tensors that are needed to decode quantised weights, such as scales."""


def check_named(odd: Sequence[str], family: Family, source: Layout, target: Layout, label: str) -> None:
    """Raise PlanError unless ``odd``, the keys of the tensors without a name in the layout ``target``, is empty."""
    if odd:
        has = "has" if len(odd) == 1 else "have"
        raise PlanError(
            f"{count(len(odd), 'tensor')} of {escape(label)} {has} no name in the layout {target.name} of the family "
            f"{family.name}: {listing(odd)}; the other tensors have the layout {source.name}.",
            hint=_hint(odd, source),
            details=odd,
        )


def check_rotated(rows: Sequence[Row], family: Family, config: Mapping[str, Any], label: str) -> None:
    """Raise PlanError if ``rows`` reorder queries and keys, and the model may not rotate the rows as ``family`` does.

    ``rows`` are operations; ``config`` shows which rows the model's rotary embedding rotates.
    """
    if not any(order in row for row in rows for order in (HALVES, PAIRS)):
        return
    kind, rope = config.get("model_type"), config.get("rope_parameters")
    part = config.get("partial_rotary_factor", rope.get("partial_rotary_factor") if isinstance(rope, dict) else None)
    if isinstance(kind, str) and kind not in family.rotated:
        why = f"config.json says that the model_type is {escape(kind, 40)}"
    elif part not in (None, 1):
        why = f"config.json has partial_rotary_factor {escape(str(part), 40)}"
    else:
        return
    raise PlanError(
        f"the rows of queries and keys of {escape(label)} cannot be reordered: {why}, and its rotary embedding may "
        f"rotate other rows than {' and '.join(family.rotated)} models do.",
        hint="Rename the tensors with rules, and reorder rows with --operations (halves, pairs) if that is right.",
    )


def check_fit(layouts: Iterable[Layout], config: Mapping[str, Any], label: str) -> None:
    """Raise PlanError if a network with the configuration ``config`` cannot have one of the layouts."""
    for layout in layouts:
        if unfit := layout.unfit(config):
            raise PlanError(
                f"{escape(label)} cannot be converted between the layout {layout.name} and another one: {unfit.why}.",
                hint=unfit.hint,
            )


def _hint(odd: Sequence[str], source: Layout) -> str:
    levels = zip(*(name.split(".") for name in source.names.values()), strict=False)
    prefix = ".".join(level[0] for level in takewhile(lambda level: len({*level}) == 1, levels))
    if prefix and not any(f"{key}.".startswith(f"{prefix}.") for key in odd):
        return f"Convert one model at a time: ckpt filter --include {escape(prefix)} takes this one out."
    if any(word in key.rpartition(".")[2] for key in odd for word in _QUANTISED if not is_marker(key)):
        return "Decode quantised weights first, with ckpt convert --dequantize."
    return "Leave them out first, with ckpt filter --exclude."
