"""Which of the tensors that differ become factors of an adapter, which are saved, which are left. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo
from ..keys.matcher import KeyMatcher
from .options import Extraction

__all__ = ["Sorted", "comparable", "is_convolution", "is_embedding", "module_of", "sorted_keys"]

_EMBEDDING = re.compile(
    r"(?:.*[._])?(?:(?:w[tp]e|shared|embed(?:ding)?s?(?:_\w+)?)(?:\.\w+)?|embs?|embedders?|lut|relative_attention_bias)",
    re.IGNORECASE,
)
"""The names of modules that look rows up: nothing else tells them from layers. ``emb_layers.1`` is one of these."""

KERNEL = 64
"""The longest side of a kernel."""


def comparable(ours: TensorInfo, theirs: TensorInfo) -> bool:
    """Whether the values of two tensors can be held against each other."""
    kinds = [DTYPES[one.dtype] for one in (ours, theirs)]
    alike = ours.dtype == theirs.dtype or all(kind.kind == "float" and not kind.is_packed for kind in kinds)
    return alike and ours.shape == theirs.shape


@dataclass
class Sorted:
    """The keys that differ: those that become factors, those that are saved, and those that are named.

    Of the latter, ``savable`` are those that --save-modules would take.
    """

    factored: list[str] = field(default_factory=list)
    biases: list[str] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    savable: list[str] = field(default_factory=list)


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
            found.savable += [key] if chosen else []
    _save(found, rest, tuned)
    return found


def _is_low_rank(key: str, info: TensorInfo, base: TensorInfo | None, asked: Extraction) -> bool:
    """Whether a tensor is a weight that PEFT adapts: of a layer, a convolution, or, if asked for, an embedding."""
    if base is None or base.shape != info.shape or 0 in info.shape or not key.endswith(".weight"):
        return False
    kinds = [DTYPES[one.dtype] for one in (info, base)]
    if not all(kind.kind == "float" and not kind.is_packed for kind in kinds):
        return False
    if is_embedding(key):
        return asked.embeddings and len(info.shape) == 2
    return len(info.shape) == 2 or is_convolution(info.shape)


def is_convolution(shape: Sequence[int]) -> bool:
    """Whether a shape is (out, in, *kernel) of a convolution that PEFT adapts and merges.

    With one channel in and several out it is a depthwise one, whose groups PEFT does not merge; nor does peft 0.21
    merge three dimensions whose first two are 1. What has a longer side than a kernel is of experts, as (n, out, in).
    """
    kernel = tuple(shape[2:])
    depthwise = len(shape) > 2 and shape[1] == 1 < shape[0]
    return (
        1 <= len(kernel) <= 3 and max(kernel) <= KERNEL and not depthwise and not (kernel[:2] == (1, 1) and kernel[2:])
    )


def is_embedding(key: str) -> bool:
    """Whether a key is of a module that looks rows up, as far as its name tells."""
    return _EMBEDDING.fullmatch(module_of(key)) is not None


def module_of(key: str) -> str:
    """Return the module that a key is of, '' at the top."""
    return key.rpartition(".")[0]


def _save(found: Sorted, rest: Sequence[str], tuned: Mapping[str, TensorInfo]) -> None:
    """Sort what is saved: biases of layers that have factors, whole modules, parameters of modules that have others."""
    layers = {module_of(key) for key in found.factored}
    inner = {module_of(module) for module in map(module_of, tuned)} | {""}
    whole = dict.fromkeys(module for module in map(module_of, rest) if module not in layers | inner)
    found.biases = [key for key in rest if module_of(key) in layers and key.endswith(".bias")]
    alone = [key for key in rest if module_of(key) in layers | inner and key not in set(found.biases)]
    found.saved = [*alone, *(key for key in tuned if module_of(key) in whole)]
