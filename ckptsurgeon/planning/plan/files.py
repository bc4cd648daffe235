"""The sources of a plan, their tensors, its destination and its companions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ...formats.base.header import FilePrint
from ...tensors.composition import is_decoded
from ...tensors.info import TensorInfo
from ...tensors.quantised.encoding import NO_CODES, QuantisedTensor, QuantisedTensors
from ...util.short_repr import Brief
from .compute import text, truth

__all__ = [
    "ADAPTER_VERBS",
    "DECODED",
    "Derivation",
    "FilePrint",
    "PlanCompanion",
    "PlanSource",
    "PlanTarget",
    "SourceView",
    "TensorOrigin",
    "given_sources",
    "is_under",
    "operation_fields",
    "renamed_by_spec",
]

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

    @property
    def in_commands(self) -> str:
        """The path, as commands in hints name it; the name if the source is an object in memory."""
        return self.path or self.name

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


# The tensors of the sources, as planners read them.


@dataclass(frozen=True)
class Derivation:
    """How operations made a tensor.

    ``operation`` is the text of the last operation. ``of`` are the keys of the source's tensors that it was made from.
    ``depth`` is the number of operations that were applied one after the other to make it.
    """

    operation: str
    of: tuple[str, ...]
    depth: int


@dataclass(frozen=True, repr=False)
class SourceView(Brief):
    """A source of a plan: the headers of its tensors, and the settings that the user gave for it.

    The user may give a source in ESPnet's form: PATH:src_key:dst_key:exclude_keys. ``src`` and ``dst`` are the src_key
    and the dst_key, ``prefixes`` the exclude_keys. ``made`` maps keys of tensors to the operations that made them.
    ``known`` maps older or foreign keys to the destination's keys; ``known_by`` says whose keys they are. ``codes`` are
    the quantised tensors. ``decoded_dtype`` is the dtype in which decoded weights are written if no option sets another
    dtype.
    """

    source: PlanSource
    tensors: Mapping[str, TensorInfo]
    src: str = ""
    dst: str = ""
    prefixes: tuple[str, ...] = ()
    made: Mapping[str, Derivation] = field(default_factory=dict)
    known: Mapping[str, str] = field(default_factory=dict)
    known_by: str = ""
    codes: QuantisedTensors = NO_CODES
    decoded_dtype: str = ""

    @property
    def names(self) -> list[str]:
        """All keys, then the names of quantised tensors, under which nothing is stored: their parts have other keys."""
        return [*self.tensors, *(one.name for one in self.codes.tensors if one.name not in self.tensors)]

    def dtype_of(self, key: str) -> str:
        """Return the dtype in which a tensor is written if no option sets another dtype."""
        info = self.tensors[key]
        return self.decoded_dtype if self.decoded_dtype and is_decoded(info) else info.dtype


class TensorOrigin(NamedTuple):
    """The origin of a tensor: the index of its source, its key there, and the rule that renamed it.

    ``made`` says which operations made it; None without operations. ``coded`` is the quantised tensor that it is a part
    of, None for a plain tensor. ``dtype`` is the dtype in which it is written if no option sets another dtype.
    """

    source: int
    key: str
    info: TensorInfo
    rule: str = ""
    made: Derivation | None = None
    coded: QuantisedTensor | None = None
    dtype: str = ""

    @property
    def is_description(self) -> bool:
        """Whether the tensor is a ``quant_state`` of bitsandbytes: a text of any length that describes codes."""
        parts = self.coded.parts if self.coded is not None else {}
        return any(key == self.key and end.startswith(".quant_state.") for end, key in parts.items())


def operation_fields(origin: TensorOrigin) -> dict[str, Any]:
    """Return the fields of a step that name the operations that made the source's tensor; {} without operations."""
    return {} if origin.made is None else {"operation": origin.made.operation, "made_of": origin.made.of}


def is_under(key: str, module: str) -> bool:
    """Return whether a key is in a module, or is the name of the module itself; '' contains every key."""
    return not module or key == module or key.startswith(f"{module}.")


def renamed_by_spec(key: str, src: str, dst: str) -> str:
    """Return a key with the module ``src`` renamed to ``dst``; keys outside ``src`` are returned unchanged.

    Without ``src``, ``dst`` is put before the key; without ``dst``, ``src`` is removed.
    """
    if not (src or dst) or not is_under(key, src):
        return key
    rest = key[len(src) :].lstrip(".") if src else key
    return f"{dst}.{rest}".strip(".") if dst else rest or key


# The destination, and small files of an output folder.


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
