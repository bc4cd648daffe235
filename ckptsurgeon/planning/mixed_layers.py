"""Refuses a merge whose output would have the same weight as codes in one layer and as numbers in another."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..errors import PlanError
from ..tensors.encodings._encoding import QuantisedTensors
from ..util.text import escape
from .plan.plan import Plan

__all__ = ["DECODED", "any_layer", "check_mixed_layers"]

DECODED = " (decoded)"
"""The end of the name of a source that is read with its codes decoded, beside the same source as it is stored."""
_NUMBER = re.compile(r"\.\d+(?=\.)")


def any_layer(key: str) -> str:
    """Return a key without the numbers of layers and experts: the same text for the same weight of each."""
    return _NUMBER.sub(".*", key)


def check_mixed_layers(plan: Plan, sources: Sequence[QuantisedTensors]) -> None:
    """Raise PlanError if layers of one source are quantised, and the same weights come plain from another source.

    A loader reads all of them by one ``quantization_config``. ``sources`` are the quantised tensors of each source.
    Weights that a source itself has plain in some layers are left to its settings.
    """
    if not any(sources):
        return
    coded: dict[str, tuple[int, str, str]] = {}
    plain: dict[str, list[tuple[int, str]]] = {}
    for step in plan.steps:
        for one in step.inputs:
            tensor = sources[one.source].by_key.get(one.key)
            if tensor is not None or step.coded is not None:
                name, method = (tensor.name, tensor.method) if tensor is not None else (step.key, "")
                coded.setdefault(any_layer(name), (one.source, name, method))
            elif len(step.shape) > 1:
                plain.setdefault(any_layer(one.key), []).append((one.source, one.key))
    own = [{any_layer(one.name) for one in codes.tensors} for codes in sources]
    for pattern in coded.keys() & plain.keys():
        source, name, method = coded[pattern]
        for other, key in plain[pattern]:
            if plan.sources[other].name != plan.sources[source].name and pattern not in own[other]:
                owner, there = plan.sources[source].name, plan.sources[other].name.removesuffix(DECODED)
                of = f" ({escape(method)})" if method else ""
                raise PlanError(
                    f"the tensor {escape(name)} of {escape(owner)} is quantised{of}, and {escape(key)} of "
                    f"{escape(there)} would be plain: a loader reads all layers of a model by one quantization_config.",
                    hint="Quantise all sources alike first, or dequantise them: --encoding dequantize does so where "
                    "codes can be decoded.",
                )
