"""Stores the new weights of an output in the encodings (quantisation methods) that its sources have.

A command first makes its plan with decoded weights. Afterwards each step for a weight is replaced by one step for each
stored part of the quantised tensor (codes, scales and so on). If the weight is unchanged, these steps copy the parts,
byte for byte. Otherwise they compute the weight and round it to codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

from ..errors import PlanError
from ..tensors.info import Encoded, Reshaped, TensorInfo
from ..tensors.quantised.agreement import QuantisedModule, disagreements
from ..tensors.quantised.encoding import QuantisedTensor, QuantisedTensors
from ..tensors.quantised.methods import family
from ..util.text import escape
from .encoding_checks import any_layer
from .kept_code_notes import KeptCodes
from .moved_rows import MovedRows, StoredWeight, moved_rows
from .opaque_tensor_errors import is_uncopied, opaque_error
from .plan.coded_part import CodedPart
from .plan.files import DECODED, PlanSource
from .plan.plan import EqualKeys, Plan
from .plan.step import STORED_ROWS, Input, Step
from .transplant.selection_checks import without_names

__all__ = ["CodedSource", "PartsOf", "with_codes_kept"]

PartsOf: TypeAlias = Callable[[QuantisedTensor, TensorInfo], Mapping[str, TensorInfo]]
"""A function ``(tensor, weight)`` that returns the parts that store ``weight`` in the encoding of ``tensor``.

The result maps the ending of each part's key to the header of the part. The function raises the exception class
``unencodable`` of its source if there is no encoder.
"""
COMPUTED = "float32"
"""The dtype in which weights are computed before they are rounded to codes."""
COLUMN_ORDERS = (".g_idx", ".weight_g_idx")
"""The endings of the keys of ``g_idx`` tensors, which have the number of the group of each column."""


@dataclass(frozen=True)
class CodedSource:
    """A source of a plan that has quantised tensors.

    ``stored`` is the plan's entry for the source as it is stored. ``tensors`` are all stored tensors, ``codes`` the
    quantised tensors among them; the plan was made with their decoded weights. ``settings`` is the
    ``quantization_config``. The function ``encoded`` returns the parts that store a new weight in the same encoding; it
    raises the exception class ``unencodable`` if there is no encoder.
    """

    stored: PlanSource
    codes: QuantisedTensors
    tensors: Mapping[str, TensorInfo]
    settings: Mapping[str, Any]
    encoded: PartsOf
    unencodable: type[Exception]

    @cached_property
    def by_name(self) -> Mapping[str, QuantisedTensor]:
        """{key of a weight: its quantised tensor}."""
        return {one.name: one for one in self.codes.tensors}


def with_codes_kept(
    plan: Plan, sources: Mapping[int, CodedSource], owner: int, dtype: str = ""
) -> tuple[Plan, list[int]]:
    """Return a plan whose output stores quantised tensors as its sources do, and the indices of sources to decode.

    ``sources`` has the sources with quantised tensors: it maps the index of a source in the plan to the source. New
    weights get the encodings of the source with the index ``owner``. If the plan computes with the weights of a source,
    a decoded copy of the source is appended to the plan's sources. The second result has the indices of these sources,
    in the order of their copies. ``dtype`` is the dtype that the user asked for; there is a note if this dtype does not
    apply.

    Raises PlanError if a computed weight cannot be encoded as before, or if a weight of another source would be stored
    in another encoding than the settings of the source ``owner`` say.
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
    """Replaces each step for a weight by steps for its stored parts; for the parameters see ``with_codes_kept``.

    The owner is the source whose encodings and settings (``quantization_config``) the output gets.
    """

    def __init__(self, plan: Plan, sources: Mapping[int, CodedSource], owner: int, dtype: str) -> None:
        self.decoded: dict[int, int] = {}
        self._found = KeptCodes()
        self._plan, self._sources, self._owner, self._dtype = plan, sources, owner, dtype

    def notes(self) -> Iterator[str]:
        """Yield notes on the weights that are not copied as they are, and on a dtype that does not apply."""
        owner = self._sources.get(self._owner)
        names = [one.name for one in self._plan.sources]
        stored, weights = (owner.stored.name, owner.by_name.keys()) if owner is not None else ("", ())
        yield from self._found.notes(names, self._owner, stored=stored, weights=weights, dtype=self._dtype)

    def steps(self, step: Step) -> Iterator[Step]:
        """Yield the steps that replace ``step``: one for each stored part if its weight is stored as codes."""
        owner = self._sources.get(self._owner)
        wanted = owner.by_name.get(step.key) if owner is not None else None
        copied = self._copied(step, owner, wanted)
        if copied is None and owner is not None and step.key not in owner.tensors and wanted is None:
            self._check_plain(step, owner)
        moved = self._stored(step, wanted)
        if moved is not None and not moved.computes:
            self._found.moved.setdefault(moved.want.coded.method, []).append(moved.want.coded.name)
            yield from moved.steps()
        elif copied is not None and step.source is not None:
            yield from self._copies(step, copied, self._sources[step.source], step.source)
        elif wanted is not None and owner is not None:
            yield from self._encoded(self._decoding(step), wanted, owner, moved.inputs() if moved is not None else {})
        else:
            for one in step.inputs:
                if one.source is not None and (coded := self._coded(one.source, one.key)) is not None:
                    self._found.made_plain.setdefault((one.source, coded.method, step.dtype), {})[step.key] = None
            yield self._decoding(step)

    def _copied(self, step: Step, owner: CodedSource | None, wanted: QuantisedTensor | None) -> QuantisedTensor | None:
        """Return the quantised tensor whose parts ``step`` may copy; None if the weight has to be computed.

        ``owner`` is the source whose encodings the output gets. ``wanted`` is the owner's quantised tensor with the key
        of ``step``. Codes of another source are copied if ``wanted`` has the same parts, and if the settings of both
        sources decode codes to the same numbers. If the owner has no tensor with this key, the same tensor in another
        of its layers must have parts of the same dtypes. A later check raises an error if the settings differ in this
        case.
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
        is_alike = parts[0] == parts[1] and family(coded.method) == family(wanted.method)
        return coded if is_alike and not disagreements([module], theirs.settings, owner.settings) else None

    def _stored(self, step: Step, wanted: QuantisedTensor | None) -> MovedRows | None:
        """Return how to move rows of codes without decoding them, for ``step``, which maps rows to another vocabulary.

        The result is None if the rows must be decoded. ``wanted`` is the quantised tensor that gets the rows.
        """
        coded = self._coded(step.source, step.source_key)
        if step.op != "map" or step.source is None or coded is None or wanted is None:
            return None
        if step.draws and self._plan.sources[self._owner].role != "destination":
            return None
        theirs, owner = self._sources[step.source], self._sources[self._owner]
        module = QuantisedModule.of(coded.method, coded.name, wanted.name)
        if coded.method != wanted.method or disagreements([module], theirs.settings, owner.settings):
            return None
        have = StoredWeight(coded, theirs.tensors, step.source)
        return moved_rows(step, have, StoredWeight(wanted, owner.tensors, self._owner))

    def _check_plain(self, step: Step, owner: CodedSource) -> None:
        """Raise PlanError if ``step`` would store a plain weight that is quantised according to ``owner``'s settings.

        The output gets these settings, so loaders would try to decode the weight.
        """
        alike = self._alike.get(any_layer(step.key))
        is_decoded = any(self._coded(one.source, one.key) is not None for one in step.inputs)
        if not is_decoded and (alike is None or len(step.shape) != len(alike.shape or ())):
            return
        than = f"{escape(alike.name)} is quantised ({alike.method})" if alike is not None else "weights are quantised"
        raise PlanError(
            f"the tensor {escape(step.key)} would be stored as plain numbers, but the output has the "
            f"quantization_config of {escape(owner.stored.name)}, in which {than}.",
            hint="Write plain weights with --encoding dequantize, or quantise all sources alike first.",
        )

    @cached_property
    def _alike(self) -> Mapping[str, QuantisedTensor]:
        """{name with ``*`` for layer numbers (see ``any_layer``): quantised tensor of the owner}.

        If several tensors get the same name in this way, only the first is in the map.
        """
        found: dict[str, QuantisedTensor] = {}
        for one in self._sources[self._owner].codes.tensors if self._owner in self._sources else ():
            found.setdefault(any_layer(one.name), one)
        return found

    def equal(self, pair: EqualKeys) -> EqualKeys:
        """Return ``pair``: a source, and two of its keys whose values must be equal.

        If one of the two tensors is quantised, the source's decoded copy takes the place of the source.
        """
        if self._coded(pair.source, pair.first) is None and self._coded(pair.source, pair.second) is None:
            return pair
        return replace(pair, source=self._twin(pair.source))

    def unexpected(self, source: int, key: str) -> list[tuple[int, str]]:
        """Return (source, stored key) for each stored part of ``key``, a tensor that the plan does not use.

        If the tensor is not quantised, its only part is the tensor itself.
        """
        coded = self._coded(source, key)
        return [(source, key)] if coded is None else [(source, part) for part in coded.keys]

    def _coded(self, source: int | None, key: str) -> QuantisedTensor | None:
        known = self._sources.get(source) if source is not None else None
        return known.by_name.get(key) if known is not None else None

    def _copies(self, step: Step, coded: QuantisedTensor, source: CodedSource, at: int) -> Iterator[Step]:
        """Yield the steps that copy the parts of ``coded``, under names that fit the new name of the weight.

        ``at`` is the index of ``source`` in the plan. Raises PlanError or FormatError if a part cannot be copied.
        """
        self._found.copied += 1
        for end, key in coded.parts.items():
            info = source.tensors[key]
            if is_uncopied(info):
                raise opaque_error(key, source.stored.name, info, "cannot be copied", verb=self._plan.verb)
            yield Step(
                _renamed(step.key, coded, end), step.op, info.dtype, info.shape, at, key, info.dtype, info.shape,
                rule=step.rule, reason=step.reason,
                tied_to=_renamed(step.tied_to, coded, end) if step.tied_to else "",
            )  # fmt: skip

    def _encoded(
        self, step: Step, coded: QuantisedTensor, owner: CodedSource, moved: Mapping[str, Input]
    ) -> Iterator[Step]:
        """Yield the steps that store a new weight in the encoding of ``coded``, a quantised tensor of ``owner``.

        ``moved`` maps endings of keys to stored parts of a source. Rows that the weight takes from the source are
        copied from these parts, and are not encoded again. Raises PlanError if the weight cannot be encoded.
        """
        weight = TensorInfo(COMPUTED, step.shape)
        try:
            if step.draws:
                raise owner.unencodable("some of its values are initialised")
            parts = owner.encoded(coded, weight)
        except owner.unencodable as error:
            raise PlanError(
                f"the tensor {escape(coded.name)} of {escape(owner.stored.name)} is quantised ({coded.method}), and "
                f"its new values cannot be stored that way: {error}.",
                hint=_remedy(step),
                details=list(coded.keys),
            ) from None
        if moved and step.rows is not None:
            self._found.mixed[coded.name] = (step.rows.kept, len(step.rows.rows) - step.rows.kept)
            step = replace(step, policy=STORED_ROWS)
        else:
            self._found.encoded_anew.setdefault(coded.method, []).append(coded.name)
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
            more = (moved[end],) if end in moved else step.more
            if part.is_ordered:
                order = next(coded.parts[name] for name in COLUMN_ORDERS if name in coded.parts)
                more = (*more, Input(self._owner, order, owner.tensors[order].dtype, owner.tensors[order].shape))
            yield replace(step, key=key, dtype=info.dtype, shape=info.shape, tied_to=tied, coded=part, more=more)

    def _decoding(self, step: Step) -> Step:
        """Return ``step`` with other inputs: quantised tensors are read from the decoded copies of their sources."""
        inputs = [self._decoded_input(one) for one in step.inputs]
        if inputs == list(step.inputs):
            return step
        return replace(step, source=inputs[0].source, more=tuple(inputs[1:]))

    def _decoded_input(self, one: Input) -> Input:
        if self._coded(one.source, one.key) is None:
            return one
        return one._replace(source=self._twin(one.source))

    def _twin(self, source: int) -> int:
        """Return the index of the decoded copy of a source; add the copy if there is none yet."""
        return self.decoded.setdefault(source, len(self._plan.sources) + len(self.decoded))


def _dtypes(coded: QuantisedTensor, source: CodedSource) -> dict[str, str]:
    """Return {ending of the key: dtype} for the stored parts of a quantised tensor."""
    return {end: source.tensors[key].dtype for end, key in coded.parts.items()}


def _remedy(step: Step) -> str:
    """Return the hint for a weight that cannot be encoded.

    If this is because the rows of new tokens are initialised, the hint also suggests other values for these rows.
    """
    or_other = "Use --new-tokens mean or zero, or dequantise it" if step.rows is not None and step.draws else ""
    how = "with --encoding dequantize, and quantise the output with the package that quantised the model."
    return f"{or_other or 'Dequantise it'} {how}"


def _renamed(key: str, coded: QuantisedTensor, end: str) -> str:
    """Return the new key of the part of ``coded`` with the ending ``end``, if its weight gets the name ``key``.

    Raises PlanError if no key fits.
    """
    found = coded.part_named(key, end)
    if found is None:
        raise without_names(coded, key)
    return found
