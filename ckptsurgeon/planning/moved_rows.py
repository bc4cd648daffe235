"""Moves rows of quantised weights to another vocabulary without decoding them, so that they are not rounded again.

This is possible if each row has its own codes and scales: then the codes, scales and zero points of a row move
together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ..tensors.info import TensorInfo
from ..tensors.quantised.encoding import QuantisedTensor
from ..tensors.quantised.methods import family
from .plan.step import STORED_ROWS, Input, Step

__all__ = ["MovedRows", "StoredWeight", "moved_rows"]

BY_ROW = ("GGUF", "MLX", "bitsandbytes", "fp8", "int8", "mxfp4", "mxfp8", "nvfp4", "packed")
"""Families of encodings in which each row may have its own codes and scales; the shapes of the parts show this."""
DESCRIPTIONS = (".weight_shape", ".weight_format")
"""Endings of parts that describe the whole weight, and not its values."""


@dataclass(frozen=True)
class StoredWeight:
    """A quantised weight of a source: its stored parts in ``tensors``, and the index of the source in the plan."""

    coded: QuantisedTensor
    tensors: Mapping[str, TensorInfo]
    source: int

    def part(self, end: str) -> TensorInfo:
        """Return the stored part whose key has this ending."""
        return self.tensors[self.coded.parts[end]]

    def input(self, end: str) -> Input:
        """Return the stored part whose key has this ending, as the input of a step."""
        info = self.part(end)
        return Input(self.source, self.coded.parts[end], info.dtype, info.shape)


@dataclass(frozen=True)
class MovedRows:
    """How to move the rows of a weight's stored parts. This replaces ``step``, which would decode the weight.

    ``have`` is the weight in the source, ``want`` the weight in the destination. ``kinds`` maps the ending of each
    part's key to the kind of the part: "rows" (it has a row for each row of the weight), "whole" (one number) or
    "description".
    """

    step: Step
    have: StoredWeight
    want: StoredWeight
    kinds: Mapping[str, str]

    @property
    def computes(self) -> bool:
        """Whether some rows have to be computed, as means of several rows; all others are copies or zeros."""
        rows = self.step.rows
        return rows is not None and bool(rows.composed or (rows.new == "mean" and rows.fresh))

    def inputs(self) -> dict[str, Input]:
        """Return {ending of the key: stored part of ``have``} for the parts whose rows move."""
        return {end: self.have.input(end) for end, kind in self.kinds.items() if kind == "rows"}

    def steps(self) -> Iterator[Step]:
        """Yield a step for each stored part, which moves its rows; call this only if ``computes`` is false."""
        for end, key in self.want.coded.parts.items():
            of = self.want if self.kinds[end] == "description" else self.have
            info, moves = of.part(end), self.kinds[end] == "rows"
            tied = self.want.coded.part_named(self.step.tied_to, end) if self.step.tied_to else ""
            yield replace(
                self.step, key=key, op="map" if moves else "copy", dtype=info.dtype, shape=self.want.part(end).shape,
                source=of.source, source_key=of.coded.parts[end], source_dtype=info.dtype, source_shape=info.shape,
                policy=STORED_ROWS, rows=self.step.rows if moves else None, tied_to=tied or "",
            )  # fmt: skip


def moved_rows(step: Step, have: StoredWeight, want: StoredWeight) -> MovedRows | None:
    """Return the moves of the rows of ``have`` into ``want``, a weight for another vocabulary, without decoding them.

    The result is None if this is impossible. Both weights must have the same parts, with the same dtypes and, except
    for the number of rows, the same shapes.
    """
    if step.op != "map" or step.rows is None or step.axis != 0:
        return None
    kinds = _kinds(have, step.source_shape[0])
    if not kinds or kinds != _kinds(want, step.shape[0]) or not _have_equal_parts(have, want, kinds):
        return None
    is_mixed = step.rows.fresh or step.rows.composed
    if is_mixed and "whole" in kinds.values():  # new rows would need another global scale
        return None
    return MovedRows(step, have, want, kinds)


def _kinds(weight: StoredWeight, rows: int) -> dict[str, str]:
    """Return the kind of each part of a weight; {} if a row shares codes or scales with other rows."""
    if family(weight.coded.method) not in BY_ROW or rows < 2:
        return {}
    kinds = {end: _kind(end, weight.part(end), rows) for end in weight.coded.parts}
    codes = weight.coded.ending(weight.coded.codes) if weight.coded.codes else ""
    return kinds if "" not in kinds.values() and kinds.get(codes) == "rows" else {}


def _kind(end: str, info: TensorInfo, rows: int) -> str:
    if end in DESCRIPTIONS:
        return "description"
    if info.opaque:
        return ""
    return "rows" if info.shape[:1] == (rows,) else "whole" if info.numel == 1 else ""


def _have_equal_parts(have: StoredWeight, want: StoredWeight, kinds: Mapping[str, str]) -> bool:
    """Return whether the parts of two weights have equal dtypes and, except for the number of rows, equal shapes."""
    pairs = [(kind, have.part(end), want.part(end)) for end, kind in kinds.items() if kind != "description"]
    return all(
        a.dtype == b.dtype and (a.shape[1:] == b.shape[1:] if kind == "rows" else a.shape == b.shape)
        for kind, a, b in pairs
    )
