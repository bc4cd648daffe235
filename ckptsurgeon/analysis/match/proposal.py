"""The result of ``match``: proposed rules, and the keys that are still undecided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...tensors.info import TensorInfo
from ...util.notebook import InNotebooks
from ...util.text import count, escape

__all__ = ["Match", "Proposal"]


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


@dataclass(frozen=True, repr=False)
class Proposal(InNotebooks):
    """The proposed correspondence of a source and a destination.

    ``names`` maps source keys to destination keys, and ``rules`` are the ``--map`` rules for this mapping. ``evidence``
    has the kind of evidence for each key in ``names``. ``ambiguous`` maps a module of the destination to the modules of
    the source that could equally well be its partner; ``undecided`` is the number of destination keys in such modules.
    ``unmatched`` are the source keys that are not in ``names``. ``missing`` are the destination keys that have neither
    a partner in ``names`` nor an ambiguous one.
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

    def __repr__(self) -> str:
        found = [("undecided", self.undecided), ("unmatched", len(self.unmatched)), ("missing", len(self.missing))]
        said = "".join(f", {number} {what}" for what, number in found if number)
        names = f"{escape(self.first)} to {escape(self.second)}"
        return f"<Proposal {names}: {count(len(self.rules), 'rule')}, {len(self.names)} matched{said}>"

    @property
    def complete(self) -> bool:
        """True if every destination tensor has a source."""
        return not (self.missing or self.ambiguous)

    def to_json(self) -> dict[str, Any]:
        """Return the proposal as plain data."""
        return {
            "kind": "ckpt.match",
            "version": 1,
            "first": self.first,
            "second": self.second,
            "complete": self.complete,
            "rules": list(self.rules),
            "matches": [{"from": m.first, "to": m.second, "tensors": m.tensors, "why": m.why} for m in self.matches],
            "names": dict(self.names),
            "ambiguous": [{"key": key, "could_be": list(others)} for key, others in self.ambiguous.items()],
            "unmatched": [_row(key, info) for key, info in self.unmatched.items()],
            "missing": [_row(key, info) for key, info in self.missing.items()],
            "notes": list(self.notes),
        }


def _row(key: str, info: TensorInfo) -> dict[str, Any]:
    return {"key": key, "dtype": info.dtype, "shape": list(info.shape)}
