"""Which modules a configuration of PEFT's says that its adapter is for. Pure.

As ``check_target_module_exists`` of peft/tuners/tuners_utils.py has it (peft 0.21).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .patterns import MODULE, bounded

__all__ = ["Targets", "targets_of"]

ALL = "all-linear"
"""What PEFT replaces by names when it makes an adapter."""

_TIED = frozenset(("lm_head", "embed_out", "embed_tokens", "embed_in", "wte", "word_embeddings", "shared"))
"""Modules that are one tensor in many models. With ``ensure_weight_tying`` PEFT adapts all of them or none."""

_LAYER = re.compile(r".*\.[^.]*\.(\d+)\.")


@dataclass(frozen=True)
class _Chosen:
    """Names that a module is called or ends with, or the expression that all of its name matches."""

    names: frozenset[str] = frozenset()
    expression: re.Pattern[str] | None = None

    def has(self, module: str) -> bool:
        if self.expression is not None:
            return self.expression.fullmatch(module) is not None
        return any(tail in self.names for tail in _tails(module))


@dataclass(frozen=True)
class Targets:
    """The modules that are meant: ``chosen`` but not ``excluded``, of these ``layers`` if there are any."""

    chosen: _Chosen
    excluded: _Chosen = _Chosen()
    layers: frozenset[int] = frozenset()
    lists: tuple[re.Pattern[str], ...] = (_LAYER,)
    tied: bool = False

    def has(self, module: str) -> bool:
        """Whether a module is meant."""
        return not self.against(module)

    def against(self, module: str) -> str:
        """Return the field by which a module is not meant, '' for one that is."""
        if len(module) > MODULE:  # longer than any expression is held against
            return ""
        if self.excluded.has(module):
            return "exclude_modules"
        if not self.chosen.has(module):
            return "" if self.tied and _last(module) in _TIED else "target_modules"
        if not self.layers or self.chosen.expression is not None or module in self.chosen.names:
            return ""
        found = next((one for one in (pattern.match(module) for pattern in self.lists) if one), None)
        return "" if found is not None and int(found[1]) in self.layers else "layers_to_transform"


def targets_of(data: Mapping[str, Any]) -> Targets | None:
    """Return the modules that a configuration means; None where it names none, or in a way that is not understood."""
    chosen, excluded = _chosen(data.get("target_modules")), _chosen(data.get("exclude_modules") or ())
    layers, lists = data.get("layers_to_transform"), data.get("layers_pattern") or ()
    numbers = [layers] if type(layers) is int else layers or []
    names = [lists] if isinstance(lists, str) else lists
    sound = isinstance(numbers, list) and all(type(one) is int for one in numbers)
    plain = isinstance(names, (list, tuple)) and all(isinstance(one, str) and one.isidentifier() for one in names)
    if chosen is None or excluded is None or not (chosen.names or chosen.expression) or not sound or not plain:
        return None
    patterns = tuple(re.compile(rf".*\.{name}\.(\d+)\.") for name in names)
    tied = data.get("ensure_weight_tying") is True and not _TIED.isdisjoint(map(_last, chosen.names))
    return Targets(chosen, excluded, frozenset(numbers), patterns or (_LAYER,), tied)


def _chosen(said: Any) -> _Chosen | None:
    if isinstance(said, str):
        expression = bounded(said) if said != ALL else None
        return _Chosen(expression=expression) if expression is not None else None
    if not isinstance(said, (list, tuple)) or not all(isinstance(one, str) for one in said):
        return None
    return _Chosen(frozenset(said))


def _last(module: str) -> str:
    return module.rpartition(".")[2]


def _tails(module: str) -> Iterator[str]:
    yield module
    for at, letter in enumerate(module):
        if letter == ".":
            yield module[at + 1 :]
