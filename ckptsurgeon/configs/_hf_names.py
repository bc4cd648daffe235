"""The names that a model of transformers had before: its base model's prefix, its renamings, its conversions.

What ``from_pretrained`` does to the keys of a checkpoint, by transformers' own functions and tables
(transformers/conversion_mapping.py, core_model_loading.py), but said, and as operations of ours.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..tensors import Adapted, TensorInfo
from ..text import count, escape, listing
from ._hf_operations import Group, Unknown, opened, rows_of

__all__ = ["Names"]

Rename = Callable[..., tuple[str, str | None]]


@dataclass
class Names:
    """A model's renamings and conversions, as transformers has them, and how it applies them to a key."""

    rename: Rename
    renamings: list[Any]
    converters: list[Any]
    prefix: str
    model: str
    config: Any
    by: str
    targets: Mapping[str, TensorInfo]

    @staticmethod
    def of(model: Any, package: Any) -> Names:
        """Take down what a model says of its names."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, rename_source_key

        mapping = get_model_conversion_mapping(model)
        converters = [one for one in mapping if isinstance(one, WeightConverter)]
        renamings = [one for one in mapping if not isinstance(one, WeightConverter)]
        by = f"transformers {package.__version__}"
        return Names(
            rename_source_key,
            renamings,
            converters,
            model.base_model_prefix,
            type(model).__name__,
            model.config,
            by,
            {},
        )

    def bound(self, targets: Mapping[str, TensorInfo]) -> Callable[[Mapping[str, TensorInfo]], Adapted]:
        """Return what adapts a source to a destination that has these tensors."""
        self.targets = targets
        return self.adapt

    def adapt(self, tensors: Mapping[str, TensorInfo]) -> Adapted:
        """Return what makes the keys of a source those of the destination."""
        renamings = copy.deepcopy(self.renamings)  # some remember what they have seen
        names: dict[str, str] = {}
        groups: dict[str, Group] = {}
        prefixed: list[tuple[str, str]] = []
        renamed: list[tuple[str, str]] = []
        for key in sorted(tensors, key=_in_order):
            name, pattern = self._named(key, renamings)
            if name not in self.targets:
                continue
            if pattern is not None:
                groups.setdefault(name, Group(name, self._converter(pattern))).add(pattern, key, tensors[key])
            elif name != key:
                names[key] = name
                (prefixed if self._prefixes(key, name) else renamed).append((key, name))
        rows, finals, unknown = self._operations(tensors, groups)
        notes = [*self._said_prefix(prefixed), *self._said_names(renamed), *self._said_made(rows, groups, unknown)]
        return Adapted(rows, {**names, **finals}, self.by, unknown, tuple(notes))

    def _named(self, key: str, renamings: list[Any]) -> tuple[str, str | None]:
        """Return the name that ``from_pretrained`` gives a key, and the pattern of the conversion that it goes into."""
        name, pattern = self.rename(key, renamings, self.converters, self.prefix, self.targets)
        if name not in self.targets and key in self.targets:
            return self.rename(key, [], [], self.prefix, self.targets)
        return name, pattern

    def _prefixes(self, key: str, name: str) -> bool:
        return bool(self.prefix) and (name == f"{self.prefix}.{key}" or key == f"{self.prefix}.{name}")

    def _converter(self, pattern: str) -> Any:
        found = [one for one in self.converters if pattern in one.source_patterns]
        return found[-1]  # as in convert_and_load_state_dict_in_model, where the last one of a pattern stays

    def _operations(
        self, tensors: Mapping[str, TensorInfo], groups: Mapping[str, Group]
    ) -> tuple[tuple[Mapping[str, Any], ...], dict[str, str], dict[str, str]]:
        """Return the operations of all groups, the names that are still to be given, and what is not known."""
        unknown: dict[str, str] = {}
        known: dict[str, Group] = {}
        for name, group in groups.items():
            try:
                rows_of(group, group.literal(), self.config, self.targets)
            except Unknown as why:
                unknown.update(dict.fromkeys(group.outputs(), str(why)))
            else:
                known[name] = group
        rows: dict[str, Mapping[str, Any]] = {}
        finals: dict[str, str] = {}
        for alike in _alike(known.values(), tensors):
            general = [rows_of(group, group.general(), self.config, self.targets)[0] for group in alike]
            same = len({json.dumps(one) for one in general}) == 1 and _covers(alike, tensors)
            for group, ours in zip(alike, general, strict=True):
                literal, last = rows_of(group, group.literal(), self.config, self.targets)
                rows.update((json.dumps(row), row) for row in (ours if same else literal))
                finals.update(last)
        return tuple(rows.values()), finals, unknown

    def _said_prefix(self, pairs: Sequence[tuple[str, str]]) -> list[str]:
        if not pairs:
            return []
        added = [name for key, name in pairs if len(name) > len(key)]
        does = "put before" if added else "taken off"
        rule = f"={self.prefix}" if added else f"{self.prefix}="
        return [
            f"{self.prefix}, the base model's prefix in {self.model}, is {does} {count(len(pairs), 'source key')}, "
            f"as --map '{rule}' would"
        ]

    def _said_names(self, pairs: Sequence[tuple[str, str]]) -> list[str]:
        if not pairs:
            return []
        shown = "; ".join(f"{escape(key)} is {escape(name)}" for key, name in pairs[:2])
        more = f"; and {len(pairs) - 2} more (-v lists them)" if len(pairs) > 2 else ""
        return [f"older names that {self.by} knows of {self.model}: {shown}{more}"]

    def _said_made(
        self, rows: Sequence[Mapping[str, Any]], groups: Mapping[str, Group], unknown: Mapping[str, str]
    ) -> list[str]:
        notes = []
        made = [name for key, group in groups.items() if key not in unknown for name in group.outputs()]
        if made:
            verbs = dict.fromkeys(next(iter(row)) for row in rows)
            notes.append(
                f"{count(len(made), 'tensor')} made of older ones as {self.by} does for {self.model} "
                f"({', '.join(verbs)}): {listing(made, 2, where='')}"
            )
        if unknown:
            why = next(iter(unknown.values()))
            notes.append(f"not converted, as {why}: {listing(list(unknown), 3, where='')}")
        return notes


def _in_order(key: str) -> list[tuple[Any, ...]]:
    """Return what sorts keys by their numbers, as transformers sorts them before it stacks."""
    from transformers.core_model_loading import dot_natural_key

    return list(dot_natural_key(key))


def _alike(groups: Any, tensors: Mapping[str, TensorInfo]) -> list[list[Group]]:
    """Return groups whose keys differ in numbers only, together."""
    found: dict[Any, list[Group]] = {}
    for group in groups:
        found.setdefault(group.form, []).append(group)
    return list(found.values())


def _covers(groups: Sequence[Group], tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether no other key of the source looks like those of these groups, so that patterns take just theirs."""
    theirs = {key for group in groups for key in group.keys}
    forms = {opened(key) for key in theirs}
    return all(key in theirs for key in tensors if opened(key) in forms)
