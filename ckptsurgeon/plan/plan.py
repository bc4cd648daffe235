"""A plan: for every destination tensor, where its values come from and by which rule. JSON in and out.

A plan is made from headers alone, can be reviewed and kept, and is carried out only if its inputs are still what
they were.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..notebook import InNotebooks
from ..text import count
from .costs import Costs
from .rows import Rows
from .step import CLASSES, Step

__all__ = ["Carried", "Equal", "FilePrint", "Plan", "PlanCompanion", "PlanSource", "PlanTarget"]


@dataclass(frozen=True)
class FilePrint:
    """A fingerprint: size in bytes, SHA-256 of the header, and for local files the mtime in nanoseconds.

    ``validator`` is the commit or strong ETag of a file at an address, '' where there is none.
    """

    name: str
    size: int
    sha256: str
    mtime_ns: int | None = None
    validator: str = ""


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
    ``implied`` there. ``weights`` is what its one file of tensors is called, where it is always one of that name.
    """

    kind: str
    name: str
    config: str
    files: tuple[FilePrint, ...] = ()
    companions: tuple[PlanCompanion, ...] = ()
    implied: tuple[str, ...] = ()
    weights: str = ""


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
class Plan(InNotebooks):
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
