"""A plan: for every destination tensor, where its values come from and by which rule. JSON in and out.

A plan is made from headers alone, can be reviewed and kept, and is carried out only if its inputs are still what
they were.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ...util.brief import Brief
from ...util.notebook import InNotebooks
from ...util.text import count, listing
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


@dataclass(frozen=True, repr=False)
class PlanSource(Brief):
    """An input: what it is called in messages, its path, where its state dict hangs, its fingerprint.

    ``role`` is "source", or "destination" for a checkpoint whose own values are kept. ``operations`` are what made
    its tensors into others before anything was selected, as plain data. Of tensors in ``memory`` there is no path, and
    the fingerprint is of their keys, dtypes and shapes. ``beside`` are the files beside the weights that planning read,
    by their names there, with the SHA-256 of all that is in them.
    """

    name: str
    path: str
    root: str
    stripped: tuple[str, ...]
    files: tuple[FilePrint, ...]
    role: str = "source"
    operations: tuple[Mapping[str, Any], ...] = ()
    memory: bool = False
    beside: tuple[FilePrint, ...] = ()


@dataclass(frozen=True, repr=False)
class PlanCompanion(Brief):
    """A small file that goes into an output folder: a copy of ``path``, else ``text``; its size in bytes and digest.

    Of a copy that is planned, these are found when somebody asks for them, or when it is made.
    """

    name: str
    size: int
    sha256: str
    path: str = ""
    text: str = ""
    read: Callable[[], tuple[int, str]] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def copy_of(cls, name: str, path: str, read: Callable[[], tuple[int, str]]) -> PlanCompanion:
        """Return the copy of a file whose size and digest ``read`` finds."""
        made = object.__new__(cls)
        for field_name, value in (("name", name), ("path", path), ("text", ""), ("read", read)):
            object.__setattr__(made, field_name, value)
        return made

    @property
    def is_read(self) -> bool:
        """Whether its size and digest are known."""
        return "sha256" in self.__dict__

    def is_found(self, size: int, sha256: str) -> None:
        """Take the size and digest of what was read."""
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "sha256", sha256)

    def __getattr__(self, name: str) -> Any:
        read = self.__dict__.get("read")
        if name not in ("size", "sha256") or read is None:
            raise AttributeError(name)
        self.is_found(*read())
        return self.__dict__[name]

    @property
    def is_plain(self) -> bool:
        """Whether its name is that of a file in the folder itself, and of none that is hidden."""
        return self.name[:1] not in ("", ".") and os.path.basename(self.name) == self.name and "\0" not in self.name


@dataclass(frozen=True, repr=False)
class PlanTarget(Brief):
    """The destination: its kind, its configuration, and the files that this reads.

    A folder that is written for it has its ``companions`` too, and lacks those names of tied tensors that are
    ``implied`` there. ``weights`` is what its one file of tensors is called, where it is always one of that name.
    ``lists`` are the files of the old and the new token list, if the configuration was given another vocabulary.
    ``notes`` are those of the plan that are on files beside the weights, and not said of an output without them.
    """

    kind: str
    name: str
    config: str
    files: tuple[FilePrint, ...] = ()
    companions: tuple[PlanCompanion, ...] = ()
    implied: tuple[str, ...] = ()
    weights: str = ""
    lists: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Equal:
    """Two keys of one source that must hold the same values, since the destination ties them."""

    source: int
    first: str
    second: str


@dataclass(frozen=True, repr=False)
class Carried(Brief):
    """What of the first source goes into the output beside the tensors.

    ``root`` is the dotted path at which the state dict hangs there, ``entries`` the names of the other entries.
    """

    root: str = ""
    entries: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        names = [source.name for source in self.sources if source.role == "source"]
        return f"<Plan {self.verb} of {listing(names, 3, where='') or 'nothing'}: {self.summary()}>"

    @property
    def counts(self) -> dict[str, int]:
        """How many destination tensors are in each class; the numbers sum to ``len(steps)``."""
        return dict(self._counted)

    @cached_property
    def _counted(self) -> dict[str, int]:
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
        from .step_codec import step_texts

        data = replace(self, costs=None, steps=()).to_json() | {"counts": self.counts}
        dumps = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
        before = dumps({key: value for key, value in data.items() if key < "steps"})
        after = dumps({key: value for key, value in data.items() if key > "steps"})
        digest, comma = hashlib.sha256(f'{before[:-1]},"steps":['.encode()), ""
        for text in step_texts(self.steps, [source.name for source in self.sources]):
            digest.update(f"{comma}{text}".encode())
            comma = ","
        digest.update(f"],{after[1:]}".encode())
        return digest.hexdigest()

    @staticmethod
    def from_json(data: Any) -> Plan:
        """Return the plan that plain data spells; raises ConfigError where it is none."""
        from .codec import plan_from_json

        return plan_from_json(data)
