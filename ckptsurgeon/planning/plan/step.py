"""A step of a plan: how one destination tensor is made, and which tensors it is made from; to and from JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, NamedTuple

from ...util.short_repr import Brief
from .coded_part import CodedPart
from .compute import OF_BASE, Factor, Lora, Merge, text
from .rows import VocabularyRows

__all__ = [
    "CLASSES",
    "MERGES",
    "REPEAT",
    "STORED_ROWS",
    "Input",
    "Step",
    "read_step",
    "step_json",
    "step_texts",
    "with_vocabularies",
]

MERGES = ("average", "max", "merge")
"""The operations that combine several inputs element by element."""
REPEAT, DIGITS = "repeat", 7
"""The ``policy`` of an initialised tensor whose rows are repeated, as in ``repeat:4``.

The number has fewer than ``DIGITS`` digits."""
STORED_ROWS = "stored rows"
"""The ``policy`` of a step that moves rows of codes or scales without decoding them."""
CLASSES = ("copied", "cast", "reshaped", "derived", "resized", "mapped", "merged", "initialised", "kept")
"""The classes of a destination tensor; each tensor is in exactly one."""
_KINDS = {
    "init": "initialised", "keep": "kept", "lora": "merged", "map": "mapped", "factor": "derived", "concat": "derived",
    **dict.fromkeys(MERGES, "merged"),
}  # fmt: skip
"""{operation: class of the tensor}, except for copying; the class for an operation that is not here is ``resized``."""


class Input(NamedTuple):
    """A tensor that a step reads: its source, key, dtype and shape."""

    source: int
    key: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(slots=True, unsafe_hash=True, repr=False)  # frozen would be three times as slow: see TensorInfo
class Step(Brief):
    """How one destination tensor is made.

    ``key`` is the tensor's name in the destination; ``op`` is the operation: copy, slice, init, merge, ... ``dtype``
    and ``shape`` describe the destination's tensor, ``source_dtype`` and ``source_shape`` the source's tensor. ``rule``
    is the option that decided this, as the user wrote it; ``reason`` is why a tensor is initialised: missing, excluded,
    reinit or mismatch. ``tied_to`` is the tensor's first key, if ``key`` is a further key of the same tensor. ``more``
    are the inputs after the first, ``weights`` the weight of each input in an average (empty: all the same).

    ``operation`` is the last operation that made the source's tensor, if any, and ``made_of`` are the source keys that
    it was made from. If rows are mapped by token, ``axis`` is the vocabulary axis, and ``rows`` says where each row
    comes from. ``merge`` is the method that merges the inputs, ``lora`` how adapters change the first input, ``factor``
    which low-rank factor is computed. ``concat`` puts its inputs, each times its weight, one after the other along
    ``axis``, and fills the rest with zeros; with the policy ``transpose``, the inputs are transposed first. With a
    policy such as ``experts 32``, each input has 32 equal parts along ``axis``: all first parts come first. ``policy``
    is how a different shape is made to fit, such as slice or overlap. In a merge it may be ``vocab``: then
    ``vocabularies`` says for each input which of its rows are used, along ``axis``. If the computed numbers are stored
    quantised, the step makes one part of the quantised tensor: ``coded`` says which.
    """

    key: str
    op: str
    dtype: str
    shape: tuple[int, ...]
    source: int | None = None
    source_key: str = ""
    source_dtype: str = ""
    source_shape: tuple[int, ...] = ()
    rule: str = ""
    policy: str = ""
    reason: str = ""
    tied_to: str = ""
    more: tuple[Input, ...] = ()
    weights: tuple[float, ...] = ()
    operation: str = ""
    made_of: tuple[str, ...] = ()
    rows: VocabularyRows | None = None
    axis: int = 0
    merge: Merge | None = None
    lora: Lora | None = None
    factor: Factor | None = None
    vocabularies: tuple[VocabularyRows, ...] = ()
    coded: CodedPart | None = None

    _kind: str = field(default="", init=False, repr=False, compare=False)

    @property
    def inputs(self) -> tuple[Input, ...]:
        """All tensors that the step reads; an empty tuple if the tensor is only initialised."""
        if self.source is None:
            return ()
        return (Input(self.source, self.source_key, self.source_dtype, self.source_shape), *self.more)

    @property
    def combined(self) -> tuple[Input, ...]:
        """The tensors that a merge combines: its inputs without statistics.

        If the method uses statistics, the inputs end with them: one for each model, or one for the base.
        """
        inputs, statistics = self.inputs, self.merge.statistics if self.merge is not None else ""
        if statistics in OF_BASE:
            return inputs[:-1]
        return inputs[: len(inputs) // 2] if statistics else inputs

    @property
    def numbers(self) -> Step:
        """The step that computes the numbers that this step rounds to codes; the step itself if it stores no codes."""
        part = self.coded
        if part is None:
            return self
        more = self.more if self.column_order is None else self.more[:-1]
        numbers = replace(self, key=part.key, dtype=part.dtype, shape=part.shape, more=more, coded=None)
        if not self.copies_rows or numbers.rows is None:
            return numbers
        return replace(numbers, more=(), rows=numbers.rows.computed)

    @property
    def copies_rows(self) -> bool:
        """Whether the step computes and encodes only new rows, and copies the others from its second input."""
        return self.op == "map" and self.coded is not None and len(self.more) > (self.column_order is not None)

    @property
    def column_order(self) -> Input | None:
        """The last input if it is ``g_idx``, the number of the group of each column of the codes; else None."""
        return self.more[-1] if self.coded is not None and self.coded.is_ordered and self.more else None

    @property
    def kind(self) -> str:
        """The class of the tensor, one of ``CLASSES``: copied, cast, initialised, ...; computed once."""
        if not self._kind:
            self._kind = _kind_of(self)
        return self._kind

    @property
    def shared(self) -> int | None:
        """The number of values that come from the source, if the others are initialised (pad, overlap); else None."""
        if self.op not in ("pad", "overlap"):
            return None
        return prod(min(pair) for pair in zip(self.source_shape, self.shape, strict=False))

    @property
    def keeper(self) -> Input:
        """The input of a merge that determines the shape of the output: the base, else the first model."""
        return self.inputs[-1 if self.merge is not None and self.merge.base else 0]

    @property
    def draws(self) -> bool:
        """Whether the step needs the destination's own initial values."""
        return self.op == "init" or self.overlays

    @property
    def repeats(self) -> int:
        """The number of equal copies of each row of an initialised tensor, one after the other; 1 for other tensors."""
        verb, _, times = self.policy.partition(":") if self.op == "init" else ("", "", "")
        return int(times) if verb == REPEAT and times.isdecimal() and len(times) < DIGITS else 1

    @property
    def overlays(self) -> bool:
        """Whether a part of the values comes from the source, and all others are initialised."""
        return self.op in ("pad", "overlap") or (self.op == "map" and self.rows is not None and self.rows.draws)


def _kind_of(step: Step) -> str:
    if step.op != "copy":
        return _KINDS.get(step.op, "resized")
    if step.operation or (step.coded is not None and step.policy != STORED_ROWS):
        return "derived"
    if step.source_shape != step.shape:
        return "reshaped"
    return "copied" if step.source_dtype == step.dtype else "cast"


def with_vocabularies(step: Step, vocabularies: Sequence[VocabularyRows]) -> Step:
    """Return a merge step of the policy ``vocab`` with the vocabulary of each input; any other step is unchanged.

    ``vocabularies`` are the vocabularies of all sources. Raises ValueError if the step needs vocabularies and there are
    none.
    """
    if step.op != "merge" or step.policy != "vocab":
        return step
    if not vocabularies:
        raise ValueError(f"the vocabularies that {step.key!r:.80} needs are missing")
    return replace(step, vocabularies=tuple(vocabularies[one.source] for one in step.inputs))


# Steps of a plan as JSON, and back.

OPS = (
    "copy", "slice", "pad", "overlap", "interpolate", "positions-1d", "positions-2d", "patch", "channels", "center",
    "map", "init", "keep", "lora", "factor", "concat", *MERGES,
)  # fmt: skip
"""The operations of steps: the values of ``op``."""


def step_json(step: Step, names: Sequence[str]) -> dict[str, Any]:
    """Return a step as plain data; ``names`` are the names of the sources."""
    inputs = [_input_json(one, names) for one in step.inputs]
    origin, more = (inputs[0], inputs[1:]) if inputs else (None, [])
    several = {"more": more, "weights": list(step.weights) or None} if more or step.op == "concat" else {}
    return {
        "key": step.key,
        "op": step.op,
        "class": step.kind,
        "from": origin,
        "rule": step.rule or None,
        "policy": step.policy or None,
        "reason": step.reason or None,
        "dtype": step.dtype,
        "shape": list(step.shape),
        "tied_to": step.tied_to or None,
        **({"operation": step.operation, "made_of": list(step.made_of)} if step.operation else {}),
        **({"axis": step.axis} if step.rows is not None or step.vocabularies or step.op == "concat" else {}),
        **({"merge": step.merge.to_json()} if step.merge is not None else {}),
        **({"lora": step.lora.to_json()} if step.lora is not None else {}),
        **({"factor": step.factor.to_json()} if step.factor is not None else {}),
        **({"coded": step.coded.to_json()} if step.coded is not None else {}),
        **several,
    }


_dumps = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
_FROM, _KEY = "\0from", "\0key"
MOST = 10_000
"""The largest number of texts that ``step_texts`` caches."""


def step_texts(steps: Iterable[Step], names: Sequence[str]) -> Iterator[str]:
    """Yield the JSON text of each step, with sorted keys; ``names`` are the names of the sources.

    Most texts differ only in the keys of tensors, so the rest of the text is cached.
    """
    spelled: dict[tuple[object, ...], tuple[str, str, list[str]]] = {}
    for step in steps:
        shared = _shared_text_key(step)
        if shared is None or (shared not in spelled and len(spelled) == MOST):
            yield _dumps(step_json(step, names))
            continue
        if shared not in spelled:
            more = tuple(one._replace(key=_FROM) for one in step.more)
            text = _dumps(step_json(replace(step, source_key=_FROM, key=_KEY, more=more), names))
            before, middle, *others = text.split(_dumps(_FROM))
            between, _, after = middle.partition(_dumps(_KEY))
            spelled[shared] = (before, between, [after, *others])
        (before, between, rest), origin = spelled[shared], _dumps(step.source_key)
        yield f"{before}{origin}{between}{_dumps(step.key)}{origin.join(rest)}"


def _shared_text_key(step: Step) -> tuple[object, ...] | None:
    """Return the cache key of a step's JSON: all fields except names of tensors; None if the JSON is not cached."""
    if step.tied_to or step.operation or step.rows or step.lora or step.factor or step.vocabularies or step.coded:
        return None
    if step.source is None or any(one.key != step.source_key for one in step.more):
        return None
    more = tuple((one.source, one.dtype, one.shape) for one in step.more)
    return (step.op, step.dtype, step.shape, step.source, step.source_dtype, step.source_shape, step.rule, step.policy,
            step.reason, more, step.weights, step.axis, id(step.merge))  # fmt: skip


def _input_json(one: Input, names: Sequence[str]) -> dict[str, Any]:
    return {"source": names[one.source], "key": one.key, "dtype": one.dtype, "shape": list(one.shape)}


def _read_input(row: Mapping[str, Any], index: Mapping[str, int]) -> Input:
    return Input(index[row["source"]], text(row["key"]), text(row["dtype"]), tuple(map(int, row["shape"])))


def read_step(
    row: Mapping[str, Any],
    index: Mapping[str, int],
    rows: VocabularyRows | None,
    vocabularies: Sequence[VocabularyRows],
) -> Step:
    """Return the step that JSON data describes; raises KeyError, TypeError or ValueError if the data is not a step.

    ``index`` maps the name of each source to its index; ``rows`` and ``vocabularies`` are the fields of the plan.
    """
    if row["op"] not in OPS:
        raise ValueError(f"unknown op {row['op']!r}")
    origin = row["from"] or {}
    step = Step(
        key=text(row["key"]),
        op=row["op"],
        dtype=text(row["dtype"]),
        shape=tuple(map(int, row["shape"])),
        source=index[origin["source"]] if origin else None,
        source_key=text(origin["key"]) if origin else "",
        source_dtype=text(origin["dtype"]) if origin else "",
        source_shape=tuple(map(int, origin["shape"])) if origin else (),
        rule=text(row["rule"] or ""),
        policy=text(row["policy"] or ""),
        reason=text(row["reason"] or ""),
        tied_to=text(row["tied_to"] or ""),
        more=tuple(_read_input(one, index) for one in row.get("more") or ()),
        weights=tuple(map(float, row.get("weights") or ())),
        operation=text(row.get("operation") or ""),
        made_of=tuple(map(text, row.get("made_of") or ())),
        rows=rows if row["op"] == "map" else None,
        axis=int(row.get("axis") or 0),
        merge=Merge.from_json(row.get("merge")),
        lora=Lora.from_json(row.get("lora")),
        factor=Factor.from_json(row.get("factor")),
        coded=CodedPart.from_json(row.get("coded")),
    )
    return with_vocabularies(step, vocabularies)
