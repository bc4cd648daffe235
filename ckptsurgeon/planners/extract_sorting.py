"""Which of the tensors that differ become factors of an adapter, which are saved, which are left. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from ..keys import KeyMatcher
from ..tensors import DTYPES, TensorInfo
from .extract_options import Extraction

__all__ = ["Sorted", "comparable", "is_embedding", "module_of", "sorted_keys"]

_EMBEDDING = re.compile(r"(?:.*[._])?(?:w[tp]e|shared|(?:\w*_)?embed(?:ding)?s?(?:_\w+)?)(?:\.\w+)?", re.IGNORECASE)
"""The names of modules that look rows up: nothing else tells them from layers."""


def comparable(ours: TensorInfo, theirs: TensorInfo) -> bool:
    """Whether the values of two tensors can be held against each other."""
    kinds = [DTYPES[one.dtype] for one in (ours, theirs)]
    alike = ours.dtype == theirs.dtype or all(kind.kind == "float" and not kind.is_packed for kind in kinds)
    return alike and ours.shape == theirs.shape


@dataclass
class Sorted:
    """The keys that differ: those that become factors, those that are saved, and those that are named."""

    factored: list[str] = field(default_factory=list)
    biases: list[str] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def sorted_keys(
    tuned: Mapping[str, TensorInfo], base: Mapping[str, TensorInfo], differing: Collection[str], asked: Extraction
) -> Sorted:
    """Sort the keys that differ, as patterns and options ask for."""
    include = KeyMatcher([flag.pattern for flag in asked.include])
    exclude = KeyMatcher([flag.pattern for flag in asked.exclude])
    found, rest = Sorted(), []
    for key in differing:
        chosen = (not asked.include or include.match(key)) and not exclude.match(key)
        if chosen and _is_low_rank(key, tuned[key], base.get(key), asked):
            found.factored.append(key)
        elif chosen and asked.save_modules:
            rest.append(key)
        else:
            found.left.append(key)
    _save(found, rest, tuned)
    return found


def _is_low_rank(key: str, info: TensorInfo, base: TensorInfo | None, asked: Extraction) -> bool:
    """Whether a tensor is a matrix that a layer has, or an embedding where they are asked for."""
    if base is None or base.shape != info.shape or len(info.shape) != 2 or 0 in info.shape:
        return False
    kinds = [DTYPES[one.dtype] for one in (info, base)]
    plain = key.endswith(".weight") and all(kind.kind == "float" and not kind.is_packed for kind in kinds)
    return plain and (asked.embeddings or not is_embedding(key))


def is_embedding(key: str) -> bool:
    """Whether a key is of a module that looks rows up, as far as its name tells."""
    return _EMBEDDING.fullmatch(module_of(key)) is not None


def module_of(key: str) -> str:
    """Return the module that a key is of, '' at the top."""
    return key.rpartition(".")[0]


def _save(found: Sorted, rest: Sequence[str], tuned: Mapping[str, TensorInfo]) -> None:
    """Sort what is saved: biases of layers that have factors, whole modules; what PEFT cannot save is left."""
    layers = {module_of(key) for key in found.factored}
    inner = {module_of(module) for module in map(module_of, tuned) if module}
    modules = dict.fromkeys(map(module_of, rest))
    for key in rest:
        module = module_of(key)
        if module in layers and key.endswith(".bias"):
            found.biases.append(key)
        elif not module or module in layers or module in inner:
            found.left.append(key)
    whole = [module for module in modules if module and module not in layers and module not in inner]
    found.modules = whole
    found.saved = [key for key in tuned if module_of(key) in set(whole)]
