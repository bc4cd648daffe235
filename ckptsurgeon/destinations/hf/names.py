"""Converts older keys of a transformers model, and keys with or without the base model's prefix, to current keys.

``from_pretrained`` has the same result. The functions and tables of transformers (transformers/conversion_mapping.py,
core_model_loading.py) determine the changes. Our own operations make these changes, and notes report them.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...planning.target import KnownLayout, Recognise
from ...tensors.info import TensorInfo
from ...util.text import count, escape, grouped, listing
from .groups import ConversionGroup, UnknownConversion, opened
from .operations import rows_of

__all__ = ["KeyConversions"]

Rename = Callable[..., tuple[str, str | None]]


@dataclass(frozen=True)
class KeyConversions:
    """The renamings and conversions that transformers has for the keys of a model.

    ``recognised`` applies them to the keys of a source. ``targets`` are the tensors of the destination.
    """

    rename: Rename
    renamings: list[Any]
    converters: list[Any]
    prefix: str
    model: str
    config: Any
    by: str
    targets: Mapping[str, TensorInfo]

    @staticmethod
    def of(model: Any, package: Any) -> KeyConversions:
        """Return the renamings and conversions that transformers (``package``) has for a model."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, rename_source_key

        mapping = get_model_conversion_mapping(model)
        converters = [one for one in mapping if isinstance(one, WeightConverter)]
        renamings = [one for one in mapping if not isinstance(one, WeightConverter)]
        by = f"transformers {package.__version__}"
        return KeyConversions(
            rename_source_key,
            renamings,
            converters,
            model.base_model_prefix,
            type(model).__name__,
            model.config,
            by,
            {},
        )

    def of_targets(self, targets: Mapping[str, TensorInfo]) -> Recognise:
        """Return a function that finds the renamings and operations for a source.

        ``targets`` are the tensors of the destination.
        """
        return replace(self, targets=targets).recognised

    def recognised(self, tensors: Mapping[str, TensorInfo]) -> KnownLayout:
        """Return the renamings and operations that turn the tensors of a source into tensors of the destination."""
        renamings = copy.deepcopy(self.renamings)  # copied because some keep state
        names: dict[str, str] = {}
        groups: dict[str, ConversionGroup] = {}
        renamed: list[tuple[str, str]] = []
        for key in sorted(tensors, key=_in_order):
            name, pattern = self._named(key, renamings)
            if name not in self.targets:
                continue
            if pattern is not None:
                groups.setdefault(name, ConversionGroup(name, self._converter(pattern))).add(pattern, key, tensors[key])
            elif name != key:
                names[key] = name
                renamed.append((key, name))
        made, unknown = self._converted(tensors, groups)
        notes = (*self._prefix_notes(renamed), *self._renaming_notes(renamed), *self._conversion_notes(made, unknown))
        return KnownLayout(tuple(made.rows.values()), {**names, **made.names}, self.by, unknown, notes)

    def _named(self, key: str, renamings: list[Any]) -> tuple[str, str | None]:
        """Return the key to which ``from_pretrained`` renames ``key``, and the pattern of its conversion, if any."""
        name, pattern = self.rename(key, renamings, self.converters, self.prefix, self.targets)
        if name not in self.targets and key in self.targets:
            return self.rename(key, [], [], self.prefix, self.targets)
        return name, pattern

    def _converter(self, pattern: str) -> Any:
        found = [one for one in self.converters if pattern in one.source_patterns]
        return found[-1]  # as in convert_and_load_state_dict_in_model: the last converter of a pattern wins

    def _converted(
        self, tensors: Mapping[str, TensorInfo], groups: Mapping[str, ConversionGroup]
    ) -> tuple[_Converted, dict[str, str]]:
        """Return the operations for all groups, and {destination key: reason} for tensors that cannot be converted.

        A tensor cannot be converted if our operations cannot express the conversion.
        """
        made, unknown = _Converted(), dict[str, str]()
        alike: dict[Any, list[ConversionGroup]] = {}
        for group in groups.values():
            try:
                rows_of(group, group.literal(), self.config, self.targets)
            except UnknownConversion as why:
                unknown.update(dict.fromkeys(group.outputs(), str(why)))
            else:
                alike.setdefault(group.form, []).append(group)
        for members in alike.values():
            literal = [rows_of(group, group.literal(), self.config, self.targets) for group in members]
            general = [rows_of(group, group.general(), self.config, self.targets)[0] for group in members]
            if all(rows == general[0] for rows in general) and _covers(members, tensors):
                made.add(general[0])
            else:
                made.add(row for rows, _ in literal for row in rows)
            made.names.update((key, name) for _, last in literal for key, name in last.items() if key != name)
            done = [group for group, (rows, _) in zip(members, literal, strict=True) if rows]
            made.keys += [name for group in done for name in group.outputs()]
        return made, unknown

    def _prefix_notes(self, pairs: Sequence[tuple[str, str]]) -> Iterator[str]:
        added = sum(name == f"{self.prefix}.{key}" for key, name in pairs)
        off = sum(key == f"{self.prefix}.{name}" for key, name in pairs)
        head = f"{self.prefix}, the base model's prefix in {self.model}, is"
        if added:
            yield f"{head} put before {count(added, 'source key')} (--map '={self.prefix}' does the same)"
        if off:
            yield f"{head} removed from {count(off, 'source key')} (--map '{self.prefix}=' does the same)"

    def _renaming_notes(self, pairs: Sequence[tuple[str, str]]) -> Iterator[str]:
        others = [(k, n) for k, n in pairs if f"{self.prefix}.{k}" != n and k != f"{self.prefix}.{n}"]
        if others:
            shown = "; ".join(f"{escape(key)} becomes {escape(name)}" for key, name in others[:2])
            more = f"; and {len(others) - 2} more (-v lists them)" if len(others) > 2 else ""
            yield f"older keys are renamed as {self.by} does for {self.model}: {shown}{more}"

    def _conversion_notes(self, made: _Converted, unknown: Mapping[str, str]) -> Iterator[str]:
        if made.keys:
            verbs = ", ".join(dict.fromkeys(next(iter(row)) for row in made.rows.values()))
            shown = listing(made.keys, 2, where="")
            tensors = count(len(made.keys), "tensor is", "tensors are")
            yield f"{tensors} made from older tensors as {self.by} does for {self.model} ({verbs}): {shown}"
        if unknown:
            yield f"not converted: {grouped(unknown.items(), where='')}"


@dataclass
class _Converted:
    """The result of conversions: operations without duplicates, renamings, and the keys of the tensors made."""

    rows: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add the operations ``rows`` to this result, except operations that it already contains."""
        for row in rows:
            self.rows.setdefault(json.dumps(row), row)


def _in_order(key: str) -> list[tuple[Any, ...]]:
    """Return the sort key by which transformers orders tensors before it stacks them: ``2`` comes before ``10``."""
    from transformers.core_model_loading import dot_natural_key

    return list(dot_natural_key(key))


def _covers(groups: Sequence[ConversionGroup], tensors: Mapping[str, TensorInfo]) -> bool:
    """Return whether ``groups`` contain all keys of ``tensors`` that have the form of a key in ``groups``.

    Two keys have the same form if they differ only in numbers, as ``layers.0.weight`` and ``layers.1.weight`` do.
    """
    theirs = {key for group in groups for key in group.keys}
    forms = {opened(key) for key in theirs}
    return all(key in theirs for key in tensors if opened(key) in forms)
