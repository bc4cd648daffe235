"""Notes on integer matrices that may be codes of quantised weights, if a plan computes with them or their scales.

These matrices are in no known encoding, so ckpt treats them and their scales as plain tensors: a cast or a merge then
changes the scales, but not the codes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from ..tensors.dtypes import DTYPES
from ..tensors.possible_scales import CODES, decodes_nothing, fits_as_scale
from ..tensors.quantised.encoding import QuantisedTensors
from ..util.text import count, escape
from .plan.plan import Plan
from .plan.step import Input, Step
from .quantised import computation

__all__ = ["with_possible_codes_said"]

SMALLEST = 4
"""A matrix with fewer rows or columns than this is not treated as codes."""
OF_INDICES = re.compile(
    r"(^|_)(ids?|idx|hash|table|lookup|ind(ex|exes|ices|ptr)?|mask|masked|masks|maps?|pos|positions?|types?|buckets?|lengths?|counts?|tril"
    r"|triu|causal|adj|adjacency|edges?|nodes?|tokens?|labels?|vocab|bytes?|chars?|pieces|flags?|valid|perm|order"
    r"|offsets?|attn|attention)(_|\d|$)"
)
"""Matches names of integers that are not codes."""


class _Use(NamedTuple):
    """An integer matrix, a tensor that may be its scale, and what a plan does with one of them."""

    codes: Input
    scale: Input
    doing: str


def with_possible_codes_said(plan: Plan, sources: Sequence[QuantisedTensors]) -> Plan:
    """Return a plan with a note for each source that may have codes in an unknown encoding.

    There is a note only if the plan computes with these codes or their scales. ``sources`` are the quantised tensors of
    each source in known encodings, which ``check_codes`` checks.
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
    """Yield each matrix that may be codes, if the plan computes with it or with a tensor that may be its scale.

    Of several such computations, the first that is found is yielded with the matrix.
    """
    doing: dict[str, str] = {}
    modules = {_module(one.key): dict[str, Input]() for _, one in _inputs(plan, source, known) if _could_be_codes(one)}
    for step, one in _inputs(plan, source, known) if modules else ():  # most models have no such matrix
        if (module := _module(one.key)) in modules:
            modules[module][one.key] = one
            said = "" if _is_widened(step, one) else computation(plan.verb, step, one)
            doing[one.key] = doing.get(one.key) or said
    for tensors in modules.values():
        floats = {one.shape for one in tensors.values() if DTYPES[one.dtype].kind == "float"}
        scales = _scales(tensors.values(), doing)
        for codes in filter(_could_be_codes, tensors.values()):
            if codes.shape in floats:  # these are the weight, and the integers are its mask
                continue
            fitting = [scales[shape] for shape in scales if fits_as_scale(codes.dtype, codes.shape, shape)]
            used = next((used for _, used in fitting if used), codes.key)
            if fitting and doing[used]:
                yield _Use(codes, fitting[0][0], doing[used])


def _inputs(plan: Plan, source: int, known: QuantisedTensors) -> Iterator[tuple[Step, Input]]:
    """Yield (step, input) for each input from ``source`` that is not part of a tensor in a known encoding."""
    for step in plan.steps:
        for one in step.inputs:
            if one.source == source and one.key not in known.by_key:
                yield step, one


def _module(key: str) -> str:
    """Return the module of a tensor: the text before the last dot, or else before the last underscore."""
    return key.rpartition(".")[0] or key.rpartition("_")[0]


def _is_widened(step: Step, one: Input) -> bool:
    """Return whether a step only casts an input to a wider dtype, which changes no value."""
    wider = step.dtype in ("float32", "float64") and DTYPES[one.dtype].bits < DTYPES[step.dtype].bits
    return step.op in ("copy", "keep") and not step.operation and DTYPES[one.dtype].kind == "float" and wider


def _could_be_codes(one: Input) -> bool:
    if one.dtype not in CODES:
        return False
    return len(one.shape) > 1 and min(one.shape[-2:]) >= SMALLEST and OF_INDICES.search(_leaf(one.key)) is None


def _leaf(key: str) -> str:
    return key.rpartition(".")[2].lower()


def _scales(tensors: Iterable[Input], doing: Mapping[str, str]) -> dict[tuple[int, ...], tuple[Input, str]]:
    """Return the float tensors of a module that may be scales, by shape.

    For each shape, the value is (the first tensor of this shape, the key of the first one that the plan computes
    with). The key is '' if the plan computes with none. ``tensors`` are all tensors of the module. ``doing`` maps the
    key of each to what the plan computes with it, in words; '' if the plan only copies it.
    """
    found: dict[tuple[int, ...], tuple[Input, str]] = {}
    for one in tensors:
        if DTYPES[one.dtype].kind == "float" and not decodes_nothing(_leaf(one.key)):
            first, used = found.get(one.shape, (one, ""))
            found[one.shape] = first, used or (one.key if doing[one.key] else "")
    return found
