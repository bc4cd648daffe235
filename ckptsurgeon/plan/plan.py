"""A plan: for every destination tensor, where its values come from and by which rule. JSON in and out.

A plan is made from headers alone, can be reviewed and kept, and is carried out only if its inputs are still what
they were.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..text import count
from .costs import Costs
from .merge import Merge
from .rows import Rows

__all__ = [
    "CLASSES",
    "MERGES",
    "Carried",
    "Equal",
    "FilePrint",
    "Input",
    "Plan",
    "PlanCompanion",
    "PlanSource",
    "PlanTarget",
    "Step",
    "with_vocabularies",
]

MERGES = ("average", "max", "merge")
"""Operations on several inputs, element by element."""
CLASSES = ("copied", "cast", "reshaped", "derived", "resized", "mapped", "merged", "initialised", "kept")
"""What can become of a destination tensor; each is in exactly one class."""


@dataclass(frozen=True)
class FilePrint:
    """A fingerprint: size in bytes, SHA-256 of the header, and for local files the mtime in nanoseconds."""

    name: str
    size: int
    sha256: str
    mtime_ns: int | None = None


@dataclass(frozen=True)
class PlanSource:
    """An input: what it is called in messages, its path, where its state dict hangs, its fingerprint.

    ``role`` is "source", or "destination" for a checkpoint whose own values are kept. ``operations`` are what made
    its tensors into others before anything was selected, as plain data.
    """

    name: str
    path: str
    root: str
    stripped: tuple[str, ...]
    files: tuple[FilePrint, ...]
    role: str = "source"
    operations: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class PlanCompanion:
    """A small file that goes into an output folder: a copy of ``path``, else ``text``; its size in bytes and digest."""

    name: str
    size: int
    sha256: str
    path: str = ""
    text: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether its name is that of a file in the folder itself, and of none that is hidden."""
        return self.name[:1] not in ("", ".") and os.path.basename(self.name) == self.name and "\0" not in self.name


@dataclass(frozen=True)
class PlanTarget:
    """The destination: its kind, its configuration, and the files that this reads.

    A folder that is written for it has its ``companions`` too, and lacks those names of tied tensors that are
    ``implied`` there.
    """

    kind: str
    name: str
    config: str
    files: tuple[FilePrint, ...] = ()
    companions: tuple[PlanCompanion, ...] = ()
    implied: tuple[str, ...] = ()


@dataclass(frozen=True)
class Input:
    """A tensor that a step reads: of which source, under which key, with which dtype and shape."""

    source: int
    key: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """What becomes of one destination tensor.

    ``dtype`` and ``shape`` are the destination's; ``source_dtype`` and ``source_shape`` what the source has.
    ``rule`` is the option that decided, as the user wrote it; ``reason`` says why a tensor is initialised:
    missing, excluded, reinit or mismatch. ``tied_to`` names the first key of the same tensor. ``more`` are inputs
    beyond the first, ``weights`` what each counts (none: all the same). ``operation`` is the last operation that made
    the source's tensor, if one did, and ``made_of`` the keys that went into it. ``rows`` are those of a vocabulary that
    runs along ``axis``, where a tensor is mapped. ``merge`` says how inputs are merged, where it is by a method;
    inputs of other shapes are made to fit by ``policy`` (slice, overlap, vocab), with ``vocab`` by ``vocabularies``
    along ``axis``, one for each input.
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
    vocabularies: tuple[Rows, ...] = ()

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Every tensor that the step reads, none where it only draws."""
        if self.source is None:
            return ()
        return (Input(self.source, self.source_key, self.source_dtype, self.source_shape), *self.more)

    @property
    def kind(self) -> str:
        """The class of the tensor."""
        if self.op in ("init", "keep"):
            return {"init": "initialised", "keep": "kept"}[self.op]
        if self.op in MERGES:
            return "merged"
        if self.op == "map":
            return "mapped"
        if self.op != "copy":
            return "resized"
        if self.operation:
            return "derived"
        if self.source_shape != self.shape:
            return "reshaped"
        return "copied" if self.source_dtype == self.dtype else "cast"

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


def with_vocabularies(step: Step, vocabularies: Sequence[Rows]) -> Step:
    """Return a step with the rows of each of its inputs, where it goes by vocabularies; raises ValueError."""
    if step.op != "merge" or step.policy != "vocab":
        return step
    if not vocabularies:
        raise ValueError(f"{step.key!r:.80} goes by vocabularies that are not there")
    return replace(step, vocabularies=tuple(vocabularies[one.source] for one in step.inputs))


@dataclass(frozen=True)
class Equal:
    """Two keys of one source that must hold the same values, since the destination ties them."""

    source: int
    first: str
    second: str


@dataclass(frozen=True)
class Carried:
    """What of the first source goes into the output beside the tensors.

    ``root`` is the dotted path at which the state dict hangs there, ``entries`` the names of the other entries.
    """

    root: str = ""
    entries: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Everything that will happen, before it does. ``rows`` are those of the vocabulary that its steps map.

    Where models of other vocabularies are merged, ``vocabularies`` has the rows of each source. ``costs`` are what it
    takes on this machine, and no part of its digest.
    ``inputs`` holds the files open for whoever applies the plan at once; it is no part of its JSON.
    """

    verb: str
    sources: tuple[PlanSource, ...]
    target: PlanTarget
    steps: tuple[Step, ...]
    unexpected: tuple[tuple[int, str], ...] = ()
    excluded: int = 0
    equal: tuple[Equal, ...] = ()
    carried: Carried = Carried()
    rows: Rows | None = None
    vocabularies: tuple[Rows, ...] = ()
    seed: int = 0
    arguments: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    costs: Costs | None = None
    inputs: object = field(default=None, repr=False, compare=False)

    @property
    def counts(self) -> dict[str, int]:
        """How many destination tensors are in each class; the numbers sum to ``len(steps)``."""
        found = Counter(step.kind for step in self.steps)
        return {kind: found[kind] for kind in CLASSES if found[kind]}

    def summary(self) -> str:
        """Return one line: ``150 copied, 62 initialised of 212 tensors; 2 source keys not used``."""
        classes = ", ".join(f"{number} {kind}" for kind, number in self.counts.items())
        unused = f"; {count(len(self.unexpected), 'source key')} not used" if self.unexpected else ""
        return f"{classes} of {count(len(self.steps), 'tensor')}{unused}"

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain data, keys in a fixed order."""
        from .codec import plan_to_json

        return plan_to_json(self)

    def sha256(self) -> str:
        """Return the SHA-256 of the plan's JSON."""
        text = json.dumps(replace(self, costs=None).to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    @staticmethod
    def from_json(data: Any) -> Plan:
        """Return the plan that plain data spells; raises ConfigError where it is none."""
        from .codec import plan_from_json

        return plan_from_json(data)
