"""Opens a checkpoint for ``check``, even if some of its safetensors files are missing or damaged."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace

from ...analysis.check.shards import IndexFacts, ShardFacts, index_facts, read_shard
from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.find_state_dict import find_root
from ...checkpoint.opening import CheckpointLike, open_checkpoint, place_of
from ...errors import CheckpointError, FormatError, UnsafeError
from ...formats.base import limits
from ...formats.base.format_table import indexed_name, missing_shards, numbered, shards_among
from ...formats.base.header import Header
from ...storage.read.base import File, Folder
from ...storage.read.uri import open_source
from ...tensors.info import TensorInfo

__all__ = ["Opened", "open_to_check"]

INDEX, SUFFIX = ".safetensors.index.json", ".safetensors"
USUAL = ("model", "adapter_model", "diffusion_pytorch_model")
"""The usual names, without suffix, of the safetensors file of a checkpoint that has only one file."""

_AN_INDEX = re.compile(r"\.(?:safetensors|bin)\.index(?:\.\w+)?\.json$")
"""Matches the names of indexes, also of variants, such as ``model.safetensors.index.fp8.json``."""


@dataclass
class Opened:
    """An open checkpoint, and facts on its files (``shards``) and its ``index``.

    ``checkpoint`` is None if no tensor can be read. For a damaged checkpoint, ``fault`` is the error that
    ``open_checkpoint`` raised, and ``files`` are the files that were opened to read it; otherwise, ``fault`` is None. A
    damaged checkpoint is not compared with the other files in its folder.
    """

    checkpoint: Checkpoint | None
    shards: tuple[ShardFacts, ...] = ()
    index: IndexFacts | None = None
    fault: FormatError | None = None
    files: list[File] = field(default_factory=list)
    strays: tuple[str, ...] = ()
    """Files that are named like shards, beside a file with all weights that has no index."""

    def close(self) -> None:
        """Close all files."""
        if self.checkpoint is not None:
            self.checkpoint.close()
        for file in self.files:
            file.close()


def open_to_check(given: CheckpointLike, root: str | None = None) -> Opened:
    """Open a checkpoint, even if it is damaged; ``root`` is the dotted path of the state dict.

    Raises the errors of ``open_checkpoint``. A ``FormatError`` that is not an ``UnsafeError`` is raised only if no file
    of the checkpoint has a readable header.
    """
    try:
        checkpoint = open_checkpoint(given, root)
    except UnsafeError:
        raise
    except FormatError as error:
        path = place_of(given)
        found = _damaged(path, error) if path else None
        if found is None:
            raise
        return found
    index = _index_of(checkpoint)
    return Opened(checkpoint, _sound_shards(checkpoint), index, strays=() if index else _strays(checkpoint))


def _sound_shards(checkpoint: Checkpoint) -> tuple[ShardFacts, ...]:
    """Return the facts on the safetensors files of a checkpoint that was opened without an error."""
    if "safetensors" not in checkpoint.format:
        return ()
    held: dict[str, dict[str, TensorInfo]] = {}
    for key, info in checkpoint.in_files.items():
        if info.storage is not None:
            held.setdefault(info.storage.file, {})[key] = info
    files = checkpoint.open_files()
    return tuple(
        ShardFacts(file.name, file.size, file.size, tensors=held.get(name, {}))
        for name, file in files.items()
        if file.name.endswith(SUFFIX)
    )


COPY = re.compile(r"(?: ?\(\d+\)| \d+| ?-? copy(?: \d+)?)(\.[a-z]+)$", re.IGNORECASE)
"""Matches the text that programs add to the name of a copy, as in ``model (1).safetensors``, and the suffix."""


def _index_of(checkpoint: Checkpoint) -> IndexFacts | None:
    for file in checkpoint.open_files().values():
        if file.name.endswith(INDEX):
            with suppress(CheckpointError):
                return _index(file, file.folder())
    return None


def _strays(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the names of files in a checkpoint's folder that are named like shards of the checkpoint's only file.

    For example, ``model-00001-of-00002.safetensors`` is named like a shard of ``model.safetensors``. Returns () if the
    checkpoint has several files, or if an index is in the folder, because the shards then belong to the index.
    transformers loads ``model.safetensors`` and ignores the shards, but other programs may load them, and an upload
    includes them.
    """
    files = [*checkpoint.open_files().values()]
    if len(files) != 1 or checkpoint.folder is None or not files[0].name.endswith(SUFFIX):
        return ()
    name = files[0].name.removesuffix(SUFFIX)
    own = numbered(name, SUFFIX)
    with suppress(CheckpointError):
        names = checkpoint.folder.names()
        return () if f"{name}{INDEX}" in names else tuple(sorted(one for one in names if own.fullmatch(one)))
    return ()


def _index(file: File, folder: Folder) -> IndexFacts | None:
    """Return the contents of an index; None if the index cannot be parsed.

    The field ``others`` gets the files in ``folder`` that are named like the shards but are not in the index, including
    copies such as ``model-00001-of-00002 (1).safetensors``.
    """
    found = index_facts(file.name, file.read(0, file.size)) if file.size <= limits.INDEX_BYTES else None
    if found is None:
        return None
    own = numbered(indexed_name(file.name).removesuffix(SUFFIX), SUFFIX, any_case=True)
    others = tuple(name for name in folder.names() if name not in found.shards and own.fullmatch(COPY.sub(r"\1", name)))
    return replace(found, others=others, stale=dict(_stale(folder, file.name)))


def _stale(folder: Folder, name: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (index, its shards that do not exist) for the indexes in ``folder``, except the one called ``name``."""
    names = set(folder.names())
    for one in sorted(names - {name}):
        if not _AN_INDEX.search(one):
            continue
        with suppress(CheckpointError), closing(folder.file(one)) as file:
            facts = index_facts(one, file.read(0, file.size)) if file.size <= limits.INDEX_BYTES else None
            lost = tuple(shard for shard in facts.shards if shard not in names) if facts is not None else ()
            if lost:
                yield one, lost


def _damaged(path: str, error: FormatError) -> Opened | None:
    """Return the readable part of the damaged safetensors checkpoint at ``path``; None if no file can be read.

    ``error`` is the error that ``open_checkpoint`` raised.
    """
    source = open_source(path)
    folder = source.folder() if isinstance(source, File) else source
    index, names = _parts(source, folder)
    read = {name: read_shard(folder, name) for name in names}
    files = {name: file for name, (_, file) in read.items() if file is not None}
    shards = tuple(facts for facts, _ in read.values())
    tree = {key: info for facts in shards for key, info in facts.tensors.items()}
    if isinstance(source, File):
        source.close()
    if all(one.fault for one in shards):
        for file in files.values():
            file.close()
        return None
    return Opened(_lenient(path, tree, files), shards, index, error, list(files.values()))


def _lenient(path: str, tree: Mapping[str, TensorInfo], files: Mapping[str, File]) -> Checkpoint | None:
    if not tree:
        return None
    header = Header("safetensors", tree, (), files)
    root, passed = find_root(header.tree, None, path)
    return Checkpoint(path, header, root, passed)


def _parts(source: File | Folder, folder: Folder) -> tuple[IndexFacts | None, list[str]]:
    """Return the index of a safetensors checkpoint (None if there is none), and the names of its files.

    ``source`` is the file or folder that the user gave. ``folder`` is the folder of that file, or the given folder.
    """
    if isinstance(source, File) and source.name.endswith(SUFFIX):
        return None, [source.name]
    names = [source.name] if isinstance(source, File) else folder.names()
    for name in _indexes(names):
        with suppress(CheckpointError):
            file = folder.file(name)
            index = _index(file, folder)
            file.close()
            if index is not None:
                return index, list(index.shards)
    shards = sorted(name for name in shards_among(names) if name.endswith(SUFFIX))
    if shards:
        return None, sorted({*shards, *missing_shards(shards, 1000)[0]})
    single = [name for name in names if name.endswith(SUFFIX)]
    usual = [f"{name}{SUFFIX}" for name in USUAL if f"{name}{SUFFIX}" in single]
    return None, (usual or single)[:1]


def _indexes(names: list[str]) -> list[str]:
    found = [name for name in names if name.endswith(INDEX)]
    return sorted(found, key=lambda name: name != f"model{INDEX}")
