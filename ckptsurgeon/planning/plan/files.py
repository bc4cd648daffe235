"""The files of a plan: its sources, its destination and its companions, as plain data."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...formats.base.header import FilePrint
from ...util.brief import Brief
from .compute import text, truth

__all__ = ["FilePrint", "PlanCompanion", "PlanSource", "PlanTarget"]


@dataclass(frozen=True, repr=False)
class PlanSource(Brief):
    """An input: its name in messages, its path, the root of its state dict, its fingerprint.

    ``role`` is "source", or "destination" for a checkpoint whose own values are kept. ``operations`` changed its
    tensors before anything was selected, as plain data. Tensors in ``memory`` have no path; their fingerprint covers
    keys, dtypes and shapes. ``beside`` are the files next to the weights that planning read, by name, with the SHA-256
    of their content.
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
        """Return it as plain data."""
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
        """Return the object in plain data; raises KeyError, TypeError or ValueError."""
        return PlanSource(
            text(row["name"]), text(row["path"]), text(row["root"]), tuple(map(text, row["stripped"])),
            _file_prints(row["files"]), text(row["role"]), tuple(map(dict, row.get("operations", ()))),
            truth(row.get("memory", False)), _file_prints(row.get("beside", ())),
        )  # fmt: skip


@dataclass(frozen=True, repr=False)
class PlanCompanion(Brief):
    """A small file for an output folder: a copy of ``path``, else ``text``; its size in bytes and digest.

    Size and digest of a planned copy are read on first use, or when the copy is made.
    """

    name: str
    size: int
    sha256: str
    path: str = ""
    text: str = ""
    read: Callable[[], tuple[int, str]] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def copy_of(cls, name: str, path: str, read: Callable[[], tuple[int, str]]) -> PlanCompanion:
        """Return the copy of a file; ``read`` returns its size and digest."""
        made = object.__new__(cls)
        for field_name, value in (("name", name), ("path", path), ("text", ""), ("read", read)):
            object.__setattr__(made, field_name, value)
        return made

    @property
    def is_read(self) -> bool:
        """Return whether its size and digest are known."""
        return "sha256" in self.__dict__

    def is_found(self, size: int, sha256: str) -> None:
        """Set the size and digest."""
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
        """Return whether its name is that of a visible file directly in the folder."""
        return self.name[:1] not in ("", ".") and os.path.basename(self.name) == self.name and "\0" not in self.name

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        row = {"name": self.name, "size": self.size, "sha256": self.sha256}
        return row | ({"path": self.path} if self.path else {"text": self.text})

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> PlanCompanion:
        """Return the object in plain data; raises KeyError, TypeError or ValueError."""
        return PlanCompanion(
            text(row["name"]), int(row["size"]), text(row["sha256"]), text(row.get("path", "")),
            text(row.get("text", "")),
        )  # fmt: skip


@dataclass(frozen=True, repr=False)
class PlanTarget(Brief):
    """The destination: its kind, its configuration, and the files that the configuration reads.

    A folder that is written for it also gets its ``companions``, and does not store those names of tied tensors that
    are ``implied`` there. ``weights`` is the name of its one file of tensors, if that is fixed. ``lists`` are the files
    of the old and the new token list, if the configuration was given another vocabulary. ``notes`` are the plan's notes
    on companion files; an output without them does not show these.
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

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
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
        }

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> PlanTarget:
        """Return the object in plain data; raises KeyError, TypeError or ValueError."""
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
