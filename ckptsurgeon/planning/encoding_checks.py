"""Checks encodings: refuses a merge that would mix them, and makes notes on integer matrices that may be codes.

These matrices are in no known encoding, so ckpt treats them and their scales as plain tensors: a cast or a merge
then changes the scales, but not the codes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from ..errors import PlanError
from ..tensors.dtypes import DTYPES
from ..tensors.possible_scales import CODES, decodes_nothing, fits_as_scale
from ..tensors.quantised.encoding import QuantisedTensors
from ..tensors.quantised.methods import family
from ..util.text import count, escape
from .plan.files import DECODED
from .plan.plan import Plan
from .plan.step import Input, Step
from .quantised import computation

__all__ = ["any_layer", "check_mixed_layers", "stored_sources", "with_possible_codes_said"]

GGUF = "GGUF"
"""The family of encodings that may be mixed in one file, since GGUF files contain the type of each tensor."""
_NUMBER = re.compile(r"\.\d+(?=\.)")


class _Weight(NamedTuple):
    """A weight of the output: its key, its source (``origin``), its key in the source (``name``), its encoding."""

    key: str
    origin: str
    name: str
    method: str

    def said(self) -> str:
        return f"{escape(self.name)} of {escape(self.origin)}"


def any_layer(key: str) -> str:
    """Return a key with ``*`` for the numbers of layers and experts: ``layers.0.q.weight`` -> ``layers.*.q.weight``."""
    return _NUMBER.sub(".*", key)


def check_mixed_layers(plan: Plan, sources: Sequence[QuantisedTensors], owner: int, stored: Collection[str]) -> None:
    """Raise PlanError if the output would mix encodings of two sources, or have some layers quantised and others plain.

    A loader reads all weights with one ``quantization_config``. The output gets the ``quantization_config`` of the
    source with the index ``owner``, whose keys are ``stored``. If this source itself has several encodings, or some
    plain layers, the output may have them too. GGUF allows all mixtures. ``sources`` has the quantised tensors of each
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
    """Yield the quantised weights of the output: copied weights, and weights encoded as in the source ``owner``."""
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
        f"{what}; a model has only one quantization_config, which loaders use for all layers.",
        hint="Quantise all sources alike first, or dequantise them with --encoding dequantize, if the codes can be "
        "decoded.",
    )


def stored_sources(plan: Plan) -> list[int]:
    """Return an index for each source of a plan: its own or, for a decoded copy, the index of the copied source."""
    first = {one.name: number for number, one in reversed([*enumerate(plan.sources)])}
    return [first.get(one.name.removesuffix(DECODED), number) for number, one in enumerate(plan.sources)]


SMALLEST = 4
"""A matrix with fewer rows or columns than this is not treated as codes."""
OF_INDICES = re.compile(
    r"(^|_)(ids?|idx|hash|table|lookup|ind(ex|exes|ices|ptr)?|mask|masked|masks|maps?|pos|positions?|types?|buckets?|lengths?|counts?|tril"
    r"|triu|causal|adj|adjacency|edges?|nodes?|tokens?|labels?|vocab|bytes?|chars?|pieces|flags?|valid|perm|order"
    r"|offsets?|attn|attention)(_|\d|$)"
)
"""Matches names of integer tensors that are not codes, such as ids and masks."""


class _Use(NamedTuple):
    """An integer matrix, a tensor that may be its scale, and a text: how the plan computes with one of the two."""

    codes: Input
    scale: Input
    doing: str


def with_possible_codes_said(plan: Plan, sources: Sequence[QuantisedTensors]) -> Plan:
    """Return a plan with a note for each source that may have codes in an unknown encoding.

    There is a note only if the plan computes with these codes or their scales. ``sources`` has, for each source, the
    quantised tensors in known encodings, which ``check_codes`` checks.
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

    Each matrix is yielded once, with the first such computation.
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
            if codes.shape in floats:  # the floats of this shape are the weight, and the integers are its mask
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
    """Return the module of a tensor: the text before the last dot or, without a dot, before the last underscore."""
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
    """Return the float tensors of a module that may be scales: {shape: (tensor, key)}.

    For each shape, the value is (the first tensor of this shape, the key of the first one that the plan computes with).
    The key is '' if the plan computes with none. ``tensors`` are all tensors of the module. ``doing`` maps their keys
    to texts that describe how the plan computes with them; a text is '' if the plan only copies the tensor.
    """
    found: dict[tuple[int, ...], tuple[Input, str]] = {}
    for one in tensors:
        if DTYPES[one.dtype].kind == "float" and not decodes_nothing(_leaf(one.key)):
            first, used = found.get(one.shape, (one, ""))
            found[one.shape] = first, used or (one.key if doing[one.key] else "")
    return found
