"""The result of ``match``: proposed rules, and the keys that are still undecided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...tensors.info import TensorInfo
from ...util.notebook import InNotebooks
from ...util.text import count, escape

__all__ = ["Match", "Proposal", "ProposedOperation", "Tensors", "Undecided"]

Tensors = Mapping[str, TensorInfo]
"""The tensors of a model: {key: header}."""


@dataclass(frozen=True)
class Match:
    """A module of the source (``first``) and a module of the destination (``second``) that should correspond.

    Layers whose paths differ only in numbers count as one module, with ``{n}`` in place of the number. ``tensors`` is
    the number of matched tensors. ``why`` is the kind of evidence: same name, prefix, name or shape.
    """

    first: str
    second: str
    tensors: int
    why: str


@dataclass(frozen=True)
class ProposedOperation:
    """An operation on the tensors of the source: ``row`` has the form of an entry for ``--operations``.

    ``tensors`` is the number of tensors that it makes. ``why`` is the evidence: name, shape, transposed or value.
    """

    row: Mapping[str, Any]
    tensors: int
    why: str


@dataclass(frozen=True)
class Undecided:
    """Tensors of the source (``first``) that an operation turns into tensors of the destination (``second``).

    ``why`` is the missing information about the operation. ``keys`` are the destination's tensors in all layers.
    """

    first: tuple[str, ...]
    second: tuple[str, ...]
    why: str
    keys: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True, repr=False)
class Proposal(InNotebooks):
    """The proposed correspondence of a source and a destination.

    ``names`` maps source keys to destination keys, and ``rules`` are the ``--map`` rules for this mapping. ``evidence``
    has the kind of evidence for each key in ``names``. ``ambiguous`` maps a module of the destination to the modules of
    the source that could equally well be its partner; ``undecided`` is the number of destination keys in such modules.
    ``unmatched`` are the source keys that are not in ``names``. ``missing`` are the destination keys that have neither
    a partner in ``names`` nor an ambiguous one.

    ``operations`` are done before ``rules``. ``made`` maps each destination key that an operation makes to the source
    keys that it uses; such destination keys are in neither ``names`` nor ``missing``. ``open`` has the incomplete
    operations. ``agreed`` maps destination keys to "bits", "cast" or "rounded" (float16 and bfloat16), if values were
    compared and agree. ``turned`` maps source keys to destination keys, for matrices that only one of the two stores
    transposed.
    """

    first: str
    second: str
    matches: tuple[Match, ...]
    names: Mapping[str, str]
    rules: tuple[str, ...]
    ambiguous: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unmatched: Mapping[str, TensorInfo] = field(default_factory=dict)
    missing: Mapping[str, TensorInfo] = field(default_factory=dict)
    undecided: int = 0
    notes: tuple[str, ...] = ()
    evidence: Mapping[str, str] = field(default_factory=dict)
    operations: tuple[ProposedOperation, ...] = ()
    made: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    open: tuple[Undecided, ...] = ()
    agreed: Mapping[str, str] = field(default_factory=dict)
    turned: Mapping[str, str] = field(default_factory=dict)
    ambiguous_keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __repr__(self) -> str:
        found = [("undecided", self.undecided), ("unmatched", len(self.unmatched)), ("missing", len(self.missing))]
        said = "".join(f", {number} {what}" for what, number in found if number)
        names = f"{escape(self.first)} to {escape(self.second)}"
        done = f", {count(len(self.operations), 'operation')}" if self.operations else ""
        return f"<Proposal {names}: {count(len(self.rules), 'rule')}{done}, {self.matched} matched{said}>"

    @property
    def matched(self) -> int:
        """The number of destination tensors that have a source."""
        return len(self.names) + len(self.made)

    @property
    def complete(self) -> bool:
        """True if every destination tensor has a source."""
        return not (self.missing or self.ambiguous or self.open)

    def to_json(self) -> dict[str, Any]:
        """Return the proposal as plain data."""
        return {
            "kind": "ckpt.match",
            "version": 1,
            "first": self.first,
            "second": self.second,
            "complete": self.complete,
            "rules": list(self.rules),
            "operations": [{"operation": dict(o.row), "tensors": o.tensors, "why": o.why} for o in self.operations],
            "matches": [{"from": m.first, "to": m.second, "tensors": m.tensors, "why": m.why} for m in self.matches],
            "names": dict(self.names),
            "made": {key: list(sources) for key, sources in self.made.items()},
            "ambiguous": [{"key": key, "could_be": list(others)} for key, others in self.ambiguous.items()],
            "open": [{"from": list(o.first), "to": list(o.second), "why": o.why} for o in self.open],
            "agreed": dict(self.agreed),
            "unmatched": [_row(key, info) for key, info in self.unmatched.items()],
            "missing": [_row(key, info) for key, info in self.missing.items()],
            "notes": list(self.notes),
        }


def _row(key: str, info: TensorInfo) -> dict[str, Any]:
    return {"key": key, "dtype": info.dtype, "shape": list(info.shape)}
