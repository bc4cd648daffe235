"""Builds a network again with other values of the size fields of its configuration, and finds the axes that change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from ...destinations.hf.resizable import Resizable
from ...destinations.module_kinds import module_facts
from ...errors import CheckpointError
from ...planning.resizing.axes import Axis, Network, changed_axes
from ...planning.resizing.fields import EXPERT_GROUPS, role_of
from ...planning.target import TargetSpec
from ..resize.arguments import at_path, nested

__all__ = ["RebuiltNetwork", "sizes_of"]

_HEAD_SIZE = ("head_dim", "d_kv")


class RebuiltNetwork:
    """A network that can be built again with other values of the size fields of its configuration."""

    def __init__(self, base: Resizable) -> None:
        self._base = base
        self._fields = base.fields()
        self.first = base.target({})
        self.kinds = module_facts(self.first).kinds
        self.before = Network(self.first.tensors, self.kinds, self.first.ties)
        self._sizes: dict[str, str] = {}
        self._found: dict[tuple[str, str, str], tuple[list[Axis], TargetSpec]] = {}
        """A cache: {(role, path, changes): the result of ``axes``}."""

    @property
    def model_type(self) -> str:
        """The model type of the network."""
        return str(self._fields.get("model_type", ""))

    @property
    def sizes(self) -> dict[str, Any]:
        """The fields of the configuration that determine sizes, by their dotted paths."""
        return sizes_of(self._fields)

    @cached_property
    def constants(self) -> Mapping[str, object]:
        """{path of an attribute of a module: its value} for the values that the modules have besides their weights.

        They are numbers, booleans, strings and the like; see ``ModuleFacts``.
        """
        return module_facts(self.first).constants

    def paths(self, role: str) -> list[str]:
        """Return the dotted paths of the configuration fields with the role ``role``, such as "heads" or "width"."""
        return [path for path in _paths(self._fields) if role_of(path) == role]

    def value(self, path: str) -> Any:
        """Return the value of the configuration field with the dotted path ``path``."""
        return at_path(self._fields, path)

    def beside(self, path: str) -> Mapping[str, Any]:
        """Return the section of the configuration that contains the field ``path``, as {field: value}."""
        inside = path.rpartition(".")[0]
        part = at_path(self._fields, inside) if inside else self._fields
        return part if isinstance(part, Mapping) else {}

    def axes(self, role: str, path: str, changes: Mapping[str, Any]) -> tuple[list[Axis], TargetSpec]:
        """Return the axes of tensors whose sizes change if ``changes`` are set, and the network with these changes.

        ``changes`` maps dotted paths of fields to new values. ``role`` and ``path`` are the role and the path of the
        main field, for error messages.
        """
        asked = (role, path, str(changes))
        if asked not in self._found:
            after = self._base.target(nested(changes, self._fields))
            found = changed_axes(role, path, self.before, Network(after.tensors, self.kinds, after.ties))
            self._found[asked] = found, after
        axes, after = self._found[asked]
        return [*axes], after

    def width(self, path: str) -> int:
        """Return the value of the width field (such as ``hidden_size``) beside the field ``path``.

        Both fields are in the same section of the configuration. The result is 64 if this section has no width field.
        """
        found = (value for name, value in self.beside(path).items() if role_of(name) == "width")
        return next((value for value in found if type(value) is int), 64)

    def head_size(self, path: str) -> str:
        """Return the name of the field with the size of a head, in the same section as the field ``path``; "" if none.

        Some networks read ``head_dim`` although their configuration class does not declare it. To find this out, the
        network is built with this field.
        """
        inside, part = path.rpartition(".")[0], self.beside(path)
        if inside not in self._sizes:
            declared = next((name for name in _HEAD_SIZE if name in part), "")
            self._sizes[inside] = declared or (_HEAD_SIZE[0] if self._is_read(inside, part) else "")
        return self._sizes[inside]

    def _is_read(self, inside: str, part: Mapping[str, Any]) -> bool:
        """Return whether a network reads the size of an attention head from a field that its configuration lacks.

        ``inside`` is the dotted path of a section of the configuration, and ``part`` has the fields of this section. If
        the result is true, the network is always built with the undeclared field after this call.
        """
        heads = [name for name, value in part.items() if role_of(name) == "heads" and type(value) is int]
        if len(heads) != 1:
            return False
        before = f"{inside}." if inside else ""
        name, size = f"{before}{_HEAD_SIZE[0]}", self.width(f"{before}{heads[0]}") // part[heads[0]]
        declaring = self._base.declaring(nested({name: size}, self._fields))
        try:
            after = declaring.target(nested({name: 2 * size}, self._fields))
            changed_axes("heads", name, self.before, Network(after.tensors, self.kinds, after.ties))
        except CheckpointError:
            return False
        self._base = declaring
        self._found.clear()
        return True

    def pinned(self, path: str) -> dict[str, Any]:
        """Return {dotted path: value} of the field with the size of an attention head; {} if there is no such field.

        The field is looked for in the section of the configuration that contains the field ``path``.
        """
        name, part = self.head_size(path), self.beside(path)
        if not name:
            return {}
        inside = path.rpartition(".")[0]
        heads = next((one for key, one in part.items() if role_of(key) == "heads" and type(one) is int), 1)
        return {f"{inside}.{name}" if inside else name: part.get(name) or self.width(path) // heads}

    def wider(self, path: str, channels: Mapping[str, int]) -> tuple[list[Axis], TargetSpec]:
        """Return the axes that change if the width in the field ``path`` is doubled, and the wider network.

        The size of each head stays the same: if the network has no field for it, the number of heads is doubled.
        ``channels`` maps the paths of fields that are not set to numbers of channels; these numbers stay the same, too.
        """
        part, inside = self.beside(path), path.rpartition(".")[0]
        changes: dict[str, Any] = {path: 2 * at_path(self._fields, path), **self.pinned(path)}
        for name, value in part.items():
            own = f"{inside}.{name}" if inside else name
            if role_of(name) in ("heads", "kv_heads") and type(value) is int and not self.head_size(path):
                changes[own] = 2 * value
            if role_of(name) == "channels" and value is None and own in channels:
                changes[own] = channels[own]
        return self.axes("width", path, changes)


def sizes_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return {dotted path: value} for the model type and the fields that determine the sizes of axes to align."""
    paths = [path for path in _paths(fields) if role_of(path) not in ("vocabulary", "depth")]
    inside = dict.fromkeys(path.rpartition(".")[0] for path in paths)
    more = [f"{one}.{name}" if one else name for one in inside for name in (*_HEAD_SIZE, *EXPERT_GROUPS)]
    return {path: at_path(fields, path) for path in ("model_type", *paths, *more)}


def _paths(fields: Mapping[str, Any], before: str = "") -> Iterator[str]:
    for name, value in fields.items():
        if isinstance(value, Mapping) and "model_type" in value:
            yield from _paths(value, f"{before}{name}.")
        elif role_of(name) and (type(value) is int or value is None):
            yield f"{before}{name}"
