"""Makes fewer heads, channels or experts: keeps those with the largest weights, or those in a list.

Without data, the score of a head, channel or expert is computed from its weights. The score is the product of a sum of
squares for each layer that computes or reads the unit: the sum is over the unit's weights in this layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite

from ...errors import PlanError
from ...util.text import IN_JSON, escape, listing, reasons
from .axes import Axis, taken
from .change import Change

__all__ = ["by_layer", "check_channels", "check_units", "groups_of", "largest", "scores_by_weights", "selected"]

SHOWN, LONGEST = 3, 60
"""Limits of a note on kept units: the number of layers that it lists, and the length of the text for each layer."""


def groups_of(axes: Sequence[Axis]) -> list[list[Axis]]:
    """Return the axes in groups; all axes of a group, such as one attention layer's, must keep the same units.

    Axes of one module (``mlp``, ``self_attn``) are a group if it has outputs and inputs. All other axes of one layer
    (``encoder.layer.3``) are a group together.
    """
    parents = {_parent(axis) for axis in axes if axis.side == "in"}
    by_parent: dict[str, list[Axis]] = {}
    for axis in axes:
        own = axis.key.rpartition(".")[0]  # a parameter of the attention module itself, such as gpt-oss' sinks
        by_parent.setdefault(own if own in parents else _parent(axis), []).append(axis)
    found, rest = [], []
    for group in by_parent.values():
        if {axis.side for axis in group} == {"out", "in"}:
            found.append(group)
        else:
            rest += group
    by_layer: dict[str, list[Axis]] = {}
    for axis in rest:
        by_layer.setdefault(_layer(axis.key), []).append(axis)
    return [*found, *by_layer.values()]


def _parent(axis: Axis) -> str:
    parts = axis.key.split(".")
    return ".".join(parts[: -1 if "experts" in axis.kind else -2])


def _layer(key: str) -> str:
    """Return the layer of a key, which is the key up to its last number: ``layers.3`` for ``layers.3.mlp.up``."""
    parts = key.split(".")
    last = max((at for at, part in enumerate(parts) if part.isdigit()), default=-1)
    return ".".join(parts[: last + 1])


def by_layer(groups: Sequence[Sequence[Axis]], texts: Sequence[str]) -> str:
    """Return texts on groups of axes as one text that names the layers: "0..3 in layers.0, 4..7 in layers.1".

    ``texts`` has a text for each group. If all are equal, the text is not repeated; at most ``SHOWN`` texts are listed.
    """
    if len(set(texts)) == 1 and len(texts) > 1:
        return f"{escape(texts[0], LONGEST)} in each layer"
    said = [
        f"{escape(text, LONGEST)} in {escape(_layer(axes[0].key))}" for axes, text in zip(groups, texts, strict=True)
    ]
    return f"{reasons(said, SHOWN)}{IN_JSON if len(said) > SHOWN else ''}"


def check_channels(field: str, groups: Sequence[Sequence[Axis]]) -> None:
    """Raise PlanError if layers that belong together do not have equally many channels, or if one of them is not found.

    If the numbers differ, one of the layers may have the rows of both gate and up projection, in an unknown order. In
    each group, one layer has to compute the channels, and another has to read them.
    """
    for axes in groups:
        sizes = {axis.before // axis.parts // axis.block: axis.key for axis in axes}
        if len(sizes) > 1:
            raise PlanError(
                f"it is not known how the channels of {listing(list(sizes.values()))} belong together: one of "
                "these layers may have the rows of both gate and up projection.",
                hint=f"Leave {field} as it is.",
            )
        if {axis.side for axis in axes} != {"out", "in"}:
            key, is_input = escape(axes[0].key), axes[0].side == "in"
            raise PlanError(
                f"no layer was found that {'computes' if is_input else 'reads'} the channels that {key} "
                f"{'reads' if is_input else 'computes'}: channels can only be chosen in both layers together.",
                hint=f"Leave {field} as it is.",
            )


def largest(scores: Iterable[float], keep: int, within: int = 1) -> list[int]:
    """Return the indices of the ``keep`` largest scores, in ascending order; of equal scores, the first are kept.

    The scores are divided into ``within`` equal parts, and equally many are kept in each part. Raises PlanError if a
    score is NaN or infinite.
    """
    found = list(scores)
    if not all(map(isfinite, found)):
        raise PlanError(
            "some weights or statistics are NaN or infinite, so ckpt cannot choose what to keep (heads, channels, "
            "experts or layers).",
            hint="Find the NaN and infinite values with ckpt check, or list what to keep (--keep, --layers).",
        )
    size, each = len(found) // within, keep // within
    kept = []
    for part in range(within):
        own = range(part * size, (part + 1) * size)
        kept += sorted(sorted(own, key=lambda index: (-found[index], index))[:each])
    return kept


def check_units(field: str, axes: Sequence[Axis], numbers: tuple[int, int]) -> None:
    """Raise PlanError if an axis does not have a whole number of elements for each unit, before and after."""
    old, new = numbers
    for axis in axes:
        if axis.before % (axis.parts * old) or axis.after * old != axis.before * new:
            raise PlanError(
                f"{field} {old} to {new} changes dimension {axis.dim} of {escape(axis.key)} from {axis.before} to "
                f"{axis.after}, which is not the same proportion.",
                hint=f"Leave {field} as it is.",
            )


def selected(
    field: str, groups: Sequence[Sequence[Axis]], kept: Sequence[Sequence[int]], numbers: tuple[int, int], by: str
) -> Change:
    """Return the change that keeps, in each group of axes, the units ``kept``; ``by`` says how they were chosen.

    Raises PlanError if an axis does not have a whole number of elements for each unit.
    """
    old, new = numbers
    rows = []
    for axes, units in zip(groups, kept, strict=True):
        check_units(field, axes, numbers)
        runs = [(index, index + 1) for index in units]
        rows += [taken(axis, runs, axis.before // (axis.parts * old)) for axis in axes]
    return Change(f"{field} {old} to {new}: {by}", False, rows)


def scores_by_weights(sums: Mapping[str, Sequence[float]]) -> list[float]:
    """Return the score of each unit: the product of its sums of squares; ``sums`` has one per tensor and unit."""
    scores = [1.0] * len(next(iter(sums.values())))
    for own in sums.values():
        mean = sum(own) / len(own) or 1.0  # so that no product overflows
        scores = [score * one / mean for score, one in zip(scores, own, strict=True)]
    return scores
