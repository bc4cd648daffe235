"""Finds which axes of a network may be permuted together: it builds the network with two values of each size field.

As in ``resize``, an axis belongs to a field if its size changes with the value of the field. The axes of a field are
then divided into groups, such as one for each layer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from ...destinations.attention_heads import attention_heads
from ...destinations.hf.resizable import Resizable
from ...destinations.module_kinds import module_facts
from ...errors import CheckpointError, PlanError
from ...planning.aligning.attention import HeadCounts, heads_along, heads_by_names, with_tables
from ...planning.aligning.groups import CHANNELS, EXPERTS, RESIDUAL
from ...planning.aligning.stored import NetworkGroup, NetworkPart
from ...planning.resizing.axes import Axis, Network, changed_axes
from ...planning.resizing.fields import role_of
from ...planning.resizing.select import groups_of
from ...planning.target import TargetSpec
from ...util.text import escape, listing
from ..from_pretrained import class_of
from ..resize.arguments import at_path, nested
from ..resize.checks import has_heads_in_pairs

__all__ = ["NetworkGroups", "sizes_of"]

_HEAD_SIZE = ("head_dim", "d_kv")
_GROUPS_OF_EXPERTS = "n_group"
UNUSED = "changes the shape of no tensor"
"""Part of the error message about a configuration field whose value changes no shape."""
_ALIBI = "slopes of ALiBi"


class NetworkGroups:
    """The groups of axes of a network that may be permuted (``found``).

    When ``found`` is computed, the reasons why other axes may not be permuted are added to ``left``.
    """

    def __init__(self, base: Resizable) -> None:
        self._base = base
        self._fields = base.fields()
        self.first = base.target({})
        self._kinds = module_facts(self.first).kinds
        self._before = Network(self.first.tensors, self._kinds, self.first.ties)
        self.left: list[str] = []
        self._by_names: list[NetworkGroup] = []
        self._tables: list[NetworkGroup] = []
        self._unclear: set[str] = set()
        self._has_sized_heads = False
        self._sizes: dict[str, str] = {}
        self._channels: dict[str, int] = {}

    @property
    def model_type(self) -> str:
        """The model type of the network."""
        return str(self._fields.get("model_type", ""))

    @property
    def sizes(self) -> dict[str, Any]:
        """The fields of the configuration that determine sizes, by their dotted paths."""
        return sizes_of(self._fields)

    @cached_property
    def found(self) -> list[NetworkGroup]:
        """The groups, in the order in which they are aligned: residual stream, experts, heads, channels."""
        channels = [one for path in self._paths("channels") for one in self._of_channels(path)]
        heads = [one for path in self._paths("heads") for one in self._of_heads(path)]
        experts = [one for path in self._paths("experts") for one in self._of_experts(path)]
        residual = [one for path in self._paths("width") for one in self._of_width(path)]
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
        found = [one for path in self._paths("channels") for one in self._of_channels(path)]
        return [one for one in found if one.parts[0].expert >= 0]

    def _paths(self, role: str) -> list[str]:
        """Return the dotted paths of the configuration fields with the role ``role``, such as "heads" or "width"."""
        return [path for path in _paths(self._fields) if role_of(path) == role]

    def _beside(self, path: str) -> Mapping[str, Any]:
        inside = path.rpartition(".")[0]
        part = at_path(self._fields, inside) if inside else self._fields
        return part if isinstance(part, Mapping) else {}

    def _axes(self, role: str, path: str, changes: Mapping[str, Any]) -> tuple[list[Axis], TargetSpec]:
        after = self._base.target(nested(changes, self._fields))
        return changed_axes(role, path, self._before, Network(after.tensors, self._kinds, after.ties)), after

    def _leave(self, what: str, error: CheckpointError | str) -> None:
        why = error if isinstance(error, str) else error.message.rstrip(".")
        self.left.append(f"{what} keep their order: {why}")

    # Channels.

    def _of_channels(self, path: str) -> Iterator[NetworkGroup]:
        value = at_path(self._fields, path)
        try:
            axes, _ = self._axes("channels", path, {path: 2 * value if type(value) is int else 8 * self._width(path)})
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
            yield from _channels(group, self._before)
        if unclear:
            self._leave(
                f"channels of {listing(unclear, 3, where='')}",
                "it is not known which channels of these tensors belong together",
            )

    def _width(self, path: str) -> int:
        found = (value for name, value in self._beside(path).items() if role_of(name) == "width")
        return next((value for value in found if type(value) is int), 64)

    # Experts.

    def _of_experts(self, path: str) -> Iterator[NetworkGroup]:
        value = at_path(self._fields, path)
        if type(value) is not int or value < 2:
            return
        if (self._beside(path).get(_GROUPS_OF_EXPERTS) or 1) > 1:
            self._leave("experts", "the router chooses among groups of experts")
            return
        try:
            axes, _ = self._axes("experts", path, {path: 2 * value})
        except CheckpointError as error:
            if UNUSED not in error.message:
                self._leave(f"experts ({path})", error)
            return
        for group in groups_of(axes):
            odd = [axis.key for axis in group if axis.before != value or axis.side != "out"]
            if odd:
                self._leave(
                    f"experts of {escape(odd[0])}", f"this tensor has {group[0].before} rows for {value} experts"
                )
                continue
            name = next((axis.key for axis in group if "experts" in axis.kind), group[0].key)
            yield NetworkGroup(
                name.rpartition(".")[0], EXPERTS, value, tuple(NetworkPart(axis.key, axis.dim) for axis in group)
            )

    # Heads.

    def _of_heads(self, path: str) -> Iterator[NetworkGroup]:
        number = at_path(self._fields, path)
        if type(number) is not int or number < 1:
            return
        try:
            found = self._sized_heads(path, number) if self._head_size(path) else self._named_heads()
        except CheckpointError as error:
            self._has_sized_heads = self._has_sized_heads or UNUSED not in error.message
            self._leave(f"heads ({path})", error)
            return
        values = self._constants
        if any(_ALIBI in name for name in values):
            self._leave("heads", "each head has a different slope (ALiBi)")
        elif has_heads_in_pairs(values):
            self._leave("heads", "the network subtracts heads from each other in pairs")
        else:
            yield from found

    @cached_property
    def _constants(self) -> Mapping[str, object]:
        return module_facts(self.first).constants

    def _head_size(self, path: str) -> str:
        """Return the name of the field with the size of a head, in the same section as the field ``path``; "" if none.

        Some networks read ``head_dim`` although their configuration class does not declare it. To find this out, the
        network is built with this field.
        """
        inside, part = path.rpartition(".")[0], self._beside(path)
        if inside not in self._sizes:
            declared = next((name for name in _HEAD_SIZE if name in part), "")
            self._sizes[inside] = declared or (_HEAD_SIZE[0] if self._is_read(inside, part) else "")
        return self._sizes[inside]

    def _is_read(self, inside: str, part: Mapping[str, Any]) -> bool:
        """Return whether a network reads the size of a head from a field that its configuration does not declare.

        ``inside`` is the dotted path of a section of the configuration, and ``part`` has the fields of this section. If
        the result is true, the network is always built with the undeclared field after this call.
        """
        heads = [name for name, value in part.items() if role_of(name) == "heads" and type(value) is int]
        if len(heads) != 1:
            return False
        before = f"{inside}." if inside else ""
        name, size = f"{before}{_HEAD_SIZE[0]}", self._width(f"{before}{heads[0]}") // part[heads[0]]
        declaring = self._base.declaring(nested({name: size}, self._fields))
        try:
            after = declaring.target(nested({name: 2 * size}, self._fields))
            changed_axes("heads", name, self._before, Network(after.tensors, self._kinds, after.ties))
        except CheckpointError:
            return False
        self._base = declaring
        return True

    def _pinned(self, path: str) -> dict[str, Any]:
        """Return {dotted path: present value} for the field with the size of a head; {} if there is no such field.

        The field is searched in the same section as the field ``path``.
        """
        name, part = self._head_size(path), self._beside(path)
        if not name:
            return {}
        inside = path.rpartition(".")[0]
        heads = next((one for key, one in part.items() if role_of(key) == "heads" and type(one) is int), 1)
        return {f"{inside}.{name}" if inside else name: part.get(name) or self._width(path) // heads}

    def _sized_heads(self, path: str, number: int) -> list[NetworkGroup]:
        part, inside = self._beside(path), path.rpartition(".")[0]
        names = [name for name in part if role_of(name) == "kv_heads" and type(part[name]) is int]
        keys = {f"{inside}.{name}" if inside else name: part[name] for name in names[:1]}
        few = next(iter(keys.values()), number)
        pinned = self._pinned(path)
        wider = {path: 2 * number, **pinned}
        axes, _ = self._axes("heads", path, {**wider, **{name: 2 * value for name, value in keys.items()}})
        shared = [(axis.key, axis.dim) for axis in self._axes("heads", path, wider)[0]] if few != number else []
        counts = HeadCounts(number, few, next(iter(pinned.values())))
        self._has_sized_heads = True
        groups, tables, unknown = heads_along(axes, shared, counts)
        apart = [norm for one in groups for norm in self._norms_apart(one, counts, self._keys_of_width(path))]
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
        widths = [one for one in self._paths("width") if one.rpartition(".")[0] == inside]
        return {axis.key for one in widths for axis in self._wider(one)[0]}

    def _norms_apart(self, group: NetworkGroup, counts: HeadCounts, wider: Collection[str]) -> Iterator[str]:
        """Yield the keys of an attention layer's norms that normalise all heads together, as in OLMoE.

        ``group`` is the group of the layer's heads. ``counts`` has the numbers and the size of heads. ``wider`` has the
        keys of the tensors whose shapes depend on the width.
        """
        sizes = {counts.queries * counts.size, counts.keys * counts.size} - {counts.size}
        own = {part.key for part in group.parts}
        for key, info in self.first.tensors.items():
            is_norm = key in wider and key not in own and self._kinds.get(key) == "norm"
            if is_norm and key.startswith(f"{group.name}.") and info.shape and info.shape[-1] in sizes:
                yield key

    def _named_heads(self) -> list[NetworkGroup]:
        """Return the groups of attention heads, if the network's configuration has no field for the size of a head."""
        if self._by_names:
            return []  # already found for another field with a number of heads
        self._by_names = heads_by_names(self._before, attention_heads(self.first))
        tables: dict[tuple[str, int], tuple[Axis, int]] = {}
        for path in self._paths("width"):
            for axis in self._wider(path)[0]:
                units = {one.units for one in self._by_names}
                if axis.before in units and axis.before != at_path(self._fields, path):
                    tables[axis.key, axis.dim] = axis, axis.before
        found = list(self._by_names)
        for axis, number in tables.values():
            if axis.kind.endswith("embedding") or axis.kind == "other":
                found = with_tables(found, [axis], number)
        self._tables = found
        return found

    # The residual stream.

    def _wider(self, path: str) -> tuple[list[Axis], TargetSpec]:
        """Return the axes that change if the width in the field ``path`` is doubled, and the wider network.

        The size of each head stays the same.
        """
        part, inside = self._beside(path), path.rpartition(".")[0]
        changes: dict[str, Any] = {path: 2 * at_path(self._fields, path), **self._pinned(path)}
        for name, value in part.items():
            own = f"{inside}.{name}" if inside else name
            if role_of(name) in ("heads", "kv_heads") and type(value) is int and not self._head_size(path):
                changes[own] = 2 * value
            if role_of(name) == "channels" and value is None and own in self._channels:
                changes[own] = self._channels[own]
        return self._axes("width", path, changes)

    def _of_width(self, path: str) -> Iterator[NetworkGroup]:
        width = at_path(self._fields, path)
        if type(width) is not int:
            return
        try:
            axes, after = self._wider(path)
            own = self._residual(path, width, axes, after)
        except CheckpointError as error:
            self._leave(f"the dimensions of the {RESIDUAL} ({path})", error)
            return
        parts = tuple(NetworkPart(axis.key, axis.dim) for axis in own)
        yield NetworkGroup(path.rpartition(".")[0], RESIDUAL, width, parts)

    def _residual(self, path: str, width: int, axes: Sequence[Axis], after: TargetSpec) -> list[Axis]:
        """Return those of ``axes`` whose elements are the ``width`` dimensions of the residual stream.

        ``after`` is the network with another width. Raises PlanError if a permutation may change the outputs.
        """
        name = class_of(self.first)
        if not (self._has_sized_heads or self._by_names):
            raise PlanError("the network has no attention, so it is not known how it mixes these dimensions.")
        if not ("For" in name or "LMHead" in name or "WithLMHead" in name):
            raise PlanError(f"they are the outputs of {escape(name)}.")
        heads = {(part.key, part.dim) for group in (*self._by_names, *self._tables) for part in group.parts}
        own = [axis for axis in axes if (axis.key, axis.dim) not in heads]
        unclear = next((axis.key for axis in own if axis.key in self._unclear), "")
        if unclear:
            raise PlanError(
                f"it is not known whether an axis of {escape(unclear)} is the {RESIDUAL} or consists of heads."
            )
        odd = [axis.key for axis in own if axis.before != width or axis.parts > 1]
        if odd:
            raise PlanError(f"an axis of {escape(odd[0])} does not consist of exactly these dimensions.")
        both = {axis.key for axis in own if axis.dim == 0} & {axis.key for axis in own if axis.dim == 1}
        unknown = [key for key in both if any(part.isdigit() for part in key.split("."))]
        if unknown:
            raise PlanError(
                f"it is not known whether both axes of {listing(sorted(unknown), 3)} consist of these dimensions."
            )
        last = module_facts(after).constants
        apart = [
            name
            for name, value in last.items()
            if isinstance(value, tuple) and _ALIBI not in name and self._constants.get(name) != value
        ]
        if apart:
            raise PlanError(f"a permutation would not reorder the constant {escape(apart[0])}.")
        return own


def sizes_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return {dotted path: value} for the model type and the fields that determine the sizes of axes to align."""
    paths = [path for path in _paths(fields) if role_of(path) not in ("vocabulary", "depth")]
    inside = dict.fromkeys(path.rpartition(".")[0] for path in paths)
    more = [f"{one}.{name}" if one else name for one in inside for name in (*_HEAD_SIZE, _GROUPS_OF_EXPERTS)]
    return {path: at_path(fields, path) for path in ("model_type", *paths, *more)}


def _paths(fields: Mapping[str, Any], before: str = "") -> Iterator[str]:
    for name, value in fields.items():
        if isinstance(value, Mapping) and "model_type" in value:
            yield from _paths(value, f"{before}{name}.")
        elif role_of(name) and (type(value) is int or value is None):
            yield f"{before}{name}"


def _channels(axes: Sequence[Axis], network: Network) -> Iterator[NetworkGroup]:
    """Yield the group of the channels of a feed-forward layer; if the layer has experts, one group for each expert.

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
