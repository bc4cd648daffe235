"""The result of ``explain``: the operation of the plan on each tensor, and the reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..planning.plan.step import Step
from ..util.notebook import InNotebooks
from ..util.short_repr import Brief
from ..util.text import escape, listing

__all__ = ["Alternatives", "Candidate", "Explained", "Explanation", "OtherMatch"]


@dataclass(frozen=True)
class Candidate:
    """A source tensor that could have been used for a destination tensor, and the reason ``why`` it is not used."""

    source: str
    key: str
    dtype: str
    shape: tuple[int, ...]
    why: str

    def to_json(self) -> dict[str, Any]:
        """Return the candidate as plain data."""
        return {**_input(self.source, self.key, self.dtype, self.shape), "why": self.why}


@dataclass(frozen=True)
class OtherMatch:
    """A rename rule or shape policy (``text``) that also matches a tensor, and the reason ``why`` it is not applied."""

    text: str
    why: str


@dataclass(frozen=True, repr=False)
class Alternatives(Brief):
    """The sources, rules and policies that a plan could have used instead for a tensor.

    ``sources`` are source tensors that could be used instead. ``excluded`` are source tensors that an option excludes.
    ``rules`` are other rename rules and shape policies that match the tensor. ``policies`` are other shape policies
    that can be used for its shapes. If no source has the tensor, ``near`` lists source tensors with similar names.
    """

    sources: tuple[Candidate, ...] = ()
    excluded: tuple[Candidate, ...] = ()
    rules: tuple[OtherMatch, ...] = ()
    policies: tuple[str, ...] = ()
    near: tuple[Candidate, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the tensors, rules and policies that were possible but not used, as plain data."""
        return {
            "sources": [one.to_json() for one in self.sources],
            "excluded": [one.to_json() for one in self.excluded],
            "rules": [{"rule": one.text, "why": one.why} for one in self.rules],
            "policies": list(self.policies),
            "near": [one.to_json() for one in self.near],
        }


@dataclass(frozen=True, repr=False)
class Explanation(Brief):
    """How the plan makes one destination tensor, and why.

    ``source`` is the name of its source. If it has no source, ``source`` is empty and ``because`` is the reason.
    ``seed`` is the seed if its values are drawn at random. ``ties`` are the other keys of the same tensor.
    ``alternatives`` is None if the plan was read from a file, because the file does not contain them.
    """

    step: Step
    source: str = ""
    because: str = ""
    seed: int | None = None
    ties: tuple[str, ...] = ()
    alternatives: Alternatives | None = field(default=None)

    def __repr__(self) -> str:
        why = f" from {escape(self.source)}" if self.source else f": {escape(self.because)}" if self.because else ""
        return f"<Explanation {escape(self.key)} {self.step.kind}{why}>"

    @property
    def key(self) -> str:
        """The key of the tensor in the destination."""
        return self.step.key

    def to_json(self) -> dict[str, Any]:
        """Return the explanation as plain data."""
        step = self.step
        came = _input(self.source, step.source_key, step.source_dtype, step.source_shape) if self.source else None
        return {
            "key": step.key,
            "class": step.kind,
            "op": step.op,
            "dtype": step.dtype,
            "shape": list(step.shape),
            "from": came,
            "rule": step.rule or None,
            "policy": step.policy or None,
            "reason": step.reason or None,
            "because": self.because or None,
            "operation": step.operation or None,
            "made_of": list(step.made_of),
            "vocabulary": _rows(step),
            "seed": self.seed,
            "tied_to": step.tied_to or None,
            "ties": list(self.ties),
            "alternatives": self.alternatives.to_json() if self.alternatives is not None else None,
        }


@dataclass(frozen=True, repr=False)
class Explained(InNotebooks):
    """The explanations of the requested tensors, in the destination's order."""

    tensors: tuple[Explanation, ...]

    def __repr__(self) -> str:
        return f"<Explained {listing([one.key for one in self.tensors], where='')}>"

    def to_json(self) -> dict[str, Any]:
        """Return the explanations as plain data."""
        return {"kind": "ckpt.explain", "version": 1, "tensors": [one.to_json() for one in self.tensors]}


def _input(source: str, key: str, dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"source": source, "key": key, "dtype": dtype, "shape": list(shape)}


def _rows(step: Step) -> dict[str, Any] | None:
    rows = step.rows
    if rows is None:
        return None
    return {
        "source": rows.source, "destination": rows.destination, "axis": step.axis, "tokens": len(rows.rows),
        "kept": rows.kept, "moved": rows.moved, "composed": rows.composed, "new": rows.fresh, "new_tokens": rows.new,
    }  # fmt: skip
