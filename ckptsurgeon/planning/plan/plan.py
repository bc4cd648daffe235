"""A plan: where the values of every destination tensor come from, and which rule decided; to and from JSON.

A plan is made from headers alone. It can be reviewed and stored, and is applied only if its inputs have not changed.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias, TypeVar

from ...errors import ConfigError
from ...util.notebook import InNotebooks
from ...util.notes import serious_places, with_serious
from ...util.short_repr import Brief
from ...util.text import count, listing
from .check import Costs, check_plan
from .compute import text
from .files import PlanSource, PlanTarget, given_sources
from .rows import VocabularyRows, rows_of_each
from .step import CLASSES, Step, read_step, step_json, step_texts

__all__ = ["TWICE", "CarriedEntries", "EqualKeys", "ParameterGroup", "Plan"]

T = TypeVar("T")

VERSION = 1
ParameterGroup: TypeAlias = Mapping[str, tuple[str | int, ...]]
"""Entries of a group of an optimizer's parameters: their numbers or names (``params``), and ``param_names``."""

TWICE = "-stored-twice"
"""Added to the keys of copies of tied tensors that are only compared, with the values that the source stores."""


@dataclass(frozen=True)
class EqualKeys:
    """Two keys of one source that must have the same values, since the destination ties them."""

    source: int
    first: str
    second: str

    @property
    def names(self) -> tuple[str, str]:
        """The two keys as messages show them, without a suffix that only plans use."""
        return self.first.removesuffix(TWICE), self.second.removesuffix(TWICE)


@dataclass(frozen=True, repr=False)
class CarriedEntries(Brief):
    """The entries of the first source, other than its state dict, that are copied to the output.

    ``root`` is the dotted path of the state dict in the source, ``entries`` are the names of the entries. If the source
    is the state of an optimizer, so is the output. Then ``groups`` has, for each parameter group, the entries
    (``params``, and perhaps ``param_names``) that replace the same entries of the source's group.
    """

    root: str = ""
    entries: tuple[str, ...] = ()
    groups: tuple[ParameterGroup, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the entries as plain data."""
        groups = {"groups": [{name: list(one) for name, one in group.items()} for group in self.groups]}
        return {"root": self.root, "entries": list(self.entries), **(groups if self.groups else {})}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> CarriedEntries:
        """Return the entries that JSON data describes; raises the errors of ``from_json`` of a plan for other data."""
        if any("params" not in one for one in data.get("groups", ())):
            raise KeyError("params")
        groups = tuple({text(k): tuple(map(_id, v)) for k, v in one.items()} for one in data.get("groups", ()))
        return CarriedEntries(text(data.get("root", "")), tuple(map(text, data.get("entries", ()))), groups)


@dataclass(frozen=True, repr=False)
class Plan(InNotebooks):
    """All that will be done to make an output: a step for each tensor, made from headers before a value is read.

    If the destination has another vocabulary, ``rows`` says which source row each destination row gets. If models with
    different vocabularies are merged, ``vocabularies`` says this for each source. ``unexpected`` are the source keys
    that are not used, each with the index of its source. ``excluded`` is the number of keys that options left out.
    ``equal`` are pairs of keys whose values must be the same. ``costs`` depend on this machine, so they are not part of
    the SHA-256. ``inputs`` keeps the files open if the plan is applied at once; it is not part of the JSON.
    """

    verb: str
    sources: tuple[PlanSource, ...]
    target: PlanTarget
    steps: tuple[Step, ...]
    unexpected: tuple[tuple[int, str], ...] = ()
    excluded: int = 0
    equal: tuple[EqualKeys, ...] = ()
    carried: CarriedEntries = CarriedEntries()
    rows: VocabularyRows | None = None
    vocabularies: tuple[VocabularyRows, ...] = ()
    seed: int = 0
    arguments: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    costs: Costs | None = None
    inputs: object = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        names = [source.name for source in given_sources(self.sources) if source.role == "source"]
        return f"<Plan {self.verb} of {listing(names, 3, where='') or 'nothing'}: {self.summary()}>"

    @property
    def counts(self) -> dict[str, int]:
        """The number of destination tensors in each class (copied, initialised, ...); the sum is ``len(steps)``."""
        return dict(self._counted)

    @cached_property
    def _counted(self) -> dict[str, int]:
        found = Counter(step.kind for step in self.steps)
        return {kind: found[kind] for kind in CLASSES if found[kind]}

    def summary(self) -> str:
        """Return one line: ``150 copied, 62 initialised of 212 tensors; 2 source keys not used``."""
        classes = ", ".join(f"{number} {kind}" for kind, number in self.counts.items())
        unused = f"; {count(len(self.unexpected), 'source key')} not used" if self.unexpected else ""
        absent = f"; not in the source: {listing(self.absent, 3, where='')}" if self.absent else ""
        return f"{classes} of {count(len(self.steps), 'tensor')}{unused}{absent}"

    @property
    def absent(self) -> tuple[str, ...]:
        """The keys of a live module whose values stay, since no source has them; only the first of tied keys."""
        if self.target.kind != "module":
            return ()
        missing = (step for step in self.steps if step.reason == "missing" and step.op == "keep")
        return tuple(step.key for step in missing if not step.tied_to)

    def keeper(self, opened: Sequence[T]) -> T | None:
        """Return the destination if it is one of ``opened``, the open sources; None if it is not a checkpoint.

        Tensors that no source contains keep their values from this checkpoint.
        """
        pairs = zip(self.sources, opened, strict=False)  # a live module is a source without a checkpoint
        return next((one for source, one in pairs if source.role == "destination"), None)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain data, keys in a fixed order."""
        names = [source.name for source in self.sources]
        return {
            "kind": "ckpt.plan",
            "version": VERSION,
            "verb": self.verb,
            "seed": self.seed,
            "arguments": dict(self.arguments),
            "sources": [source.to_json() for source in self.sources],
            "target": self.target.to_json(),
            "steps": [step_json(step, names) for step in self.steps],
            "unexpected": [{"source": names[i], "key": key} for i, key in self.unexpected],
            "excluded": self.excluded,
            "equal": [{"source": names[e.source], "first": e.first, "second": e.second} for e in self.equal],
            **({"vocabulary": self.rows.to_json()} if self.rows is not None else {}),
            **({"vocabularies": [rows.to_json() for rows in self.vocabularies]} if self.vocabularies else {}),
            "carried": self.carried.to_json(),
            "counts": self.counts,
            **({"costs": self.costs.to_json()} if self.costs is not None else {}),
            "metadata": dict(self.metadata),
            "notes": list(self.notes),
            **({"serious_notes": serious_places(self.notes)} if self.notes else {}),
        }

    def sha256(self) -> str:
        """Return the SHA-256 of the plan's JSON."""
        return self._digests[0]

    def sha256_without_notes(self) -> str:
        """Return the SHA-256 of the plan's JSON without its notes: they may depend on further files of the sources."""
        return self._digests[1]

    @cached_property
    def _digests(self) -> tuple[str, str]:
        """The SHA-256 with notes and without; both in one pass, since there may be hundreds of thousands of steps."""
        data = replace(self, costs=None, steps=()).to_json() | {"counts": self.counts}
        data.pop("serious_notes", None)  # the plan is the same without them
        target = {key: value for key, value in data["target"].items() if key != "notes"}
        ends = [_around_steps(one) for one in (data, data | {"notes": [], "target": target})]
        digests, comma = [hashlib.sha256(before.encode()) for before, _ in ends], ""
        for written in step_texts(self.steps, [source.name for source in self.sources]):
            text = f"{comma}{written}".encode()
            for digest in digests:
                digest.update(text)
            comma = ","
        for digest, (_, after) in zip(digests, ends, strict=True):
            digest.update(after.encode())
        return digests[0].hexdigest(), digests[1].hexdigest()

    @staticmethod
    def from_json(data: Any) -> Plan:
        """Return the plan that JSON data describes; raises ConfigError if the data is not a valid plan."""
        if not isinstance(data, dict) or data.get("kind") != "ckpt.plan":
            raise ConfigError(
                "the data is not a plan.", hint="Make a plan with -n --json, as in ckpt transplant … -n --json."
            )
        if data.get("version") != VERSION or isinstance(data["version"], bool):
            raise ConfigError(
                f"the plan has version {data.get('version')!r}; this program reads version {VERSION}.",
                hint="Make a new plan.",
            )
        try:
            plan = _read_plan(data)
            check_plan(plan, data)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise ConfigError(f"the plan cannot be read: {_reason(error)}.", hint="Make a new plan.") from error
        return plan


def _reason(error: Exception) -> str:
    """Return the fault of a plan's JSON: the missing field or source, else the exception's message."""
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _read_notes(data: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the notes of a plan's JSON; raises ValueError if its list of serious notes is not valid.

    If the JSON has no such list, as in earlier versions, all notes are serious.
    """
    notes = list(map(text, data["notes"]))
    places = data.get("serious_notes", [*range(len(notes))])
    is_valid = isinstance(places, list) and all(type(one) is int and 0 <= one < len(notes) for one in places)
    if not is_valid:
        raise ValueError(
            f"the field serious_notes is {places!r:.60}, not a list of indices of its {count(len(notes), 'note')}"
        )
    return tuple(with_serious(notes, places))


def _read_plan(data: Mapping[str, Any]) -> Plan:
    sources = tuple(map(PlanSource.from_json, data["sources"]))
    index = {source.name: i for i, source in enumerate(sources)}
    rows = VocabularyRows.from_json(data.get("vocabulary"))
    vocabularies = rows_of_each(data, len(sources))
    return Plan(
        verb=text(data["verb"]),
        sources=sources,
        target=PlanTarget.from_json(data["target"]),
        steps=tuple(read_step(step, index, rows, vocabularies) for step in data["steps"]),
        unexpected=tuple((index[row["source"]], text(row["key"])) for row in data["unexpected"]),
        excluded=int(data["excluded"]),
        equal=tuple(EqualKeys(index[e["source"]], text(e["first"]), text(e["second"])) for e in data["equal"]),
        carried=CarriedEntries.from_json(data.get("carried") or {}),
        rows=rows,
        vocabularies=vocabularies,
        seed=int(data["seed"]),
        arguments=dict(data["arguments"]),
        metadata={text(k): text(v) for k, v in data["metadata"].items()},
        notes=_read_notes(data),
        costs=Costs.from_json(data.get("costs")),
    )


def _id(value: Any) -> str | int:
    return value if type(value) is int else text(value)


def _around_steps(data: Mapping[str, Any]) -> tuple[str, str]:
    """Return the JSON text of a plan before its steps, and the text after them."""
    dumps = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
    before = dumps({key: value for key, value in data.items() if key < "steps"})
    after = dumps({key: value for key, value in data.items() if key > "steps"})
    return f'{before[:-1]},"steps":[', f"],{after[1:]}"
