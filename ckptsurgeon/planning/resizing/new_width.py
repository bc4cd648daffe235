"""Makes a width larger by dimensions that are 0 at first; the new width need not be a multiple of the old one.

Weights that compute the new dimensions are zero. Weights that read them are initialised; they are multiplied by 0 at
first. A norm that divides by the root of a mean square (RMSNorm, https://arxiv.org/abs/1910.07467) sees a mean that is
old / new times as large. It computes the same if its epsilon is multiplied by old / new, too, and its weight by the
square root of old / new. A norm that subtracts the mean (LayerNorm) would make the new dimensions differ from 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import isclose, sqrt
from typing import Any, NamedTuple

from ...errors import PlanError
from ...util.text import escape, listing
from .axes import Axis, Network
from .change import Change

__all__ = ["AVERAGED", "NormForm", "added_width", "check_norms", "scaled_norm", "with_epsilons"]

_PROJECTIONS = {
    "q_norm": ("q_proj", "heads"), "query_layernorm": ("q_proj", "heads"), "k_norm": ("k_proj", "kv_heads"),
    "key_layernorm": ("k_proj", "kv_heads"),
}  # fmt: skip
"""{name of a norm over each head: (projection before the norm, role of the number of heads)}."""
AVERAGED: Mapping[str, str] = {
    "gpt2": "", "gpt_bigcode": "", "gpt_neox": "", "vit": "", "whisper": "", "clip": "text_config",
}  # fmt: skip
"""The types of networks whose new dimensions can be the mean of the old ones instead (``averaged_width``).

Each is mapped to the path of the part of its configuration with such a width, "" for the whole.
"""
_WHY = {
    "mean": "subtracts the mean over the width, and added zeros would change this mean (the mean itself can be added "
    f"to {', '.join(AVERAGED)}, which normalise only what their layers read)",
    "bare": "has no weight that could make up for the larger width",
}
"""{kind of norm: why zeros cannot be added to what it normalises}."""
_HEADS = (re.compile(r"(^|\.)q_proj\.(weight|bias)$"), re.compile(r"(^|\.)o_proj\.weight$"))
"""Match the projections that have query heads along the first dimension, and along the second dimension."""


class NormForm(NamedTuple):
    """The computation of a norm: its number of inputs, its epsilon, and the use of its weight.

    An unknown ``size`` is 0, an unknown ``epsilon`` None. ``offset`` is the number that the norm adds to its weight (1
    for Gemma's norms). ``kind`` is "rms" (RMSNorm), "mean" if the mean is subtracted, "bare" if it has no weight, or ""
    if it is not known.
    """

    size: int
    epsilon: float | None
    offset: float
    kind: str


Norms = Mapping[str, NormForm]
"""{path of a module: the form of the norm}, for all norms of a network."""


def check_norms(field: str, before: Norms, after: Norms, numbers: tuple[int, int]) -> None:
    """Raise PlanError if a norm along the width would compute something else with added zeros.

    ``after`` are the norms of the network with the new width. If this network cannot be built, ``after`` is ``before``.
    Then it is not known which norms are along the width, and which along another dimension of the same size. In this
    case, an error is raised only if all norms of this size would compute something else.
    """
    own = {path: one for path, one in before.items() if one.size == numbers[0] or (one.kind == "bare" and not one.size)}
    if after is before and not all(one.kind in _WHY for one in own.values()):
        return
    for path, norm in own.items():
        is_over_width = after is before or after.get(path, norm).size in (numbers[1], 0)
        if is_over_width and norm.kind in _WHY:
            raise _impossible(field, numbers, f"{escape(path)} {_WHY[norm.kind]}")


def added_width(
    field: str,
    axes: Sequence[Axis],
    numbers: tuple[int, int],
    norms: Norms,
    more: Mapping[str, float],
    groups: int = 1,
) -> Change:
    """Return the change that adds dimensions to the width, which are 0 at first.

    ``norms`` are the norms of the source. ``more`` maps the keys of norms' weights to factors that also multiply these
    weights. If the number of query heads grows with the width, ``groups`` is the number of key heads that they share.
    Raises PlanError if a norm would compute something else, or if the size of an axis is not just the width.
    """
    old, new = numbers
    change = Change(f"{field} {old} to {new}: {new - old} dimensions are added, which are 0 at first", True)
    factor = sqrt(old / new)
    for axis in axes:
        if (axis.before, axis.after) != numbers or axis.parts > 1:
            what = f"dimension {axis.dim} of {escape(axis.key)} goes from {axis.before} to {axis.after}"
            raise _impossible(field, numbers, f"{what}, so this dimension is not simply the width")
        if axis.kind == "norm" and axis.key.endswith(".weight"):
            path = axis.key.rpartition(".")[0]
            if path not in norms or norms[path].kind != "rms":
                raise _impossible(field, numbers, f"it is not known how {escape(path)} normalises")
            change.rows += scaled_norm(axis.key, norms[path].offset, factor * more.get(axis.key, 1.0))
            change.policies[axis.key] = "pad"
        elif groups > 1 and _HEADS[axis.dim > 0].search(axis.key):
            change.rows += _more_heads(axis, groups)
        elif axis.side == "out":
            change.rows.append({"pad": axis.key, "dim": axis.dim, "size": new})
        else:
            change.policies[axis.key] = "pad"
    return change


def scaled_norm(key: str, offset: float, factor: float) -> list[dict[str, Any]]:
    """Return operations that change a weight so that (weight + ``offset``) is multiplied by ``factor``."""
    if isclose(factor, 1.0, rel_tol=1e-12):
        return []
    scaled: dict[str, Any] = {"scale": key, "by": factor}
    return [scaled, {"shift": key, "by": offset * (factor - 1.0)}] if offset else [scaled]


def _more_heads(axis: Axis, groups: int) -> list[dict[str, Any]]:
    """Return operations that add zeros to each group of query heads that share a key head."""
    first, rest = [-1] * axis.dim, [-1] * (axis.dim == 0 and not axis.key.endswith("bias"))
    return [
        {"reshape": axis.key, "shape": [*first, groups, axis.before // groups, *rest]},
        {"pad": axis.key, "dim": axis.dim + 1, "size": axis.after // groups},
        {"reshape": axis.key, "shape": [*first, axis.after, *rest]},
    ]


def _impossible(field: str, numbers: tuple[int, int], why: str) -> PlanError:
    old, new = numbers
    return PlanError(
        f"{field} {old} to {new}: dimensions that are 0 at first cannot be added, because {why}.",
        hint=f"Use {old * max(new // old, 2)} or another multiple of {old}: then the width is repeated instead.",
    )


def with_epsilons(
    change: Change, before: Norms, after: Norms, numbers: tuple[int, int], network: Network, heads: Mapping[str, int]
) -> Change:
    """Return ``change`` with operations that correct for changed epsilons, or with a note that the outputs change.

    In a norm over the width, epsilon must be multiplied by old / new; in other norms, it must stay the same. If epsilon
    changes in a norm over the queries or keys of a head, their projection is scaled, so that the norm computes the
    same. ``heads`` has the numbers of "heads" and "kv_heads".
    """
    old, new = numbers
    apart = []
    for path, norm in before.items():
        other = after.get(path, norm)
        if not norm.epsilon or not other.epsilon:
            continue
        is_wider = (norm.size, other.size) == numbers
        if isclose(other.epsilon, norm.epsilon * (old / new if is_wider else 1.0), rel_tol=1e-6):
            continue
        keys = [] if is_wider else _projection(path, norm.size, network, heads)
        change.rows += [{"scale": key, "by": sqrt(other.epsilon / norm.epsilon)} for key in keys]
        if not keys:
            apart.append(path)
    if apart:
        change.is_exact = False
        change.said += f", but the epsilon of {listing(apart, 3)} would have to change with the width"
    return change


def _projection(path: str, size: int, network: Network, heads: Mapping[str, int]) -> list[str]:
    """Return the keys of the projection whose outputs only the norm ``path`` reads; [] if there is none.

    Such a norm is over the queries or keys of each head; a head has ``size`` elements.
    """
    parent, _, name = path.rpartition(".")
    if name not in _PROJECTIONS:
        return []
    projection, role = _PROJECTIONS[name]
    keys = [f"{parent}.{projection}.{end}" for end in ("weight", "bias")]
    found = [key for key in keys if key in network.tensors]
    return found if all(network.tensors[key].shape[0] == heads[role] * size for key in found) else []
