"""Chooses, by a table, the modules of formats that may read a source; other modules need not be imported.

The table only rules out modules. A module's mark fits every source that the module's ``sniff`` recognises, but may fit
other sources, too. A module without a row in the table is tried for every source. So a new format works without a row;
with a row, files of other formats open faster.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import NamedTuple, cast

from ...storage.read.base import Folder, Source
from ...util.registry import module_names, plugin
from .header import Format, Writer

__all__ = ["FOLDERS", "MARKS", "Writers", "formats", "formats_for", "module_of", "writers"]


class Mark(NamedTuple):
    """A row of the table: facts about a format that are known without importing the format's module.

    ``magic`` is the attribute ``magic`` of the format. ``head`` is a pattern that the beginning of files matches; if it
    is None, the format has magic bytes, or reads no files. ``names`` is a pattern of a file's name in folders, or of a
    subfolder's name and "/"; "" if the format reads no folders. ``to`` and ``suffixes`` are the name and the suffixes
    of the format's writer; "" and () if the format cannot be written. ``not_first`` are ends of names that the first
    record of a zip archive of this format never has.
    """

    magic: tuple[bytes, ...] = ()
    head: bytes | None = None
    names: str = ""
    to: str = ""
    suffixes: tuple[str, ...] = ()
    not_first: tuple[bytes, ...] = ()


_ZIP = b"PK\3\4"
_ANY = ".*"
MARKS: Mapping[str, Mark] = {
    "ctranslate2": Mark(head=rb"[\x02-\xff]\0\0\0"),
    "deepspeed_universal": Mark(names="latest_universal|zero/"),
    "deepspeed_zero": Mark(names="latest|.*_model_states\\.pt"),
    "diffusers_pipeline": Mark(names="model_index\\.json", to="diffusers"),
    "flax": Mark(head=rb"[\x81-\x8f\xde\xdf]", to="flax", suffixes=(".msgpack",)),
    "fsdp_ranks": Mark(names=".*rank_?\\d+\\.(?:pt|pth|bin)", to="fsdp"),
    "gguf": Mark((b"GGUF",), to="gguf", suffixes=(".gguf",)),
    "hdf5": Mark(head=rb"\x89HDF|\0*\Z", to="hdf5", suffixes=(".h5", ".hdf5")),
    "megatron": Mark(names="latest_checkpointed_iteration\\.txt|mp_rank_.*/"),
    "meta_ranks": Mark(names="consolidated\\..*"),
    "numpy_array": Mark((b"\x93NUMPY",)),
    "numpy_zip": Mark((_ZIP,), head=rb".*\.npy", to="npz", suffixes=(".npz",)),
    "onnx": Mark(head=rb"\x08"),
    "orbax": Mark(names=_ANY),
    "pickled_arrays": Mark(head=rb"\x80|\(|c|[\]}]q"),
    "pt2": Mark((_ZIP,), not_first=(b"data.pkl", b".npy")),
    "safetensors": Mark(head=rb".{8}\{", to="safetensors", suffixes=(".safetensors",)),
    "sharded": Mark(head=rb"\s*\{"),
    "speechbrain": Mark(names="CKPT\\.yaml|CKPT\\+.*/"),
    "tensor_parallel": Mark(names="ranks\\.json", to="tp"),
    # TensorFlow's mark is at the end of a file.
    "tensorflow": Mark(head=b"", names=".*\\.index|checkpoint|best_dev_checkpoint", to="tensorflow"),
    "torch_dcp": Mark(head=rb"\x80", names="\\.metadata", to="dcp"),
    "torch_legacy": Mark(head=rb".{0,22}l\xfc\x9cF\xf9|L\d"),
    "torch_tar": Mark(head=rb".{257}ustar"),
    "torch_zip": Mark((_ZIP, b"PK\5\6"), to="pth", suffixes=(".pth", ".pt", ".bin", ".ckpt")),
    "whisper_cpp": Mark((b"lmgg", b"ggml")),
}  # fmt: skip
FOLDERS = ("ckptsurgeon.formats", "ckptsurgeon.formats.exported")
"""The packages that contain the modules of the formats."""
_LAST = "pickled_arrays"
"""The reader of pickles is tried last, since files of some other formats are pickles, too."""


@cache
def _modules() -> dict[str, str]:
    """Return {name of a module that may have a format: its package}, in the order in which the formats are tried."""
    found = {name: folder for folder in FOLDERS for name in module_names(folder, with_packages=False)}
    return {name: found[name] for name in sorted(found, key=lambda name: (name == _LAST, name))}


def module_of(name: str) -> Format | None:
    """Import a module and return its format; None if it has none."""
    return cast("Format | None", plugin(_modules()[name], name, "FORMAT"))


def formats() -> list[Format]:
    """Return all formats, in the order in which they are tried: the first format that recognises a file reads it."""
    return [one for one in map(module_of, _modules()) if one is not None]


def formats_for(source: Source, head: bytes = b"") -> Iterator[Format]:
    """Yield the formats to try for a file that begins with ``head``, or for a folder.

    These are the formats whose magic bytes match, or else formats without magic bytes. So a zip archive, for example,
    is not tried as a tar archive or as an index.
    """
    fitting = [name for name in _modules() if head.startswith(_magic(name))]
    names = fitting or [name for name in _modules() if not _magic(name)]
    inside = (*source.names(), *(f"{name}/" for name in source.folders())) if isinstance(source, Folder) else None
    for name in names:
        mark = MARKS.get(name)
        if mark is None or (_begins(mark, head) if inside is None else _holds(mark, inside)):
            found = module_of(name)
            if found is not None:
                yield found


def _magic(name: str) -> tuple[bytes, ...]:
    if name in MARKS:
        return MARKS[name].magic
    found = module_of(name)
    return found.magic if found is not None else ()


def _begins(mark: Mark, head: bytes) -> bool:
    if mark.not_first and head[30 : 30 + int.from_bytes(head[26:28], "little")].endswith(mark.not_first):
        return False
    return bool(mark.magic) if mark.head is None else re.match(mark.head, head, re.DOTALL) is not None


def _holds(mark: Mark, inside: tuple[str, ...]) -> bool:
    if mark.names in ("", _ANY):
        return bool(mark.names)
    return any(map(re.compile(mark.names, re.DOTALL).fullmatch, inside))


class Writers(Mapping[str, Writer]):
    """The writers by their names in ``--to``; a writer is imported when it is asked for.

    ``suffixes`` maps each name to the suffixes of single files, () if the format is always a folder.
    """

    def __init__(self) -> None:
        self._modules: dict[str, str] = {}
        self.suffixes: dict[str, tuple[str, ...]] = {}
        for name in _modules():
            mark = MARKS.get(name)
            writer = getattr(module_of(name), "writer", None) if mark is None else None
            to, suffixes = (writer.name, writer.suffixes) if writer is not None else (mark or Mark())[3:5]
            if to:
                self._modules[to], self.suffixes[to] = name, suffixes

    def __getitem__(self, to: str) -> Writer:
        return cast("Writer", getattr(module_of(self._modules[to]), "writer"))  # noqa: B009 - only some formats have it

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def named_by(self, suffix: str) -> str:
        """Return the name of the format whose files have a suffix; '' if there is none."""
        return next((to for to, suffixes in self.suffixes.items() if suffix in suffixes), "")


@cache
def writers() -> Writers:
    """Return the Writer of each format that can be written, by its name in the option ``--to``."""
    return Writers()
