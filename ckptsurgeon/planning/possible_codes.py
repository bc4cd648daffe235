"""Notes on integer matrices that may be codes of quantised weights, if a plan computes with them or their scales.

They are in no known encoding, so they are plain tensors for ckpt: a cast or a merge changes scales, but not codes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from ..tensors.dtypes import DTYPES
from ..tensors.encodings._encoding import QuantisedTensors
from ..util.text import count, escape
from .plan.plan import Plan
from .plan.step import Input, Step
from .quantised import computation

__all__ = ["with_possible_codes_said"]

CODES = {"int8": 1, "uint8": 4, "int16": 8, "uint16": 8, "int32": 16, "uint32": 16}
"""Dtypes of codes, with the most codes in one element. Integers of 64 bits are indices or counters."""
SMALLEST = 4
"""The fewest rows and columns of codes."""
OF_INDICES = re.compile(
    r"(^|_)(ids?|idx|ind(ex|exes|ices|ptr)?|mask|masked|masks|maps?|pos|positions?|types?|buckets?|lengths?|counts?|tril"
    r"|triu|causal|adj|adjacency|edges?|nodes?|tokens?|labels?|vocab|bytes?|chars?|pieces|flags?|valid|perm|order"
    r"|offsets?|attn|attention)(_|\d|$)"
)
"""Matches names of integers that are not codes."""
OF_NETWORKS = re.compile(r"bias$|^(weight|gamma|beta)$|^running_")
"""Matches names of floats that decode nothing."""


class _Use(NamedTuple):
    """An integer matrix, a tensor that may be its scale, and what a plan does with one of them."""

    codes: Input
    scale: Input
    doing: str


def with_possible_codes_said(plan: Plan, sources: Sequence[QuantisedTensors]) -> Plan:
    """Return a plan with a note for each source if it computes with what may be codes, or scales, of this source.

    ``sources`` are the quantised tensors of each source that are known, which ``check_codes`` checks.
    """
    notes = []
    for number, known in enumerate(sources[: len(plan.sources)]):
        found = list(_uses(plan, number, known))
        if found:
            notes.append(_note(found, plan.sources[number].name if len(plan.sources) > 1 else ""))
    return replace(plan, notes=(*plan.notes, *notes)) if notes else plan


def _note(found: Sequence[_Use], source: str) -> str:
    one = found[0]
    of = f" of {escape(source)}" if source else ""
    more = f"; likewise {count(len(found) - 1, 'other matrix', 'other matrices')}" if len(found) > 1 else ""
    return (
        f"{escape(one.codes.key)}{of} ({one.codes.dtype}) may be codes of a quantised weight, which "
        f"{escape(one.scale.key)} decodes: {escape(one.doing)} uses them as numbers{more}; if they are codes, first "
        "decode the model with the package that quantised it"
    )


def _uses(plan: Plan, source: int, known: QuantisedTensors) -> Iterator[_Use]:
    """Yield, for each matrix of a source that may be codes, the first use of it or of its scales as numbers."""
    doing: dict[str, str] = {}
    modules: dict[str, dict[str, Input]] = {}
    for step in plan.steps:
        for one in step.inputs:
            if one.source == source and one.key not in known.by_key:
                modules.setdefault(_module(one.key), {})[one.key] = one
                said = "" if _is_widened(step, one) else computation(plan.verb, step, one)
                doing[one.key] = doing.get(one.key) or said
    for tensors in modules.values():
        for codes in filter(_could_be_codes, tensors.values()):
            scales = _scales(codes, tensors)
            used = next((key for key in (*(one.key for one in scales), codes.key) if doing[key]), "")
            if scales and used:
                yield _Use(codes, scales[0], doing[used])


def _module(key: str) -> str:
    """Return the module of a tensor: the text before the last dot, or else before the last underscore."""
    return key.rpartition(".")[0] or key.rpartition("_")[0]


def _is_widened(step: Step, one: Input) -> bool:
    """Return whether a step only casts an input to a wider dtype, which changes no value."""
    wider = step.dtype in ("float32", "float64") and DTYPES[one.dtype].bits < DTYPES[step.dtype].bits
    return step.op in ("copy", "keep") and not step.operation and DTYPES[one.dtype].kind == "float" and wider


def _could_be_codes(one: Input) -> bool:
    is_matrix = len(one.shape) > 1 and min(one.shape[-2:]) >= SMALLEST
    return one.dtype in CODES and is_matrix and OF_INDICES.search(_leaf(one.key)) is None


def _leaf(key: str) -> str:
    return key.rpartition(".")[2].lower()


def _scales(codes: Input, tensors: Mapping[str, Input]) -> list[Input]:
    """Return the floating-point tensors of the same module whose shapes fit scales or zero points of ``codes``.

    If the module has floats of the shape of the codes, these are the weight, and the integers are its mask.
    """
    floats = [one for one in tensors.values() if DTYPES[one.dtype].kind == "float"]
    if any(one.shape == codes.shape for one in floats):
        return []
    return [one for one in floats if not OF_NETWORKS.search(_leaf(one.key)) and _fits(codes, one.shape)]


def _fits(codes: Input, shape: tuple[int, ...]) -> bool:
    """Return whether there is one scale for the tensor, or one for each row or column, or for each group in it."""
    *above, rows, columns = codes.shape
    if all(size == 1 for size in shape):
        return codes.dtype == "int8"
    if shape in ((*above, rows), (*above, columns)):
        return True
    if len(shape) != len(codes.shape) or list(shape[:-2]) != above:
        return False
    groups = (shape[-1], columns) if shape[-2] == rows else (shape[-2], rows) if shape[-1] == columns else (0, 1)
    return 0 < groups[0] < groups[1] and groups[1] * CODES[codes.dtype] % groups[0] == 0
