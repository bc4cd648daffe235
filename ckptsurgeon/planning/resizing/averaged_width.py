"""Makes the width of a network with LayerNorm larger: the new dimensions are the mean of the old ones.

A norm that subtracts the mean sees the same mean, and a variance that is old / new times as large. The norm computes
the same for the old dimensions if its epsilon is multiplied by old / new, and its weight by the square root of old /
new. New dimensions are 0 in its output, so weights that read them may have any values: they are initialised. This is
the average expansion of LEMON (https://arxiv.org/abs/2310.07999). Each result that is added to the residual stream must
have its own mean in the new dimensions, and only norms may read the stream. So the width is averaged only in types of
networks that are known to normalise nothing but the inputs of layers: after a norm in the stream itself (BERT), the new
dimensions would be 0, not the mean. Whisper's encoder begins with a convolution and an activation, which is not linear:
there, the new dimensions are the activation of the mean. This is close to the mean of the activations, but not equal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...errors import PlanError
from ...util.text import escape
from ..keys.spelling import quoted
from .axes import Axis
from .change import Change
from .depth import OUTPUTS
from .new_width import NormForm, scaled_norm

__all__ = ["averaged_width"]

_MEAN = "averaged"
_STREAM = ("embedding", "conv", "other")
"""The kinds of modules, such as embeddings, whose outputs go only into the residual stream.

This is true in the types of networks whose width can be averaged.
"""
_ZEROS = re.compile(r"\.(q_proj|k_proj|v_proj|query|key|value|c_attn|query_key_value|pooler\.dense)\.(weight|bias)$")
"""Matches layers whose outputs do not go into the residual stream; these outputs are 0 in new dimensions."""
_IN_TURN = ".query_key_value."
_INNER, _ACTIVATED = ".encoder.conv1.", ".encoder.conv2."
"""Whisper's convolutions: the second reads the first; an activation is between the second and the residual stream."""


def averaged_width(field: str, axes: Sequence[Axis], numbers: tuple[int, int], norms: Mapping[str, NormForm]) -> Change:
    """Return the change that adds dimensions to the width, which are the mean of the old ones at first.

    New heads, and new channels whose number depends on the width, contribute nothing at first. ``norms`` are the norms
    of the source. Raises PlanError for an axis of unknown origin.
    """
    old, new = numbers
    said = f"{field} {old} to {new}: {new - old} dimensions are added, which are the mean of the old ones at first"
    change = Change(f"{said} (arXiv 2310.07999)", True)
    sharing = _sharing(axes)
    for axis in axes:
        if axis.side == "in" and _attention(axis) in sharing and OUTPUTS.search(axis.key):
            change.rows.append({"pad": axis.key, "dim": axis.dim, "size": axis.after})
            continue
        change.rows += _rows(axis, numbers, norms)
        if _is_initialised(axis):
            change.policies[axis.key] = "pad"
    for axis in axes:
        if _is_in_stream(axis, numbers):
            change.after += _with_mean(axis)
    if any(_ACTIVATED in axis.key for axis in axes):
        change.is_exact = False
        change.said += ", except after the convolutions, where they are the activation of a mean"
    return change


def _sharing(axes: Sequence[Axis]) -> set[str]:
    """Return the paths of attention modules whose new query heads share old keys, so that the heads' outputs are not 0.

    In these modules, the output projection gets zeros for the new heads. In all others, the values of new heads are 0.
    """
    made = {name: {_attention(axis) for axis in axes if f".{name}." in axis.key} for name in ("q_proj", "k_proj")}
    grown = {_attention(axis) for axis in axes if ".k_proj." in axis.key and axis.side == "out"}
    return made["q_proj"] & made["k_proj"] - grown


def _attention(axis: Axis) -> str:
    return axis.key.rpartition(".")[0].rpartition(".")[0]


def _is_initialised(axis: Axis) -> bool:
    """Return whether new elements along an axis are initialised: they read or multiply dimensions that are 0."""
    if axis.kind == "norm":
        return axis.key.endswith(".weight")
    if _INNER in axis.key:
        return True
    if axis.side == "in":
        return _ACTIVATED not in axis.key
    return not (_ZEROS.search(axis.key) or OUTPUTS.search(axis.key) or axis.kind in _STREAM)


def _is_in_stream(axis: Axis, numbers: tuple[int, int]) -> bool:
    is_output = (axis.kind in _STREAM or OUTPUTS.search(axis.key) is not None) and _INNER not in axis.key
    return axis.side == "out" and is_output and (axis.before, axis.after) == numbers and not _ZEROS.search(axis.key)


def _rows(axis: Axis, numbers: tuple[int, int], norms: Mapping[str, NormForm]) -> Iterator[dict[str, Any]]:
    """Yield the operations along an axis, except those that add a mean.

    Raises PlanError if it is not known how the axis depends on the width.
    """
    old, new = numbers
    times = axis.before // old
    is_width = (axis.before, axis.after) == numbers
    if axis.kind == "norm":
        norm = norms.get(axis.key.rpartition(".")[0])
        if norm is None or norm.kind != "mean" or not is_width:
            raise _unknown(axis)
        if axis.key.endswith(".weight"):
            yield from scaled_norm(axis.key, norm.offset, (old / new) ** 0.5)
        else:
            yield {"pad": axis.key, "dim": axis.dim, "size": new}
    elif axis.before * new != axis.after * old or axis.parts > 1:
        raise _unknown(axis)
    elif _ZEROS.search(axis.key) and axis.side == "out":
        yield from _more_heads(axis, times)
    elif axis.side == "in" and (not is_width or _ACTIVATED in axis.key):  # the new channels contribute nothing
        yield {"pad": axis.key, "dim": axis.dim, "size": axis.after}


def _more_heads(axis: Axis, times: int) -> Iterator[dict[str, Any]]:
    """Yield the operations that add heads of zeros: to queries, keys and values each, if one tensor has all three."""
    if times == 1 or _IN_TURN in axis.key:  # queries, keys and values of a head follow each other
        yield {"pad": axis.key, "dim": axis.dim, "size": axis.after}
        return
    before = [-1] * axis.dim
    after = [-1] * (axis.dim == 0 and not axis.key.endswith("bias"))
    yield {"reshape": axis.key, "shape": [*before, times, axis.before // times, *after]}
    yield {"pad": axis.key, "dim": axis.dim + 1, "size": axis.after // times}
    yield {"reshape": axis.key, "shape": [*before, axis.after, *after]}


def _with_mean(axis: Axis) -> Iterator[dict[str, Any]]:
    """Yield the operations that add the mean of the elements along an axis, as often as there are new elements."""
    key, mean = quoted(axis.key), f"{_MEAN}.{quoted(axis.key)}"
    yield {"copy": key, "into": [key, mean]}
    yield {"combine": mean, "dim": axis.dim, "groups": f"0..{axis.before - 1}"}
    again = ",".join("0" * (axis.after - axis.before))  # a tile would compute the mean for each copy
    yield {"take": mean, "dim": axis.dim, "indices": again}
    yield {"concat": [key, mean], "dim": axis.dim, "into": key}


def _unknown(axis: Axis) -> PlanError:
    return PlanError(
        f"dimension {axis.dim} of {escape(axis.key)} goes from {axis.before} to {axis.after}, and it is not known how "
        "this dimension depends on the width.",
        hint="Use a multiple of the old width: then the width is repeated instead.",
    )
