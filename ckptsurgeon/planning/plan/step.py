"""A step of a plan: what becomes of one destination tensor, and what it reads for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import NamedTuple

from ...util.brief import Brief
from .lora import Factor, Lora
from .merge import Merge
from .rows import Rows

__all__ = ["CLASSES", "MERGES", "Input", "Step", "with_vocabularies"]

MERGES = ("average", "max", "merge")
"""Operations on several inputs, element by element."""
CLASSES = ("copied", "cast", "reshaped", "derived", "resized", "mapped", "merged", "initialised", "kept")
"""What can become of a destination tensor; each is in exactly one class."""
_KINDS = {
    "init": "initialised", "keep": "kept", "lora": "merged", "map": "mapped", "factor": "derived",
    **dict.fromkeys(MERGES, "merged"),
}  # fmt: skip
"""The classes of operations other than copying; all others resize."""


class Input(NamedTuple):
    """A tensor that a step reads: of which source, under which key, with which dtype and shape."""

    source: int
    key: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(slots=True, unsafe_hash=True, repr=False)  # as good as frozen, which takes thrice as long: see TensorInfo
class Step(Brief):
    """What becomes of one destination tensor.

    ``dtype`` and ``shape`` are the destination's; ``source_dtype`` and ``source_shape`` what the source has.
    ``rule`` is the option that decided, as the user wrote it; ``reason`` says why a tensor is initialised:
    missing, excluded, reinit or mismatch. ``tied_to`` names the first key of the same tensor. ``more`` are inputs
    beyond the first, ``weights`` what each counts (none: all the same). ``operation`` is the last operation that made
    the source's tensor, if one did, and ``made_of`` the keys that went into it. ``rows`` are those of a vocabulary that
    runs along ``axis``, where a tensor is mapped. ``merge`` says how inputs are merged, where it is by a method,
    ``lora`` how adapters change the first input, ``factor`` which factor of a difference it is. Inputs of a merge that
    have other shapes are made to fit by ``policy`` (slice, overlap, vocab), with ``vocab`` by ``vocabularies`` along
    ``axis``, one for each input.
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
    rows: Rows | None = None
    axis: int = 0
    merge: Merge | None = None
    lora: Lora | None = None
    factor: Factor | None = None
    vocabularies: tuple[Rows, ...] = ()

    _kind: str = field(default="", init=False, repr=False, compare=False)

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Every tensor that the step reads, none where it only draws."""
        if self.source is None:
            return ()
        return (Input(self.source, self.source_key, self.source_dtype, self.source_shape), *self.more)

    @property
    def kind(self) -> str:
        """The class of the tensor, worked out once."""
        if not self._kind:
            self._kind = _kind_of(self)
        return self._kind

    @property
    def shared(self) -> int | None:
        """How many values a source gives that is laid over others (pad, overlap); None for any other step."""
        if self.op not in ("pad", "overlap"):
            return None
        return prod(min(pair) for pair in zip(self.source_shape, self.shape, strict=False))

    @property
    def keeper(self) -> Input:
        """The input of a merge that has the output's shape: the base, or the first model."""
        return self.inputs[-1 if self.merge is not None and self.merge.base else 0]

    @property
    def draws(self) -> bool:
        """Whether the destination's own initial values are needed."""
        return self.op == "init" or self.overlays

    @property
    def overlays(self) -> bool:
        """Whether a source is laid over the destination's own initial values."""
        return self.op in ("pad", "overlap") or (self.op == "map" and self.rows is not None and self.rows.draws)


def _kind_of(step: Step) -> str:
    if step.op != "copy":
        return _KINDS.get(step.op, "resized")
    if step.operation:
        return "derived"
    if step.source_shape != step.shape:
        return "reshaped"
    return "copied" if step.source_dtype == step.dtype else "cast"


def with_vocabularies(step: Step, vocabularies: Sequence[Rows]) -> Step:
    """Return a step with the rows of each of its inputs, where it goes by vocabularies; raises ValueError."""
    if step.op != "merge" or step.policy != "vocab":
        return step
    if not vocabularies:
        raise ValueError(f"{step.key!r:.80} goes by vocabularies that are not there")
    return replace(step, vocabularies=tuple(vocabularies[one.source] for one in step.inputs))
