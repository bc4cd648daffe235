"""Finds the axes of tensors that a field of the configuration changes, and their roles in a layer.

The shapes of two networks are compared; their configurations differ only in this field. An axis of another size belongs
to the outputs of a layer ("out") or to its inputs ("in"), as the class of the layer shows. If the outputs of a layer
are repeated, the layers that read them divide their weights, so that sums stay the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import PlanError
from ...tensors.composition import merged_runs
from ...tensors.info import TensorInfo
from ...util.text import escape, listing, shape_text
from ..keys.spelling import numberless, quoted

__all__ = ["Axis", "Network", "Runs", "changed_axes", "grouped", "indices_text", "taken"]

Runs = Sequence[tuple[int, int]]
"""Ranges of indices, each from the first up to, but not including, the second."""

_SIDES: Mapping[str, tuple[str, ...]] = {
    "linear": ("out", "in"),
    "conv": ("out", "in"),
    "transposed conv": ("in", "out"),
    "transposed linear": ("in", "out"),
    "embedding": ("out", "out"),
    "scaled embedding": ("out", "out"),
    "router": ("out", "in"),
    "queries, keys and values": ("out", "in"),
    "queries, keys and values of each group": ("out", "in"),
}
"""{kind of module: the side (outputs or inputs) of each of the first dimensions of its weight}."""
_FUSED = ("gate_up_proj", "gate_up_proj_bias", "Wi", "gate_and_up_proj")
"""Names of weights and biases that have the rows of two layers: gate projection and up projection."""


@dataclass(frozen=True)
class Network:
    """The tensors of a network without values: their headers, the kind of each tensor's module, and the ties.

    Kinds are "linear", "conv", "transposed conv", "transposed linear" (GPT-2's Conv1D), "embedding", "scaled
    embedding", "norm", "router", "queries, keys and values" (of all heads in one tensor; or "of each group"), "experts"
    (the weights of all experts in one tensor), "interleaved experts" (gpt-oss: inputs before outputs, rows of gate and
    up projection alternate) and "other". ``ties`` maps each further key of a tensor to its first key.
    """

    tensors: Mapping[str, TensorInfo]
    kinds: Mapping[str, str]
    ties: Mapping[str, str]


@dataclass(frozen=True)
class Axis:
    """A dimension of a tensor whose size changes from ``before`` to ``after``; ``side`` is "out" or "in".

    ``parts`` is the number of layers whose rows follow each other along the dimension (2: gate and up projection);
    ``block`` is 2 if the rows of the two layers alternate.
    """

    key: str
    dim: int
    before: int
    after: int
    side: str
    kind: str
    parts: int = 1
    block: int = 1


def changed_axes(role: str, field: str, before: Network, after: Network) -> list[Axis]:
    """Return the axes that another value of ``field`` changes; ``role`` is the kind of unit that ``field`` counts.

    Raises PlanError if the field adds or removes tensors, or if it is not known what a layer does along an axis.
    """
    _check_same_keys(field, before, after)
    found = []
    for key, info in before.tensors.items():
        if key in before.ties:
            continue
        shape = after.tensors[key].shape
        if len(shape) != len(info.shape):
            raise PlanError(
                f"{field} changes {escape(key)} from {shape_text(info.shape)} to {shape_text(shape)}, which has "
                "another number of dimensions.",
                hint=f"Leave {field} as it is.",
            )
        kind, name = before.kinds.get(key, "other"), key.rpartition(".")[2]
        dims = [dim for dim, (old, new) in enumerate(zip(info.shape, shape, strict=True)) if old != new]
        for dim in dims:
            side = _side(role, kind, key, dim, len(info.shape))
            fused = role == "channels" and side == "out" and _is_fused(key, name)
            turns = fused and kind == "interleaved experts"
            found.append(
                Axis(
                    key,
                    dim,
                    info.shape[dim],
                    shape[dim],
                    side,
                    kind,
                    2 if fused and not turns else 1,
                    2 if turns else 1,
                )
            )
    if not found:
        raise PlanError(
            f"{field} changes the shape of no tensor, so there is nothing to resize.",
            hint=f"Perhaps other fields have to change together with {field}, or no weights depend on this field.",
        )
    return found


def _is_fused(key: str, name: str) -> bool:
    return name in _FUSED or key.rpartition(".")[0].rpartition(".")[2] in _FUSED or ".gate_up_proj" in key


def _check_same_keys(field: str, before: Network, after: Network) -> None:
    added = [key for key in after.tensors if key not in before.tensors]
    removed = [key for key in before.tensors if key not in after.tensors]
    if added or removed:
        what = f"adds {listing(added)}" if added else f"removes {listing(removed)}"
        raise PlanError(
            f"{field} {what}: this changes the kind of network, not only its size.", hint=f"Leave {field} as it is."
        )


def _side(role: str, kind: str, key: str, dim: int, dims: int) -> str:
    """Return whether dimension ``dim`` of a tensor belongs to the outputs ("out") or the inputs ("in") of its layer.

    ``role`` is the kind of unit that the changed field counts (see ``role_of``), ``kind`` is the kind of the module,
    ``dims`` the number of dimensions. Raises PlanError if the side is not known.
    """
    name = key.rpartition(".")[2]
    if kind in ("experts", "interleaved experts"):
        if dim == 0 or "bias" in name:
            return "out"
        first = "gate" in name or "up" in name
        return "out" if first == (role == "channels") else "in"
    if dims == 1 or kind == "norm":
        return "out"
    if kind in _SIDES and dim < 2:
        return _SIDES[kind][dim]
    if kind == "other" and _is_table(key):
        return "out"
    raise PlanError(
        f"it is not known whether dimension {dim} of {escape(key)} belongs to the inputs or the outputs of a layer.",
        hint="Leave this field of the configuration as it is.",
    )


def _is_table(key: str) -> bool:
    """Return whether a parameter is a table of embeddings, by its name: cls_token, position_embeddings."""
    name = key.rpartition(".")[2]
    return name.endswith(("token", "tokens", "embedding", "embeddings", "embed"))


def taken(axis: Axis, runs: Runs, unit: int = 1) -> dict[str, Any]:
    """Return the operation that takes the units with the indices ``runs`` along an axis.

    If the axis has several parts, such as the rows of gate and up projection, the units are taken from each. A unit has
    ``unit`` elements.
    """
    size = axis.before // axis.parts // unit
    shifted = [(begin + part * size, end + part * size) for part in range(axis.parts) for begin, end in runs]
    return {"take": axis.key, "dim": axis.dim, "block": unit, "indices": indices_text(shifted)}


def indices_text(runs: Runs) -> str:
    """Return ranges of indices as text, as in ``0..3,8..11``; both ends of a range are in it."""
    merged = merged_runs(runs)
    return ",".join(str(begin) if end - begin == 1 else f"{begin}..{end - 1}" for begin, end in merged)


def grouped(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the operations ``rows``, each on one key, joined into fewer operations on patterns.

    Equal operations on keys that differ only in numbers, such as layer numbers, become one operation on a pattern that
    matches these keys alone. ``keys`` are all keys of the network. The order of the operations on one key is kept.
    """
    while rows:
        first: dict[str, Mapping[str, Any]] = {}
        later = []
        for row in rows:
            key = str(next(iter(row.values())))
            (later.append(row) if key in first else first.update({key: row}))
        yield from _together(first, keys)
        rows = later


def _together(rows: Mapping[str, Mapping[str, Any]], keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    alike: dict[tuple[str, str, str], list[str]] = {}
    for key, row in rows.items():
        verb, *fields = row.items()
        alike.setdefault((verb[0], numberless(key), repr(fields)), []).append(key)
    all_of: dict[str, set[str]] = {}
    for key in keys:
        all_of.setdefault(numberless(key), set()).add(key)
    for (does, pattern, _), ours in alike.items():
        others = {name: value for name, value in rows[ours[0]].items() if name != does}
        if len(ours) > 1 and all_of[pattern] == set(ours):
            yield {does: pattern, **others}
        else:
            for key in ours:
                yield {does: quoted(key), **others}
