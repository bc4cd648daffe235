"""Refuses a merge whose output would have weights in two encodings, or the same weight as codes and as numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from ..errors import PlanError
from ..tensors.encodings._encoding import QuantisedTensors
from ..tensors.encodings._methods import family
from ..util.text import escape
from .plan.plan import Plan

__all__ = ["DECODED", "any_layer", "check_mixed_layers"]

DECODED = " (decoded)"
"""The end of the name of a source that is read with its codes decoded, beside the same source as it is stored."""
GGUF = "GGUF"
_NUMBER = re.compile(r"\.\d+(?=\.)")


class _Weight(NamedTuple):
    """A weight of the output: the index and the name of its source, its name there, and its encoding ("": plain)."""

    source: int
    origin: str
    name: str
    method: str

    def said(self) -> str:
        return f"{escape(self.name)} of {escape(self.origin)}"


def any_layer(key: str) -> str:
    """Return a key without the numbers of layers and experts: the same text for the same weight of each."""
    return _NUMBER.sub(".*", key)


def check_mixed_layers(plan: Plan, sources: Sequence[QuantisedTensors], owner: int) -> None:
    """Raise PlanError if weights of two sources are in different encodings, or those of one layer codes, others plain.

    A loader reads all of them by one ``quantization_config``. ``sources`` are the quantised tensors of each source,
    and ``owner`` is the index of the one whose settings the output gets, and by which new weights are encoded. What a
    source itself has in several encodings, or plain in some layers, is left to its settings.
    """
    if not any(sources):
        return
    coded, plain = _weights(plan, sources, owner)
    kinds = [{_kind(tensor.method) for tensor in codes.tensors} for codes in sources]
    of_kind = {(one.source, _kind(one.method)): one for one in reversed(coded.values())}
    for one, other in combinations(reversed(of_kind.values()), 2):
        is_told = _kind(other.method) in kinds[one.source] and _kind(one.method) in kinds[other.source]
        if other.origin != one.origin and not is_told:
            raise _mixture(
                f"the tensor {one.said()} is quantised ({escape(one.method)}), and {other.said()} otherwise "
                f"({escape(other.method)})"
            )
    own = [{any_layer(tensor.name) for tensor in codes.tensors} for codes in sources]
    first = {any_layer(one.name): one for one in reversed(coded.values())}
    for found in plain:
        there = first.get(any_layer(found.name))
        if there is not None and there.origin != found.origin and any_layer(found.name) not in own[found.source]:
            raise _mixture(
                f"the tensor {there.said()} is quantised ({escape(there.method)}), and {found.said()} would be plain"
            )


def _weights(plan: Plan, sources: Sequence[QuantisedTensors], owner: int) -> tuple[dict[int, _Weight], list[_Weight]]:
    """Return the quantised weights that a plan copies or encodes, and the plain ones, in the order of the steps."""
    coded, plain = dict[int, _Weight](), list[_Weight]()
    for step in plan.steps:
        for one in step.inputs:
            place, key = (one.source, one.key) if step.coded is None else (owner, step.key)
            tensor, origin = sources[place].by_key.get(key), plan.sources[place].name.removesuffix(DECODED)
            if tensor is not None:
                coded.setdefault(id(tensor), _Weight(place, origin, tensor.name, tensor.method))
            elif step.coded is None and len(step.shape) > 1:
                plain.append(_Weight(place, origin, key, ""))
    return coded, plain


def _kind(method: str) -> str:
    """Return the encoding as a loader tells it from others: a GGUF file says the type of each of its tensors."""
    return family(method) if family(method) == GGUF else method


def _mixture(what: str) -> PlanError:
    return PlanError(
        f"{what}: a loader reads all layers of a model by one quantization_config.",
        hint="Quantise all sources alike first, or dequantise them: --encoding dequantize does so where codes can be "
        "decoded.",
    )
