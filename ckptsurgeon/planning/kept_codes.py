"""Gives the output of a plan the encodings of its sources: new weights are stored as the quantised ones were.

A verb plans with the weights that quantised tensors stand for. Afterwards each of its steps becomes one for each part
of the quantised tensor: those of weights that nothing changes copy the stored parts, byte for byte; those of other
weights round what they compute to codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

from ..errors import PlanError
from ..tensors.encoders._schemes import together
from ..tensors.encodings._agreement import QuantisedModule, disagreements
from ..tensors.encodings._encoding import QuantisedTensor, QuantisedTensors
from ..tensors.info import Encoded, Reshaped, TensorInfo
from ..util.text import count, escape, listing
from .mixed_layers import DECODED, any_layer
from .plan.coded_part import CodedPart
from .plan.files import PlanSource
from .plan.plan import EqualKeys, Plan
from .plan.step import Input, Step
from .transplant.select import without_names

__all__ = ["CodedSource", "PartsOf", "with_codes_kept"]

PartsOf: TypeAlias = Callable[[QuantisedTensor, TensorInfo], Mapping[str, TensorInfo]]
"""A function that gives the parts that store a new weight as a quantised tensor is stored, by the endings of keys.

It raises the error ``unencodable`` of its source if there is no such encoder.
"""
COMPUTED = "float32"
"""The dtype of weights before they are rounded to codes."""
SHARING = "nvfp4"
"""The encoding whose weights have one global scale together if they are computed together."""


@dataclass(frozen=True)
class CodedSource:
    """A source of a plan that has quantised tensors.

    ``stored`` describes it as it is in the file, with the quantised tensors ``codes`` and all its ``tensors``. The plan
    was made with the weights that these stand for. ``settings`` is the ``quantization_config``. ``encoded`` gives the
    parts that store another weight alike, and raises ``unencodable`` if nothing does.
    """

    stored: PlanSource
    codes: QuantisedTensors
    tensors: Mapping[str, TensorInfo]
    settings: Mapping[str, Any]
    encoded: PartsOf
    unencodable: type[Exception]

    @cached_property
    def by_name(self) -> Mapping[str, QuantisedTensor]:
        """The quantised tensors by the keys of their weights."""
        return {one.name: one for one in self.codes.tensors}


def with_codes_kept(
    plan: Plan, sources: Mapping[int, CodedSource], owner: int, dtype: str = ""
) -> tuple[Plan, list[int]]:
    """Return a plan whose output has quantised tensors as its sources have them.

    ``sources`` are those sources of the plan that have quantised tensors, by their index; ``owner`` is the index of the
    one whose encodings new weights get. Sources whose weights are computed with are there twice, as they are stored and
    decoded: the indices of the latter are returned too, in the order in which they follow the others. ``dtype`` is the
    one that the user asked for, which a note names if weights stay encoded.

    Raises PlanError for a weight that is computed and cannot be encoded as before, and for one of another source that
    would be stored otherwise than the settings of the owner say.
    """
    keeping = _Keeping(plan, sources, owner, dtype)
    steps = tuple(made for step in plan.steps for made in keeping.steps(step))
    equal = tuple(map(keeping.equal, plan.equal))
    stored = [sources[at].stored if at in sources else one for at, one in enumerate(plan.sources)]
    decoded = list(keeping.decoded)
    again = [replace(plan.sources[at], name=f"{plan.sources[at].name}{DECODED}", role="source") for at in decoded]
    rows = [plan.vocabularies[at] for at in decoded] if plan.vocabularies else []
    plan = replace(
        plan,
        steps=steps,
        sources=(*stored, *again),
        equal=equal,
        unexpected=tuple(one for pair in plan.unexpected for one in keeping.unexpected(*pair)),
        vocabularies=(*plan.vocabularies, *rows),
        notes=(*plan.notes, *keeping.notes()),
    )
    return plan, decoded


class _Keeping:
    """Turns the steps of weights into those of their stored parts."""

    def __init__(self, plan: Plan, sources: Mapping[int, CodedSource], owner: int, dtype: str) -> None:
        self.decoded: dict[int, int] = {}
        self._encoded_anew: dict[str, list[str]] = {}
        self._copied_codes = 0
        self._plan, self._sources, self._owner, self._dtype = plan, sources, owner, dtype

    def notes(self) -> Iterator[str]:
        """Yield a note on the weights that are computed and encoded again, for each encoding."""
        for method, names in self._encoded_anew.items():
            each = "is" if len(names) == 1 else "are"
            yield (
                f"{count(len(names), 'weight')} {each} computed as numbers and encoded again ({method}), as in "
                f"{escape(self._sources[self._owner].stored.name)}: {listing(names, 3)}"
            )

        kept = self._copied_codes + sum(map(len, self._encoded_anew.values()))
        if self._dtype and self._dtype != "keep" and kept:
            stay = "stays" if kept == 1 else "stay"
            yield (
                f"the dtype {self._dtype} is not that of {count(kept, 'quantised weight')}, which {stay} encoded; "
                "--encoding dequantize writes numbers"
            )
        sharing = self._encoded_anew.get(SHARING, [])
        joined = [name for name in sharing if len(self._every_name.intersection(together(name))) > 1]
        if joined:
            each = "is" if len(joined) == 1 else "are"
            yield (
                f"{count(len(joined), 'global scale')} of {SHARING} {each} computed for each weight alone, and may "
                "differ where loaders join weights (q, k and v; gate and up) and take the largest: "
                f"{listing(joined, 3)}"
            )

    @cached_property
    def _every_name(self) -> set[str]:
        """The keys of all quantised weights of the owner."""
        return set(self._sources[self._owner].by_name)

    def steps(self, step: Step) -> Iterator[Step]:
        """Yield the steps that take the place of one: those of all parts, if the weight is stored as codes."""
        owner = self._sources.get(self._owner)
        wanted = owner.by_name.get(step.key) if owner is not None else None
        copied = self._copied(step, owner, wanted)
        if copied is None and owner is not None and step.key not in owner.tensors and wanted is None:
            self._check_plain(step, owner)
        if copied is not None and step.source is not None:
            yield from self._copies(step, copied, self._sources[step.source], step.source)
        elif wanted is not None and owner is not None:
            yield from self._encoded(self._decoding(step), wanted, owner)
        else:
            yield self._decoding(step)

    def _copied(self, step: Step, owner: CodedSource | None, wanted: QuantisedTensor | None) -> QuantisedTensor | None:
        """Return the quantised tensor whose parts a step may copy; None if its weight has to be computed.

        Codes of another source than the owner are copied if the owner has the same parts under settings by which they
        stand for the same numbers. If it has no such weight at all, it must have the same parts in another layer; what
        stands for other numbers is an error later.
        """
        coded = self._coded(step.source, step.source_key) if step.op in ("copy", "keep") else None
        if coded is None or step.source is None or owner is None:
            return None
        if step.source == self._owner:
            return coded
        theirs = self._sources[step.source]
        if wanted is None:
            alike = None if step.key in owner.tensors else self._alike.get(any_layer(step.key))
            return coded if alike is not None and _dtypes(alike, owner) == _dtypes(coded, theirs) else None
        parts = [
            {end: (source.tensors[key].dtype, source.tensors[key].shape) for end, key in one.parts.items()}
            for source, one in ((theirs, coded), (owner, wanted))
        ]
        module = QuantisedModule.of(coded.method, coded.name, wanted.name)
        return coded if parts[0] == parts[1] and not disagreements([module], theirs.settings, owner.settings) else None

    def _check_plain(self, step: Step, owner: CodedSource) -> None:
        """Raise PlanError for a weight that would be plain, although the settings of the owner say that it is not."""
        alike = self._alike.get(any_layer(step.key))
        is_decoded = any(self._coded(one.source, one.key) is not None for one in step.inputs)
        if not is_decoded and (alike is None or len(step.shape) != len(alike.shape or ())):
            return
        than = f"{escape(alike.name)} there, which is {alike.method}" if alike is not None else "the weights there"
        raise PlanError(
            f"the tensor {escape(step.key)} is not in {escape(owner.stored.name)}, whose quantization_config the "
            f"output has, and it is not quantised as {than}.",
            hint="Write plain weights with --encoding dequantize, or quantise all sources alike first.",
        )

    @cached_property
    def _alike(self) -> Mapping[str, QuantisedTensor]:
        """The first quantised tensor of the owner among those whose keys differ in numbers alone."""
        found: dict[str, QuantisedTensor] = {}
        for one in self._sources[self._owner].codes.tensors if self._owner in self._sources else ():
            found.setdefault(any_layer(one.name), one)
        return found

    def equal(self, pair: EqualKeys) -> EqualKeys:
        """Return a pair of keys that must have the same values; those of weights are compared decoded."""
        if self._coded(pair.source, pair.first) is None and self._coded(pair.source, pair.second) is None:
            return pair
        return replace(pair, source=self._twin(pair.source))

    def unexpected(self, source: int, key: str) -> list[tuple[int, str]]:
        """Return the stored keys that a source has for a tensor that is not used."""
        coded = self._coded(source, key)
        return [(source, key)] if coded is None else [(source, part) for part in coded.keys]

    def _coded(self, source: int | None, key: str) -> QuantisedTensor | None:
        known = self._sources.get(source) if source is not None else None
        return known.by_name.get(key) if known is not None else None

    def _copies(self, step: Step, coded: QuantisedTensor, source: CodedSource, at: int) -> Iterator[Step]:
        """Yield the steps that copy the parts of a quantised tensor, which get the names that fit its new one."""
        self._copied_codes += 1
        for end, key in coded.parts.items():
            info = source.tensors[key]
            yield Step(
                _renamed(step.key, coded, end), step.op, info.dtype, info.shape, at, key, info.dtype, info.shape,
                rule=step.rule, reason=step.reason,
                tied_to=_renamed(step.tied_to, coded, end) if step.tied_to else "",
            )  # fmt: skip

    def _encoded(self, step: Step, coded: QuantisedTensor, owner: CodedSource) -> Iterator[Step]:
        """Yield the steps that store a new weight as the quantised tensor ``coded`` of the owner is stored."""
        weight = TensorInfo(COMPUTED, step.shape)
        try:
            if step.draws:
                raise owner.unencodable("some of its values are initialised")
            parts = owner.encoded(coded, weight)
        except owner.unencodable as error:
            raise PlanError(
                f"the tensor {escape(coded.name)} of {escape(owner.stored.name)} is quantised ({coded.method}), and "
                f"its new values cannot be stored that way: {error}.",
                hint="Dequantise it with --encoding dequantize, and quantise the output with the package of the model.",
                details=list(coded.keys),
            ) from None
        self._encoded_anew.setdefault(coded.method, []).append(coded.name)
        for end, info in parts.items():
            key, tied = coded.parts[end], _renamed(step.tied_to, coded, end) if step.tied_to else ""
            made = info.made.of.made if isinstance(info.made, Reshaped) else info.made
            if not isinstance(made, Encoded):
                own = owner.tensors[key]
                yield Step(key, "copy", own.dtype, own.shape, self._owner, key, own.dtype, own.shape, tied_to=tied)
                continue
            facts = tuple((name, float(value)) for name, value in made.facts)
            part = CodedPart(
                coded.name, COMPUTED, step.shape, made.encoding, made.role, made.steps, made.scale_dtype, facts
            )
            yield replace(step, key=key, dtype=info.dtype, shape=info.shape, tied_to=tied, coded=part)

    def _decoding(self, step: Step) -> Step:
        """Return a step whose inputs that are codes come from the decoded source."""
        inputs = [self._decoded_input(one) for one in step.inputs]
        if inputs == list(step.inputs):
            return step
        return replace(step, source=inputs[0].source, more=tuple(inputs[1:]))

    def _decoded_input(self, one: Input) -> Input:
        if self._coded(one.source, one.key) is None:
            return one
        return one._replace(source=self._twin(one.source))

    def _twin(self, source: int) -> int:
        """Return the index of a source with the weights that its codes stand for."""
        return self.decoded.setdefault(source, len(self._plan.sources) + len(self.decoded))


def _dtypes(coded: QuantisedTensor, source: CodedSource) -> dict[str, str]:
    """Return the dtypes of the parts of a quantised tensor, by the endings of their keys."""
    return {end: source.tensors[key].dtype for end, key in coded.parts.items()}


def _renamed(key: str, coded: QuantisedTensor, end: str) -> str:
    """Return the key of the part of a quantised tensor with the ending ``end`` if its weight has the name ``key``."""
    found = coded.part_named(key, end)
    if found is None:
        raise without_names(coded, key)
    return found
