"""Refuses a merge whose output would mix two encodings, or one weight quantised in some layers and plain in others."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from ..errors import PlanError
from ..tensors.quantised.encoding import QuantisedTensors
from ..tensors.quantised.methods import family
from ..util.text import escape
from .plan.files import DECODED
from .plan.plan import Plan

__all__ = ["any_layer", "check_mixed_layers", "stored_sources"]

GGUF = "GGUF"
"""The family of encodings that may be mixed, since its files contain the type of each tensor."""
_NUMBER = re.compile(r"\.\d+(?=\.)")


class _Weight(NamedTuple):
    """A weight of the output: its key, the name of its source, its key in the source, and its encoding ("": plain)."""

    key: str
    origin: str
    name: str
    method: str

    def said(self) -> str:
        return f"{escape(self.name)} of {escape(self.origin)}"


def any_layer(key: str) -> str:
    """Return a key with ``*`` for the numbers of layers and experts: the same text for a weight in all layers."""
    return _NUMBER.sub(".*", key)


def check_mixed_layers(plan: Plan, sources: Sequence[QuantisedTensors], owner: int, stored: Collection[str]) -> None:
    """Raise PlanError if the output would mix encodings of two sources, or have some layers quantised and others plain.

    A loader reads all weights with one ``quantization_config``. The output gets that of the source with the index
    ``owner``; ``stored`` are the keys of this source. If this source itself has several encodings, or some plain
    layers, the output may have them too. GGUF allows all mixtures. ``sources`` has the quantised tensors of each
    source.
    """
    coded = list(_coded(plan, sources, owner))
    if not coded or any(family(one.method) == GGUF for one in coded):
        return
    own = sources[owner]
    reference = next((one for one in coded if one.origin == _origin(plan, owner)), coded[0])
    allowed = {tensor.method for tensor in own.tensors} or {reference.method}
    for one in coded:
        if one.method not in allowed:
            raise _mixture(
                f"the tensor {reference.said()} is quantised ({escape(reference.method)}), and {one.said()} in another "
                f"way ({escape(one.method)})"
            )
    patterns = {any_layer(tensor.name) for tensor in own.tensors}
    by_pattern = {any_layer(one.name): one for one in reversed(coded)}
    for plain in _plain(plan, sources):
        same = by_pattern.get(any_layer(plain.name))
        if same is None or same.origin == plain.origin:
            continue
        if any_layer(plain.key) not in patterns or plain.key not in stored or plain.key in own.by_key:
            raise _mixture(
                f"the tensor {same.said()} is quantised ({escape(same.method)}), and {plain.said()} would be plain"
            )


def _origin(plan: Plan, source: int) -> str:
    return plan.sources[source].name.removesuffix(DECODED)


def _coded(plan: Plan, sources: Sequence[QuantisedTensors], owner: int) -> Iterator[_Weight]:
    """Yield the quantised weights of the output: copied ones, and those that are encoded as the source ``owner`` is."""
    found = set[int]()
    for step in plan.steps:
        for one in step.inputs:
            source, key = (one.source, one.key) if step.coded is None else (owner, step.key)
            tensor = sources[source].by_key.get(key)
            if tensor is not None and id(tensor) not in found:
                found.add(id(tensor))
                yield _Weight(step.key, _origin(plan, source), tensor.name, tensor.method)


def _plain(plan: Plan, sources: Sequence[QuantisedTensors]) -> Iterator[_Weight]:
    """Yield the weights of the output that are made from one source and stored as plain numbers."""
    for step in plan.steps:
        if step.coded is None and len(step.inputs) == 1 and len(step.shape) > 1:
            (one,) = step.inputs
            if one.key not in sources[one.source].by_key:
                yield _Weight(step.key, _origin(plan, one.source), one.key, "")


def _mixture(what: str) -> PlanError:
    return PlanError(
        f"{what}: but a model has only one quantization_config, and loaders use it for all layers.",
        hint="Quantise all sources alike first, or dequantise them: --encoding dequantize does so if the codes can be "
        "decoded.",
    )


def stored_sources(plan: Plan) -> list[int]:
    """Return, for each source of a plan, its own index; for a decoded copy, the index of the source that it copies."""
    first = {one.name: number for number, one in reversed([*enumerate(plan.sources)])}
    return [first.get(one.name.removesuffix(DECODED), number) for number, one in enumerate(plan.sources)]
