"""Finds which rows and columns of a network's tensors belong to each head of its attention layers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..keys.spelling import numberless
from ..resizing.axes import Axis, Network
from ..resizing.fused import KIND
from .groups import HEADS
from .stored import NetworkGroup, NetworkPart

__all__ = ["HeadCounts", "heads_along", "heads_by_names", "with_tables"]

_FUSED = re.compile(
    r"(^|\.)(qkv|qkv_proj|query_key_value|c_attn|Wqkv|W_pack|wqkv|in_proj)(_weight|_bias|\.weight|\.bias)$"
)
"""Matches the keys of fused projections, which have the rows of queries, keys and values in one tensor."""
_QUERIES = re.compile(r"(^|\.)(q_proj|query|q_lin|q|to_q)\.weight$")
_OTHERS = {
    "q_proj": ("k_proj", "v_proj"), "query": ("key", "value"), "q_lin": ("k_lin", "v_lin"), "q": ("k", "v"),
    "to_q": ("to_k", "to_v"),
}  # fmt: skip
_OUTPUTS = ("o_proj", "out_proj", "out_lin", "o", "out", "dense", "c_proj", "proj")
_IN_TURN = ("query_key_value",)
"""Names of fused projections with the queries, keys and values of the first head, then those of the next head."""
_ONE_AFTER_ANOTHER = ("qkv", "in_proj")
"""Names of fused projections with all queries, then all keys, then all values.

GPT-2's ``c_attn`` and layers of the kind ``fused.KIND`` have this order, too. Projections with other names may have
another one: CodeGen's ``qkv_proj`` has four blocks, each with queries, values and keys."""


@dataclass(frozen=True)
class HeadCounts:
    """The number of query heads, the number of key heads (there are as many value heads), and the size of a head."""

    queries: int
    keys: int
    size: int


@dataclass
class _Attention:
    """An attention layer: its path, its numbers of heads, and the parts of tensors that consist of heads.

    ``units`` is the number of key heads, ``sharing`` the number of query heads that share a key head.
    """

    path: str
    units: int
    sharing: int = 1
    parts: list[NetworkPart] = field(default_factory=list)

    @property
    def group(self) -> NetworkGroup:
        return NetworkGroup(self.path, HEADS, self.units, tuple(dict.fromkeys(self.parts)), self.sharing)


def heads_along(
    axes: Sequence[Axis], shared: Iterable[tuple[str, int]], counts: HeadCounts
) -> tuple[list[NetworkGroup], list[Axis], list[str]]:
    """Return (a group of heads for each attention layer, all other axes, paths of layers whose row order is unknown).

    ``axes`` are dimensions of tensors whose size depends on the numbers of heads. ``shared`` has (key, dimension) for
    each axis that depends on the number of query heads alone. The other axes are axes outside attention layers, and
    axes of embeddings.
    """
    queries = set(shared) if counts.queries != counts.keys else set()
    sharing = counts.queries // counts.keys
    readers = [axis for axis in axes if axis.side == "in" and axis.kind.endswith("linear")]
    paths = sorted({axis.key.rpartition(".")[0].rpartition(".")[0] for axis in readers}, key=len, reverse=True)
    found = {path: _Attention(path, counts.keys, sharing) for path in paths}
    rest: list[Axis] = []
    unknown: set[str] = set()
    for axis in axes:
        path = next((one for one in paths if axis.key.startswith(f"{one}.")), None)
        if path is None or axis.kind.endswith("embedding"):
            rest.append(axis)
            continue
        parts = list(_parts(axis, (axis.key, axis.dim) in queries, counts))
        if not parts:
            unknown.add(path)
        found[path].parts += parts
    return [one.group for path, one in found.items() if path not in unknown], rest, sorted(unknown)


def _parts(axis: Axis, is_query: bool, counts: HeadCounts) -> Iterator[NetworkPart]:
    """Yield the ranges of an axis that consist of heads: one each for queries, keys and values if they are fused.

    ``is_query`` says that the axis depends on the number of query heads alone. Nothing is yielded if the order of the
    heads along the axis is unknown.
    """
    key, dim, size = axis.key, axis.dim, counts.size
    if axis.kind == KIND:
        at = 0
        for number, is_shared in ((counts.queries, True), (counts.keys, False), (counts.keys, False)):
            yield NetworkPart(key, dim, at, size, is_shared and counts.queries != counts.keys)
            at += number * size
        return
    if _FUSED.search(key):
        return
    number = counts.queries if is_query or counts.queries == counts.keys else counts.keys
    block, more = divmod(axis.before, number)
    if not more and (block % size == 0 or block == 1 or counts.queries == counts.keys):
        yield NetworkPart(key, dim, 0, block, is_query)


def heads_by_names(network: Network, heads: Mapping[str, int]) -> list[NetworkGroup]:
    """Return a group of heads for each attention layer, found by the names of its tensors.

    The function is for configurations without a field for the size of a head. ``heads`` maps the path of a module to
    its number of heads. Layers in which heads share keys and values are left out.
    """
    found = []
    for key, info in network.tensors.items():
        if (named := _QUERIES.search(key)) is not None:
            parent, name = key[: named.start(2)].rstrip("."), named[2]
            others = [_joined(parent, other, "weight") for other in _OTHERS[name]]
            parts = [NetworkPart(one, 0) for one in (key, *others) if one in network.tensors]
            if len(parts) < 3 or len({network.tensors[one.key].shape[0] for one in parts}) > 1:
                continue  # there are fewer key heads than query heads, and their number is not known
        elif _FUSED.search(key) is not None and key.endswith("weight") and len(info.shape) == 2:
            parent = key.removesuffix("_weight").removesuffix(".weight").rpartition(".")[0]
            parts = [NetworkPart(key, 1 if network.kinds.get(key) == "transposed linear" else 0)]
        else:
            continue
        number = next((heads[path] for path in (parent, _above(parent)) if path in heads), 0)
        output = _output(parent, network, {part.key for part in parts})
        if output is None or not number:
            continue
        read = network.tensors[output].shape[0 if network.kinds.get(output) == "transposed linear" else 1]
        if len(parts) == 1 and not _is_known(parts[0], network, read):
            continue
        one = _Attention(parent, number)
        one.parts += (each for part in parts for each in _of_heads(part, network, number))
        dim = 0 if network.kinds.get(output) == "transposed linear" else 1
        one.parts.append(NetworkPart(output, dim, 0, network.tensors[output].shape[dim] // number))
        found.append(one.group)
    return found


def _is_known(part: NetworkPart, network: Network, width: int) -> bool:
    """Return whether a fused projection has a known order of queries, keys and values, each with ``width`` rows."""
    kind, name = (
        network.kinds.get(part.key),
        part.key.removesuffix("_weight").removesuffix(".weight").rpartition(".")[2],
    )
    is_conv1d = name == "c_attn" and kind == "transposed linear"
    is_named = name in (*_IN_TURN, *_ONE_AFTER_ANOTHER) or kind == KIND or is_conv1d
    return is_named and network.tensors[part.key].shape[part.dim] == 3 * width


def _of_heads(part: NetworkPart, network: Network, number: int) -> Iterator[NetworkPart]:
    """Yield the parts of a projection's weight and bias; each part has ``number`` heads, one after the other.

    A projection that has all queries, then all keys, then all values has three such parts along its outputs.
    """
    bias = f"{part.key.removesuffix('weight')}bias"
    size = network.tensors[part.key].shape[part.dim]
    is_fused = _FUSED.search(part.key) is not None
    in_turn = any(name in part.key for name in _IN_TURN)
    times = 3 if is_fused and not in_turn else 1
    for key, dim in ((part.key, part.dim), (bias, 0)):
        if key in network.tensors:
            for at in range(times):
                yield NetworkPart(key, dim, at * size // times, size // times // number)


def _output(parent: str, network: Network, inputs: set[str]) -> str | None:
    """Return the key of the weight of an attention layer's output projection; None if there is none.

    The module ``parent`` is searched first, then the module that contains it. ``inputs`` are the keys of the weights of
    queries, keys and values, which are not returned.
    """
    for path in (parent, _above(parent)):
        for name in _OUTPUTS:
            for middle in ("", "output"):
                key = _joined(path, middle, name, "weight")
                if key in network.tensors and key not in inputs and network.kinds.get(key, "").endswith("linear"):
                    return key
    return None


def _joined(*parts: str) -> str:
    return ".".join(filter(None, parts))


def _above(path: str) -> str:
    return path.rpartition(".")[0]


def with_tables(groups: Sequence[NetworkGroup], tables: Sequence[Axis], units: int) -> list[NetworkGroup]:
    """Return the groups of heads; groups of layers that use the same table are joined into one group.

    ``tables`` are axes of tables of relative positions: each axis has an entry for each of the ``units`` heads. The
    table becomes a part of the joined group. T5 has such a table in its first layer, and uses it in all layers of the
    same kind. A table outside the attention layers is used by all attention layers inside the module that has it.
    """
    found = list(groups)
    for table in tables:
        inside = table.key.rpartition(".")[0].rpartition(".")[0]
        own = next((one for one in found if table.key.startswith(f"{one.name}.")), None)
        if own is not None:
            alike = [one for one in found if numberless(one.name) == numberless(own.name)]
        else:
            alike = [one for one in found if one.name.startswith(f"{inside}.") or not inside]
        part = NetworkPart(table.key, table.dim, 0, table.before // units)
        alike_parts = [each for one in alike for each in one.parts]
        merged = NetworkGroup(
            alike[0].name if len(alike) == 1 else f"{alike[0].name} and all layers of its kind",
            HEADS, units, tuple(dict.fromkeys([*alike_parts, part])), alike[0].sharing,
        ) if alike else None  # fmt: skip
        if merged is not None:
            at = found.index(alike[0])
            found = [one for one in found if one not in alike]
            found.insert(at, merged)
    return found
