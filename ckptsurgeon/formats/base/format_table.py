"""The table of all formats: tells by names and first bytes which files are checkpoints, and which modules read them.

A new format works without a row in the table ``MARKS``: it is then tried for every source. With a row, files of other
formats open faster. If its files have a new suffix, add it to ``SUFFIXES``, so that such files in a folder are taken
for weights.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from typing import NamedTuple, cast

from ...storage.read.base import Folder, Source
from ...util.registry import module_names, plugin
from .header import Format, Writer

__all__ = [
    "EXPORTED",
    "FOLDERS",
    "HDF5",
    "INDEX",
    "MARKS",
    "PREFERRED",
    "RANK_INDEX",
    "RELEASE",
    "SUFFIXES",
    "TRACKER",
    "Writers",
    "formats",
    "formats_for",
    "has_index",
    "has_weights",
    "indexed_name",
    "is_exported",
    "is_weights",
    "missing_shards",
    "module_of",
    "numbered",
    "rank_file",
    "shard_name",
    "shards_among",
    "shards_of",
    "tensor_rank",
    "tracked_folder",
    "writers",
]

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".npz", ".gguf")
EXPORTED = (".onnx", ".msgpack", ".pt2", ".pdparams")
HDF5 = (".h5", ".hdf5", ".keras")
"""Suffixes of files that are read only if a folder has no checkpoint with one of ``SUFFIXES``.

Such files are often exports of a checkpoint in the same folder. Files with a suffix in ``HDF5`` are read only if the
folder has no file with a suffix in ``EXPORTED`` either.
"""
PREFERRED = (
    "model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors", "adapter_model.safetensors",
    "adapter_model.bin",
)  # fmt: skip
_VARIANT = re.compile(r"^([^.]+)\.[\w-]+(\.safetensors|\.bin)$")
"""Matches the name of a variant in transformers and diffusers, such as ``model.fp16.safetensors``."""


def is_weights(name: str) -> bool:
    """Return whether a file name has the suffix of a checkpoint, such as ``.safetensors`` or ``.pth``."""
    return name.lower().endswith(SUFFIXES)


def is_exported(name: str) -> bool:
    """Return whether a file name has the suffix of an exported model, such as ``.onnx``."""
    return name.lower().endswith((*EXPORTED, *HDF5))


def has_weights(names: Sequence[str]) -> bool:
    """Return whether ``names`` include a usual name of model weights, such as ``model.safetensors``.

    The names of indexes (``model.safetensors.index.json``) and of variants (``model.fp16.safetensors``) count, too.
    """
    return any((_VARIANT.sub(r"\1\2", indexed_name(name)) or name) in PREFERRED for name in names)


# Names of shards and of their index.
#
# transformers writes five digits: ``model-00001-of-00002.safetensors``. The numbers may have any width: DeepSeek-V3 has
# ``model-00001-of-000163.safetensors``. Llama has ``consolidated.00.pth``.

INDEX = ".index.json"
_INDEX_NAME = re.compile(r"(.+)\.index(?:\.([\w-]+))?\.json", re.IGNORECASE | re.DOTALL)
"""Matches the names of indexes, also of a variant such as fp16."""
_NUMBERED = re.compile(r"(.*)[-_.]\d+[-_]of[-_](?!0*1(?!\d))\d+((?:\.[^.]*)*)", re.IGNORECASE | re.DOTALL)
"""Matches the names of shards; file 1 of 1 is not a shard, but the whole checkpoint."""
_COUNTED = re.compile(r"(.*[-_.])(\d{1,7})([-_]of[-_])(\d{1,7})((?:\.[^.]*)*)", re.IGNORECASE | re.DOTALL)
"""Matches numbered files; the second group is the number of the file, the fourth the number of all files."""
_RANK = re.compile(r"(consolidated)\.\d+(\.[a-z]+)", re.IGNORECASE)
"""Matches Llama's files: if there are several, each has the part of one rank; a single file is the whole model."""
_TENSOR_RANK = re.compile(r"model-rank-(\d{1,6})-part-\d{1,6}\.safetensors")
"""Matches the files of ranks of tensor parallelism, as ``--to tp`` and vLLM name them."""
RANK_INDEX = "ranks.json"
"""The index of the files of ranks of tensor parallelism (``formats/tensor_parallel.py``)."""
TRACKER, RELEASE = "latest_checkpointed_iteration.txt", "release"
"""The file of Megatron with the number of the last iteration, or ``release`` for a converted checkpoint."""


def shard_name(named: str) -> str:
    """Return the path of a shard without redundant parts: ``model.bin`` for ``./model.bin``.

    ``named`` is the path as an index gives it.
    """
    return "/".join(part for number, part in enumerate(named.split("/")) if part != "." and (part or not number))


def numbered(stem: str, suffix: str, *, any_case: bool = False) -> re.Pattern[str]:
    """Return a regular expression for the names of the shards of the index ``<stem><suffix>.index.json``.

    If ``any_case`` is true, the regular expression ignores the case of letters.
    """
    pattern = rf"{re.escape(stem)}-\d+-of-\d+{re.escape(suffix)}"
    return re.compile(pattern, re.IGNORECASE if any_case else 0)


def missing_shards(shards: Collection[str], most: int) -> tuple[list[str], int]:
    """Return the names of at most ``most`` missing shards, and how many shards are missing in all.

    The name ``model-00001-of-00002`` implies that there is also ``model-00002-of-00002``.
    """
    found = [match for name in shards if (match := _COUNTED.fullmatch(name))]
    have: dict[tuple[str, str, str], set[int]] = {}
    for head, number, of, total, suffix in (match.groups() for match in found):
        have.setdefault((head, of + total, suffix), set()).add(int(number))
    width = max((len(match[2]) for match in found), default=0)
    names: list[str] = []
    many = 0
    for (head, of, suffix), numbers in have.items():
        total = int(re.split(r"\D+", of)[-1])
        wanted = range(1, total + (0 not in numbers))  # numbers that begin with 0 end at the total minus 1
        many += len(wanted) - sum(number in wanted for number in numbers)
        missing = (number for number in wanted if number not in numbers)
        names += [f"{head}{number:0{width}d}{of}{suffix}" for number in islice(missing, most - len(names))]
    return names, many


def shards_of(name: str) -> int:
    """Return the number of shards in a file name: 2 for ``model-00001-of-00002.bin``.

    Returns 0 if the name has no such number, or if the number is 0 or 1.
    """
    found = _COUNTED.fullmatch(name)
    return int(found[4]) if found and int(found[4]) > 1 else 0


def tensor_rank(name: str) -> int | None:
    """Return the rank of tensor parallelism in a file name: 0 for ``model-rank-0-part-0.safetensors``.

    Returns None if the name has no rank.
    """
    found = _TENSOR_RANK.fullmatch(name)
    return int(found[1]) if found is not None else None


def rank_file(rank: int) -> str:
    """Return the name of the file that ``--to tp`` writes for a rank of tensor parallelism."""
    return f"model-rank-{rank}-part-0.safetensors"


def tracked_folder(said: str) -> str:
    """Return the subfolder that a text in ``TRACKER`` means: ``iter_0000010`` for 10; '' for a text without meaning."""
    return said if said == RELEASE else f"iter_{int(said):07d}" if re.fullmatch(r"[0-9]{1,9}", said) else ""


def shards_among(names: Sequence[str]) -> set[str]:
    """Return the names of shards among ``names``, such as ``model-00001-of-00002.safetensors``."""
    ranks = {name: found.groups() for name in names if (found := _RANK.fullmatch(name))}
    several = Counter(ranks.values())
    return {name for name in names if _NUMBERED.fullmatch(name) or (name in ranks and several[ranks[name]] > 1)}


def indexed_name(name: str) -> str:
    """Return the name that the weights of an index would have as a single file; '' if ``name`` is not an index.

    For ``model.safetensors.index.json`` this is ``model.safetensors``. For ``model.safetensors.index.fp16.json``, which
    is how transformers calls the index of a variant, it is ``model.fp16.safetensors``.
    """
    found = _INDEX_NAME.fullmatch(name)
    if found is None:
        return ""
    stem, suffix = os.path.splitext(found[1])
    return f"{stem}.{found[2]}{suffix}" if found[2] else found[1]


def has_index(shard: str, indexed: Collection[str]) -> bool:
    """Return whether there is an index for the shard named ``shard``.

    ``indexed`` has the result of ``indexed_name`` for each index of the folder, in lower case.
    """
    found = _NUMBERED.fullmatch(shard) or _RANK.fullmatch(shard)
    return found is not None and f"{found[1]}{found[2]}".lower() in indexed


# The table of formats.
#
# It only rules out modules. A module's mark fits every source that the module's ``sniff`` recognises, but may fit other
# sources, too.


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
    "torch_dcp": Mark(head=rb"\x80", names="\\.metadata|.*\\.distcp", to="dcp"),
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

    These are the formats whose magic bytes match, or else formats without magic bytes, if their marks fit. So a zip
    archive, for example, is not tried as a tar archive or as an index.
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
