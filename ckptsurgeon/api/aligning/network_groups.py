"""Finds which axes of a network may be permuted together: it builds the network with two values of each size field.

As in ``resize``, an axis belongs to a field if its size changes with the value of the field. The axes of a field are
then divided into groups, such as one for each layer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from typing import Any

from ...destinations.attention_heads import attention_heads
from ...destinations.hf.resizable import Resizable
from ...destinations.module_kinds import module_facts
from ...errors import CheckpointError, PlanError
from ...planning.aligning.attention import HeadCounts, heads_along, heads_by_names, with_tables
from ...planning.aligning.groups import CHANNELS, EXPERTS, RESIDUAL
from ...planning.aligning.stored import NetworkGroup, NetworkPart
from ...planning.resizing.axes import Axis, Network
from ...planning.resizing.fields import EXPERT_GROUPS, role_of
from ...planning.resizing.select import groups_of
from ...planning.target import TargetSpec
from ...util.text import escape, listing
from ..from_pretrained import class_of
from ..resize.checks import has_heads_in_pairs
from .rebuilt_network import RebuiltNetwork

__all__ = ["NetworkGroups"]

UNUSED = "changes the shape of no tensor"
"""Part of the error message about a configuration field whose value changes no shape."""
_ALIBI = "slopes of ALiBi"


class NetworkGroups:
    """The groups of axes of a network that may be permuted (``found``).

    ``left`` has a text on each kind of axes that may not be permuted, with the reason. It is empty until ``found`` has
    been read.
    """

    def __init__(self, base: Resizable) -> None:
        self._network = RebuiltNetwork(base)
        self.first = self._network.first
        self.left: list[str] = []
        self._by_names: list[NetworkGroup] = []
        self._tables: list[NetworkGroup] = []
        self._unclear: set[str] = set()
        self._has_sized_heads = False
        self._channels: dict[str, int] = {}

    @property
    def model_type(self) -> str:
        """The model type of the network."""
        return self._network.model_type

    @property
    def sizes(self) -> dict[str, Any]:
        """The fields of the configuration that determine sizes, by their dotted paths."""
        return self._network.sizes

    @cached_property
    def found(self) -> list[NetworkGroup]:
        """The groups, in the order in which they are aligned: residual stream, experts, heads, channels."""
        channels = [one for path in self._network.paths("channels") for one in self._of_channels(path)]
        heads = [one for path in self._network.paths("heads") for one in self._of_heads(path)]
        experts = [one for path in self._network.paths("experts") for one in self._of_experts(path)]
        residual = [one for path in self._network.paths("width") for one in self._of_width(path)]
        seen: set[tuple[str, int, int, int]] = set()
        found = []
        for group in (*residual, *experts, *heads, *channels):
            own = {(part.key, part.dim, part.begin, part.expert) for part in group.parts}
            if not own & seen and group.units > 1:
                found.append(group)
                seen |= own
        return found

    def channels_of_experts(self) -> list[NetworkGroup]:
        """Return a group of channels for each expert, for experts whose weights are stacked in the same tensors."""
        found = [one for path in self._network.paths("channels") for one in self._of_channels(path)]
        return [one for one in found if one.parts[0].expert >= 0]

    def _leave(self, what: str, error: CheckpointError | str) -> None:
        why = error if isinstance(error, str) else error.message.rstrip(".")
        self.left.append(f"{what} keep their order: {why}")

    # Channels.

    def _of_channels(self, path: str) -> Iterator[NetworkGroup]:
        value = self._network.value(path)
        try:
            axes, _ = self._network.axes(
                "channels", path, {path: 2 * value if type(value) is int else 8 * self._network.width(path)}
            )
        except CheckpointError as error:
            if UNUSED not in error.message:  # a field that this network does not use
                self._leave(f"channels ({path})", error)
            return
        unclear = []
        for group in groups_of(axes):
            sizes = {axis.before // axis.parts // axis.block for axis in group}
            if len(sizes) > 1 or {axis.side for axis in group} != {"out", "in"}:
                unclear.append(group[0].key)
                continue
            self._channels[path] = next(iter(sizes))
            yield from _channels(group, self._network.before)
        if unclear:
            self._leave(
                f"channels of {listing(unclear, 3, where='')}",
                "it is not known which channels of these tensors belong together",
            )

    # Experts.

    def _of_experts(self, path: str) -> Iterator[NetworkGroup]:
        value = self._network.value(path)
        if type(value) is not int or value < 2:
            return
        fields = self._network.beside(path)
        if any((fields.get(name) or 1) > 1 for name in EXPERT_GROUPS):
            self._leave("experts", "the router chooses among groups of experts")
            return
        try:
            axes, _ = self._network.axes("experts", path, {path: 2 * value})
        except CheckpointError as error:
            if UNUSED not in error.message:
                self._leave(f"experts ({path})", error)
            return
        for group in groups_of(axes):
            odd = [axis for axis in group if axis.before != value or axis.side != "out"]
            if odd:
                has = f"this tensor has {odd[0].before} {'rows' if odd[0].side == 'out' else 'columns'}"
                self._leave(f"experts of {escape(odd[0].key)}", f"{has} for {value} experts")
                continue
            name = next((axis.key for axis in group if "experts" in axis.kind), group[0].key)
            yield NetworkGroup(
                name.rpartition(".")[0], EXPERTS, value, tuple(NetworkPart(axis.key, axis.dim) for axis in group)
            )

    # Heads.

    def _of_heads(self, path: str) -> Iterator[NetworkGroup]:
        number = self._network.value(path)
        if type(number) is not int or number < 1:
            return
        try:
            found = self._sized_heads(path, number) if self._network.head_size(path) else self._named_heads()
        except CheckpointError as error:
            self._has_sized_heads = self._has_sized_heads or UNUSED not in error.message
            self._leave(f"heads ({path})", error)
            return
        values = self._network.constants
        if any(_ALIBI in name for name in values):
            self._leave("heads", "each head has a different slope (ALiBi)")
        elif has_heads_in_pairs(values):
            self._leave("heads", "the network subtracts heads from each other in pairs")
        else:
            yield from found

    def _sized_heads(self, path: str, number: int) -> list[NetworkGroup]:
        part, inside = self._network.beside(path), path.rpartition(".")[0]
        names = [name for name in part if role_of(name) == "kv_heads" and type(part[name]) is int]
        keys = {f"{inside}.{name}" if inside else name: part[name] for name in names[:1]}
        few = next(iter(keys.values()), number)
        pinned = self._network.pinned(path)
        wider = {path: 2 * number, **pinned}
        axes, _ = self._network.axes("heads", path, {**wider, **{name: 2 * value for name, value in keys.items()}})
        shared = [(axis.key, axis.dim) for axis in self._network.axes("heads", path, wider)[0]] if few != number else []
        counts = HeadCounts(number, few, next(iter(pinned.values())))
        self._has_sized_heads = True
        groups, tables, unknown = heads_along(axes, shared, counts)
        wide = self._keys_of_width(path) if groups else ()
        apart = [norm for one in groups for norm in self._norms_apart(one, counts, wide)]
        self._unclear.update(apart)
        if apart:
            self._leave("heads", f"it is not known whether {escape(apart[0])} is divided into heads")
            return []
        if unknown:
            self._leave(
                f"heads of {listing(unknown, 3, where='')}", "it is not known how heads are arranged in these tensors"
            )
        if tables and few != number:
            self._leave("heads", f"it is not known to which heads the rows of {escape(tables[0].key)} belong")
            return []
        return with_tables(groups, tables, number)

    def _keys_of_width(self, path: str) -> set[str]:
        """Return the keys of the tensors whose shapes change with the width in the same section as ``path``."""
        inside = path.rpartition(".")[0]
        widths = [one for one in self._network.paths("width") if one.rpartition(".")[0] == inside]
        return {axis.key for one in widths for axis in self._network.wider(one, self._channels)[0]}

    def _norms_apart(self, group: NetworkGroup, counts: HeadCounts, wider: Collection[str]) -> Iterator[str]:
        """Yield the keys of an attention layer's norms that normalise all heads together, as in OLMoE.

        ``group`` is the group of the layer's heads. ``counts`` has the numbers and the size of heads. ``wider`` has the
        keys of the tensors whose shapes depend on the width.
        """
        sizes = {counts.queries * counts.size, counts.keys * counts.size} - {counts.size}
        own = {part.key for part in group.parts}
        for key, info in self._network.first.tensors.items():
            is_norm = key in wider and key not in own and self._network.kinds.get(key) == "norm"
            if is_norm and key.startswith(f"{group.name}.") and info.shape and info.shape[-1] in sizes:
                yield key

    def _named_heads(self) -> list[NetworkGroup]:
        """Return the groups of attention heads, if the network's configuration has no field for the size of a head.

        All groups are returned by the first call; later calls return [].
        """
        if self._by_names:
            return []  # already found for another field with a number of heads
        self._by_names = heads_by_names(self._network.before, attention_heads(self._network.first))
        tables: dict[tuple[str, int], tuple[Axis, int]] = {}
        for path in self._network.paths("width"):
            for axis in self._network.wider(path, self._channels)[0]:
                units = {one.units for one in self._by_names}
                if axis.before in units and axis.before != self._network.value(path):
                    tables[axis.key, axis.dim] = axis, axis.before
        found = list(self._by_names)
        for axis, number in tables.values():
            if axis.kind.endswith("embedding") or axis.kind == "other":
                found = with_tables(found, [axis], number)
        self._tables = found
        return found

    # The residual stream.

    def _of_width(self, path: str) -> Iterator[NetworkGroup]:
        width = self._network.value(path)
        if type(width) is not int:
            return
        try:
            axes, after = self._network.wider(path, self._channels)
            own = self._residual(path, width, axes, after)
        except CheckpointError as error:
            self._leave(f"the dimensions of the {RESIDUAL} ({path})", error)
            return
        parts = tuple(NetworkPart(axis.key, axis.dim) for axis in own)
        yield NetworkGroup(path.rpartition(".")[0], RESIDUAL, width, parts)

    def _residual(self, path: str, width: int, axes: Sequence[Axis], after: TargetSpec) -> list[Axis]:
        """Return those of ``axes`` whose elements are the dimensions of the residual stream; ``width`` is their number.

        ``after`` is the same network, built with another width. Raises PlanError if a permutation of these axes may
        change the outputs.
        """
        name = class_of(self._network.first)
        if not (self._has_sized_heads or self._by_names):
            raise PlanError(f"a {RESIDUAL} is permuted only in networks with attention, and this network has none.")
        if not ("For" in name or "LMHead" in name or "WithLMHead" in name):
            raise PlanError(f"a permutation would change the order of the outputs of {escape(name)}.")
        heads = {(part.key, part.dim) for group in (*self._by_names, *self._tables) for part in group.parts}
        own = [axis for axis in axes if (axis.key, axis.dim) not in heads]
        unclear = next((axis.key for axis in own if axis.key in self._unclear), "")
        if unclear:
            raise PlanError(
                f"it is not known whether an axis of {escape(unclear)} consists of the dimensions of the {RESIDUAL} or "
                "of heads."
            )
        odd = [axis.key for axis in own if axis.before != width or axis.parts > 1]
        if odd:
            raise PlanError(
                f"an axis of {escape(odd[0])} does not consist of exactly the {width} dimensions of the {RESIDUAL}."
            )
        both = {axis.key for axis in own if axis.dim == 0} & {axis.key for axis in own if axis.dim == 1}
        unknown = [key for key in both if any(part.isdigit() for part in key.split("."))]
        if unknown:
            raise PlanError(
                f"it is not known whether both axes of {listing(sorted(unknown), 3)} consist of the "
                f"dimensions of the {RESIDUAL}."
            )
        last = module_facts(after).constants
        apart = [
            name
            for name, value in last.items()
            if isinstance(value, tuple) and _ALIBI not in name and self._network.constants.get(name) != value
        ]
        if apart:
            raise PlanError(f"the network has the constant {escape(apart[0])}, which a permutation would not reorder.")
        return own


def _channels(axes: Sequence[Axis], network: Network) -> Iterator[NetworkGroup]:
    """Yield the channels of a feed-forward layer as one group; if the layer has experts, one group for each expert.

    ``axes`` are the axes of the layer's tensors that change with the number of channels.
    """
    units = axes[0].before // axes[0].parts // axes[0].block
    reader = next(axis for axis in axes if axis.side == "in")
    is_one = "experts" in reader.kind
    name = reader.key.rpartition(".")[0] if is_one else reader.key.rpartition(".")[0].rpartition(".")[0]
    for expert in range(network.tensors[reader.key].shape[0]) if is_one else (-1,):
        parts = [
            NetworkPart(axis.key, axis.dim, at * units * axis.block, axis.block, expert=expert)
            for axis in axes
            for at in range(axis.parts)
        ]
        yield NetworkGroup(f"{name}.{expert}" if is_one else name, CHANNELS, units, tuple(parts))
