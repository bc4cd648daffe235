"""Finds quantised tensors whose scales have another name, or whose codes have another dtype, than those like them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ..info import TensorInfo
from ._encoding import QuantisedTensor, QuantisedTensors
from ._methods import family
from ._parts import OF_ACTIVATIONS
from ._settings import QuantisationSettings, Settings

__all__ = ["OddTensors", "odd_ones", "of_another_scale"]

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_FLOATS = ("fp8", "mxfp8")
_NAMED, _WANTED = ".weight_scale", ".weight_scale_inv"


@dataclass(frozen=True)
class OddTensors:
    """The ``names`` of quantised tensors with ``found``, where the ``others`` like them have ``usual``."""

    found: str
    usual: str
    names: tuple[str, ...]
    others: int


def odd_ones(codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], settings: Settings) -> Iterator[OddTensors]:
    """Yield the few 8-bit floats with scales of another name, or codes of another dtype, than most have.

    Only those count whose module has the usual form in another layer: kinds of modules may differ on purpose.
    """
    groups: dict[tuple[str, str], list[QuantisedTensor]] = {}
    renamed = next(of_another_scale(codes, settings), "")
    for one in codes.tensors if settings else ():
        if one.codes and family(one.method) in _FLOATS and _scale(one):
            groups.setdefault((family(one.method), one.codes.rpartition(".")[2]), []).append(one)
    for group in groups.values():
        if not renamed:
            yield from _odd(group, _scale)
        yield from _odd(group, lambda one: tensors[one.codes].dtype)


def _scale(one: QuantisedTensor) -> str:
    """Return the name of the first scale of the weight; "" if there is none."""
    ends = (end for end in one.parts if "scale" in end and not end.endswith(OF_ACTIVATIONS))
    return next((end.lstrip(".") for end in ends), "")


def _odd(group: list[QuantisedTensor], trait: Callable[[QuantisedTensor], str]) -> Iterator[OddTensors]:
    traits = {one.name: trait(one) for one in group}
    (usual, number), *others = Counter(traits.values()).most_common()
    if not others:
        return
    forms = {_NUMBER.sub("#", name) for name, found in traits.items() if found == usual}
    for other, _ in others if number * 2 > len(group) else ():
        names = tuple(name for name, found in traits.items() if found == other and _NUMBER.sub("#", name) in forms)
        if names:
            yield OddTensors(other, usual, names, number)


def of_another_scale(codes: QuantisedTensors, settings: Settings) -> Iterator[str]:
    """Yield the 8-bit floats with ``weight_scale`` though they have blocks, whose scales are ``weight_scale_inv``.

    Loaders of the method "fp8" (transformers, vLLM, SGLang) look for that name alone if there is a
    ``weight_block_size``; other methods with blocks (compressed-tensors, ModelOpt) have the first.
    """
    if settings.get("quant_method") == "fp8" and QuantisationSettings(settings).pairs("weight_block_size"):
        for one in codes.tensors:
            if one.codes and family(one.method) == "fp8" and _NAMED in one.parts and _WANTED not in one.parts:
                yield one.name
