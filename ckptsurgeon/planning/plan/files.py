"""The files of a plan: its sources, its destination and its companions, as plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...formats.base.header import FilePrint
from ...util.brief import Brief
from .compute import text, truth

__all__ = ["ADAPTER_VERBS", "DECODED", "FilePrint", "PlanCompanion", "PlanSource", "PlanTarget", "given_sources"]

ADAPTER_VERBS = ("lora extract", "lora concat", "lora convert", "lora resize")
"""The verbs whose output is an adapter."""
DECODED = " (decoded)"
"""The suffix in the name of a source whose quantised weights are decoded; the same source as stored has no suffix."""


@dataclass(frozen=True, repr=False)
class PlanSource(Brief):
    """An input of a plan: its name in messages, its path, the dotted path of its state dict (``root``), and its files.

    ``role`` is "source", "destination" for a checkpoint whose own values are kept, or "initial" for a file that has the
    initial values of some tensors. ``stripped`` are the prefixes that were removed from all keys, such as ``module``.
    ``operations`` are the operations, as plain data, that change its tensors before rules select any. If ``memory`` is
    true, the source is an object in memory: it has no path, and its digest covers keys, dtypes and shapes. ``beside``
    are further files that were read to make the plan, from the folder of the weights, with their SHA-256.
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

    def to_json(self) -> dict[str, Any]:
        """Return the object as plain data, for JSON."""
        operations = [dict(row) for row in self.operations]
        return {
            "name": self.name,
            "role": self.role,
            "path": self.path,
            "root": self.root,
            "stripped": list(self.stripped),
            **({"memory": True} if self.memory else {}),
            **({"operations": operations} if operations else {}),
            "files": [_file_json(file) for file in self.files],
            **({"beside": [_file_json(file) for file in self.beside]} if self.beside else {}),
        }

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> PlanSource:
        """Return the source that ``row`` describes; raises KeyError, TypeError, ValueError or OverflowError."""
        return PlanSource(
            text(row["name"]), text(row["path"]), text(row["root"]), tuple(map(text, row["stripped"])),
            _file_prints(row["files"]), text(row["role"]), tuple(map(dict, row.get("operations", ()))),
            truth(row.get("memory", False)), _file_prints(row.get("beside", ())),
        )  # fmt: skip


def given_sources(sources: Sequence[PlanSource]) -> list[PlanSource]:
    """Return the sources that the user gave: all but decoded copies, which come after all others."""
    names = {one.name for one in sources}
    return [one for one in sources if not (one.name.endswith(DECODED) and one.name.removesuffix(DECODED) in names)]


@dataclass(frozen=True, repr=False)
class PlanCompanion(Brief):
    """A small file that an output folder gets: its content, its size in bytes and its SHA-256.

    The file is a copy of ``path`` or, if ``path`` is empty, contains ``text``. The size and SHA-256 of a copy are
    computed when they are needed, or when the copy is made.
    """

    name: str
    size: int
    sha256: str
    path: str = ""
    text: str = ""
    read: Callable[[], tuple[int, str]] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def copy_of(cls, name: str, path: str, read: Callable[[], tuple[int, str]]) -> PlanCompanion:
        """Return the companion that copies the file ``path``; ``read`` returns the file's size and SHA-256."""
        made = object.__new__(cls)
        for field_name, value in (("name", name), ("path", path), ("text", ""), ("read", read)):
            object.__setattr__(made, field_name, value)
        return made

    @property
    def is_read(self) -> bool:
        """Whether the size and the SHA-256 are known. For a copy, this is the case once the file has been read."""
        return "sha256" in self.__dict__

    def is_found(self, size: int, sha256: str) -> None:
        """Set the size in bytes and the SHA-256 that were found when the file was read."""
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
        """Whether the name is a file name, or a folder and a file name, and neither begins with a dot."""
        parts = self.name.split("/")
        return len(parts) < 3 and all(one[:1] not in ("", ".") for one in parts) and "\0" not in self.name

    @property
    def subfolder(self) -> str:
        """The folder in the output folder that the file is in; '' if it is in the output folder itself."""
        return self.name.rpartition("/")[0]

    def to_json(self) -> dict[str, Any]:
        """Return the object as plain data, for JSON."""
        row = {"name": self.name, "size": self.size, "sha256": self.sha256}
        return row | ({"path": self.path} if self.path else {"text": self.text})

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> PlanCompanion:
        """Return the object that ``row`` describes; raises KeyError, TypeError or ValueError."""
        return PlanCompanion(
            text(row["name"]), int(row["size"]), text(row["sha256"]), text(row.get("path", "")),
            text(row.get("text", "")),
        )  # fmt: skip


@dataclass(frozen=True, repr=False)
class PlanTarget(Brief):
    """The destination of a plan: its kind, its configuration, and the files that the configuration reads.

    An output folder also gets the ``companions``: small files such as config.json. It does not store the tensors in
    ``implied``, since the library that loads the folder ties them to other tensors. ``weights`` is the name that the
    file of tensors must have, if only one name is possible. If the configuration was given another vocabulary,
    ``lists`` are the files of the old and the new token list, or only the old file if the new list was made from it.
    ``notes`` are about the companions, and are shown only if the output gets them. ``refused`` is the reason why no
    folder may be written: no config.json can describe the weights. ``overrides`` are fields of the configuration that
    get other values than the file has.
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
    refused: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the object as plain data, for JSON."""
        return {
            "kind": self.kind,
            "name": self.name,
            "config": self.config,
            "files": [_file_json(file) for file in self.files],
            **({"companions": [one.to_json() for one in self.companions]} if self.companions else {}),
            **({"implied": list(self.implied)} if self.implied else {}),
            **({"weights": self.weights} if self.weights else {}),
            **({"lists": list(self.lists)} if self.lists else {}),
            **({"notes": list(self.notes)} if self.notes else {}),
            **({"refused": self.refused} if self.refused else {}),
            **({"overrides": dict(self.overrides)} if self.overrides else {}),
        }

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> PlanTarget:
        """Return the object that ``row`` describes; raises KeyError, TypeError or ValueError."""
        return PlanTarget(
            text(row["kind"]),
            text(row["name"]),
            text(row["config"]),
            _file_prints(row["files"]),
            tuple(map(PlanCompanion.from_json, row.get("companions", ()))),
            tuple(text(key) for key in row.get("implied", ())),
            text(row.get("weights", "")),
            tuple(text(path) for path in row.get("lists", ())),
            tuple(map(text, row.get("notes", ()))),
            text(row.get("refused", "")),
            dict(row.get("overrides", {})),
        )


def _file_prints(rows: Iterable[Mapping[str, Any]]) -> tuple[FilePrint, ...]:
    return tuple(
        FilePrint(
            text(row["name"]), int(row["size"]), text(row["sha256"]), row["mtime_ns"], text(row.get("validator", ""))
        )
        for row in rows
    )


def _file_json(file: FilePrint) -> dict[str, Any]:
    row = {"name": file.name, "size": file.size, "sha256": file.sha256, "mtime_ns": file.mtime_ns}
    return {**row, **({"validator": file.validator} if file.validator else {})}
