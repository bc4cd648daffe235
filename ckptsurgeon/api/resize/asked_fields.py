"""Checks the fields of config.json that the user of ``resize`` changes, and adds the fields that depend on these."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from ...errors import ConfigError
from ...planning.resizing.fields import ORDER, role_of
from ...util.text import brief_repr, escape, listing
from .arguments import at_path
from .checks import check_heads, check_ties, keys_by_switch
from .choices import Choices
from .number_limits import check_size

__all__ = ["COPY", "HEAD", "INIT", "TIES", "AskedFields"]

TIES = "tie_word_embeddings"
"""The field that ties the output layer to the embeddings."""
COPY, INIT = "copy", "init"
"""The ways to make new channels or a larger width: copies, or initial values that contribute nothing at first."""
HEAD = "head_dim"
"""The field with the size of a head, which some networks read although their configuration does not declare it."""
_HEAD_SIZE = (HEAD, "d_kv")
_KEPT = ("heads", "channels", "experts")
"""The roles of fields whose units --keep can select, if their number becomes smaller."""
_POSITIONS = ("max_position_embeddings", "n_positions")
"""Fields with a number of positions; if it is not above 0, transformers cannot load the model."""
_EPSILON = re.compile(r"(^|_)eps(ilon)?$")


class AskedFields:
    """The source's configuration (``before``), and the fields to change (``new``: {dotted path: new value}).

    ``new_width`` is the way in which a larger width is made ("copy" or "init"), if the user chose one. ``implied`` are
    fields that the source's configuration leaves out, so that their values follow from the width.
    """

    def __init__(
        self, before: Mapping[str, Any], new: Mapping[str, Any], new_width: str = "", implied: Collection[str] = ()
    ) -> None:
        self.before, self.new, self._new_width, self._implied = before, dict(new), new_width, implied
        self.epsilons: list[str] = []
        """The fields with epsilons of norms that change together with the width."""
        self._with_heads: list[str] = []
        self.undeclared: list[str] = []
        """The fields with the size of a head that the source's configuration does not have, but the output's has."""

    def numbers(self, name: str) -> tuple[int, int]:
        """Return the old and the new value of a field with a number."""
        return at_path(self.before, name), self.new[name]

    def check(self, choices: Choices) -> None:
        """Raise ConfigError for a new value, or another choice of the user, that the configuration does not allow."""
        for name, value in list(self.new.items()):
            old = at_path(self.before, name)
            if name == "model_type":
                raise ConfigError(
                    f"--set model_type={brief_repr(value)}: the type of the network is not a field.",
                    hint=f"Use --as {escape(str(value))}.",
                )
            if value == old and name not in self._implied:
                raise ConfigError(
                    f"--set {escape(name)}={brief_repr(value)}: this field has this value already.",
                    hint="Leave this --set out.",
                )
            is_size = role_of(name) or (name.rpartition(".")[2] in _POSITIONS and type(old) is int)
            if is_size and not (type(value) is int and value > 0):
                raise ConfigError(f"--set {escape(name)}={brief_repr(value)} is not a whole number above 0.")
            check_size(name, value)
            if role_of(name) and type(old) is not int:
                raise ConfigError(
                    f"the configuration has no field {escape(name)} with a number that could be changed.",
                    hint="Use a field of the configuration that is a number, as in --set num_hidden_layers=12.",
                )
        for name in choices.kept:
            if name not in self.new:
                raise ConfigError(
                    f"--keep {escape(name)} has no effect: this field is not changed.",
                    hint=f"Set a smaller {escape(name)} with --set, or leave out --keep.",
                )
            if role_of(name) not in _KEPT or self.grows(name):
                raise ConfigError(
                    f"--keep {escape(name)} has no effect: it is only for heads, channels and experts whose number "
                    "becomes smaller.",
                    hint="Leave --keep out here: layers are chosen with --layers, and KV heads are not chosen, but "
                    "averaged.",
                )
        check_ties(TIES, self.before, is_untied=self.new.get(TIES) is False)
        for inside in {name.rpartition(".")[0] for name in (*self.of("heads"), *self.of("kv_heads"))}:
            own = {name.rpartition(".")[2]: one for name, one in self.new.items() if _inside(name) == inside}
            check_heads(self.beside(f"{inside}." if inside else ""), own)
        if choices.layers and not self.of("depth"):
            raise ConfigError(
                "--layers has no effect, because the number of layers stays the same.",
                hint="Set another number of layers with --set.",
            )
        if choices.new_channels and not any(self.grows(name) for name in self.of("channels")):
            raise ConfigError(
                "--new-channels has no effect, because no number of channels becomes larger.", hint="Leave it out."
            )
        if choices.merge and not any(not self.grows(name) for name in self.of("experts")):
            raise ConfigError(
                "--merge-experts has no effect, because the number of experts does not become smaller.",
                hint="Set a smaller number of experts with --set.",
            )
        if choices.alignment is not None and self.of("channels"):
            raise ConfigError(
                "--align-experts cannot be used with another number of channels.",
                hint=f"Change {listing(self.of('channels'))} in another command.",
            )
        if choices.new_width and not any(self.grows(name) for name in self.of("width")):
            raise ConfigError("--new-width has no effect, because no width becomes larger.", hint="Leave it out.")

    def of(self, role: str) -> list[str]:
        """Return the fields to change whose role is ``role`` ("width", "heads", "experts")."""
        return [name for name in self.new if role_of(name) == role]

    def stays(self, name: str) -> bool:
        """Return whether the user sets a field that config.json lacks to the value that it has by default.

        The default follows from the width. Such a request has an effect: once the field is in config.json, its value no
        longer changes with the width.
        """
        return name in self._implied and self.new[name] == at_path(self.before, name)

    def grows(self, name: str) -> bool:
        """Return whether a field gets a larger value."""
        return bool(self.new[name] > at_path(self.before, name))

    def pin_heads(self) -> None:
        """Add the size of a head, with its old value, to the changed fields, if the width or number of heads changes.

        This is done if the configuration has a field for the size, and the user does not change it. Without this,
        a new width or number of heads could change the size, too.
        """
        for name in (*self.of("heads"), *self.of("width")):
            for size in _HEAD_SIZE:
                path, part = name.rpartition(".")[0] + f".{size}" if "." in name else size, self.beside(name)
                if size in part and path not in self.new:
                    self.new[path] = part[size] or _head_size(part)
                    self.undeclared += [] if part[size] else [path]

    def pin_keys(self) -> None:
        """Set the number of key heads to the new number of query heads if each query head has its own key head.

        This is needed for networks in which ``multi_query`` is false. There, the number of key heads in the
        configuration changes no tensor, but must agree with the number of query heads.
        """
        for name in self.of("heads"):
            part = self.beside(name)
            if keys_by_switch(part) and not part["multi_query"]:
                for keys in (one for one in part if role_of(one) == "kv_heads" and type(part[one]) is int):
                    path = f"{_inside(name)}.{keys}" if "." in name else keys
                    self.new[path] = self.new[name]
                    self._with_heads.append(path)

    def pin_undeclared(self, is_read: Callable[[str, int], bool]) -> None:
        """Add ``head_dim``, with the old size of a head, to the changed fields, if the network reads this field.

        This concerns networks whose configuration does not declare the field, if only the number of heads changes.
        ``is_read`` returns, for a field and a value, whether this value changes shapes of the network.
        """
        widths = {_inside(name) for name in self.of("width")}
        for name in self.of("heads"):
            path = f"{_inside(name)}.{HEAD}" if "." in name else HEAD
            if not self.is_pinned(name) and _inside(name) not in widths and _has_head_size(self.beside(name)):
                size = _head_size(self.beside(name))
                if is_read(path, 2 * size):
                    self.new[path] = size
                    self.undeclared.append(path)

    def pin_epsilons(self) -> None:
        """Set the epsilons of norms so that norms compute the same values after dimensions of zeros are added."""
        for name in self.of("width"):
            old, new = self.numbers(name)
            if self.way_of(name) == INIT:
                for field, value in self.beside(name).items():
                    path = f"{_inside(name)}.{field}" if "." in name else field
                    if _EPSILON.search(field) and type(value) is float and path not in self.new:
                        self.new[path] = value * old / new
                        self.epsilons.append(path)

    def epsilons_of(self, width: str) -> list[str]:
        """Return the fields with an epsilon that change with the field ``width``."""
        return [one for one in self.epsilons if _inside(one) == _inside(width)]

    def way_of(self, width: str) -> str:
        """Return the way to make a width larger, "copy" or "init"; "" if it becomes smaller.

        If the user did not choose, it is "copy" if the new width is a multiple of the old one, else "init".
        """
        old, new = self.numbers(width)
        if new < old:
            return ""
        return self._new_width or (INIT if new % old else COPY)

    def is_pinned(self, name: str) -> bool:
        """Return whether a field in the same section as ``name`` sets the size of a head."""
        inside = name.rpartition(".")[0]
        return any((f"{inside}.{size}" if inside else size) in self.new for size in _HEAD_SIZE)

    def steps(self) -> Iterator[tuple[str, list[str]]]:
        """Yield (role, fields) for each change, in the order of the changes; its ``fields`` change together."""
        joined: set[str] = set()
        for role in ORDER:
            for name in self.of(role):
                if name in joined or name in self._with_heads or self.stays(name):
                    continue
                beside = [name]
                if role == "width":
                    self._check_heads(name)
                    beside += [one for one in self.of("heads") if not self.is_pinned(one)]
                    if self.way_of(name) == INIT:
                        beside += self._keys_with(beside) + self.epsilons_of(name)
                elif role == "kv_heads" and (heads := self._heads_beside(name)):
                    beside.insert(0, heads)
                inside = {_inside(one) for one in beside if role_of(one) == "heads"}
                beside += [one for one in self._with_heads if _inside(one) in inside]
                joined.update(beside)
                yield role_of(beside[0]), beside

    def _keys_with(self, fields: Sequence[str]) -> list[str]:
        """Return the fields for key heads that have the same old and new number as a field for query heads.

        Only fields for query heads that are in ``fields`` count.
        """
        return [one for one in self.of("kv_heads") if self._heads_beside(one) in fields]

    def has_own_keys(self, width: str) -> bool:
        """Return whether each query head has its own key head, before and after the change.

        Only the section (nested configuration) with the field ``width`` is examined.
        """
        part, inside = self.beside(width), _inside(width)
        keys = [name for name in part if role_of(name) == "kv_heads" and type(part[name]) is int]
        return not keys or bool(self._keys_with([one for one in self.of("heads") if _inside(one) == inside]))

    def _heads_beside(self, name: str) -> str:
        """Return the field for query heads that has the same old and new value as ``name``, the field for key heads.

        Returns "" if there is no such field in the same section.
        """
        for heads in self.of("heads"):
            same = heads.rpartition(".")[0] == name.rpartition(".")[0]
            if same and (at_path(self.before, heads), self.new[heads]) == (
                at_path(self.before, name),
                self.new[name],
            ):
                return heads
        return ""

    def _check_heads(self, width: str) -> None:
        """Raise ConfigError if a change of the width would change the size of each head."""
        old, new = self.numbers(width)
        if self.is_pinned(width) or new < old:  # a smaller width is another error
            return
        inside = width.rpartition(".")[0]
        part = self.beside(width)
        heads = [name for name in part if role_of(name) == "heads" and type(part[name]) is int and part[name]]
        for name in heads:
            path = f"{inside}.{name}" if inside else name
            number = self.new.get(path, part[name])
            if number * old != part[name] * new:
                needed, rest = divmod(part[name] * new, old)
                size = f"Choose a multiple of the size of a head, {old // part[name]}."
                raise ConfigError(
                    f"with {width}={new} and {path}={number}, the size of each head would change.",
                    hint=size if rest else f"{'Use' if path in self.new else 'Add'} --set {path}={needed}.",
                )

    def beside(self, name: str) -> Mapping[str, Any]:
        """Return the fields of the source's section (nested configuration) that has the field ``name``."""
        inside = name.rpartition(".")[0]
        part = at_path(self.before, inside) if inside else self.before
        assert isinstance(part, Mapping)
        return part


def _inside(name: str) -> str:
    return name.rpartition(".")[0]


def _has_head_size(part: Mapping[str, Any]) -> bool:
    """Return whether the size of a head can be computed: whether ``part`` has fields for width and number of heads."""
    return all(any(role_of(one) == role and type(part[one]) is int for one in part) for role in ("width", "heads"))


def _head_size(part: Mapping[str, Any]) -> int:
    """Return the size of a head if no field has it: the width divided by the number of heads."""
    found = [next(part[one] for one in part if role_of(one) == role and part[one]) for role in ("width", "heads")]
    return int(found[0] // found[1])
