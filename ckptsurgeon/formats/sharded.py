"""Sharded checkpoints: an index, ``{"metadata": …, "weight_map": {key: file}}``, and the files it names.

The convention of transformers and huggingface_hub (``model.safetensors.index.json``,
``pytorch_model.bin.index.json``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ..errors import FormatError, SourceError
from ..sources import File, Folder, Source
from ..tensors import TensorInfo
from ..text import escape, listing
from . import _limits as limits
from ._header import FileHeader, Header
from ._open import read_header
from ._sharded_writer import folder_frame, folder_recipe

__all__ = ["FORMAT"]


class _Sharded:
    name = "sharded"

    def sniff(self, source: Source, head: bytes) -> bool:
        """A JSON object in a file named as an index."""
        return isinstance(source, File) and source.name.endswith(".json") and head.lstrip()[:1] == b"{"

    def read(self, source: Source, name: str = "") -> Header:
        """Read the index and the header of every shard; raises FormatError where they disagree."""
        assert isinstance(source, File)
        raw, weight_map, metadata = _index(source)
        folder = source.folder()
        tree: dict[str, Any] = {}
        files = [FileHeader(source.name, source.size, hashlib.sha256(raw).hexdigest(), source.mtime_ns)]
        handles: dict[str, File] = {source.name: source}
        shards: dict[str, Header] = {}
        for shard in dict.fromkeys(weight_map.values()):
            header = _shard(source, folder, shard)
            _check_keys(source, shard, weight_map, header.tree)
            shards[shard] = header
            tree.update(header.tree)
            files.extend(header.files)
            handles.update(header.handles)
        kinds = sorted({header.format for header in shards.values()})
        for header in shards.values():
            metadata.update(header.metadata)
        return Header(
            format=f"sharded {' and '.join(kinds) or 'and empty'}",
            tree={key: tree[key] for key in weight_map},
            files=tuple(files),
            handles=handles,
            metadata=metadata,
            recipe=folder_recipe(folder),
            frame=lambda: _frame(folder, {source.name: hashlib.sha256(raw).hexdigest()}, shards),
        )


def _index(file: File) -> tuple[bytes, dict[str, str], dict[str, str]]:
    if file.size > limits.INDEX_BYTES:
        raise FormatError(f"{escape(file.uri)} is too large for an index.", rule="index size")
    raw = file.read(0, file.size)
    try:
        index = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{escape(file.uri)} is no JSON: {type(error).__name__}.", rule="index") from None
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict):
        raise FormatError(f"{escape(file.uri)} is not a checkpoint: it has no weight_map.", rule="index")
    for key, shard in weight_map.items():
        if not isinstance(shard, str) or not shard:
            raise FormatError(f"{escape(file.uri)} names no file for {escape(key)}.", rule="index")
    extra = index.get("metadata")
    texts = extra.items() if isinstance(extra, dict) else ()
    return raw, weight_map, {str(k): v for k, v in texts if isinstance(v, str)}


def _shard(index: File, folder: Folder, shard: str) -> Header:
    try:
        file = folder.file(shard)
    except SourceError as error:
        raise FormatError(
            f"{escape(index.uri)} names the shard {escape(shard)}, which {str(error).partition(' ')[2]}",
            rule="missing shard",
        ) from error
    if shard.endswith(".json"):
        raise FormatError(f"{escape(index.uri)} names {escape(shard)}, which is no shard.", rule="index")
    header = read_header(file, shard)
    if not isinstance(header.tree, Mapping) or not all(
        isinstance(key, str) and isinstance(info, TensorInfo) for key, info in header.tree.items()
    ):
        raise FormatError(f"the shard {escape(shard)} holds more than tensors.", rule="shard contents")
    return header


def _check_keys(index: File, shard: str, weight_map: Mapping[str, str], tree: Mapping[str, Any]) -> None:
    wanted = {key for key, name in weight_map.items() if name == shard}
    for keys, how in ((wanted - tree.keys(), "lacks"), (tree.keys() - wanted, "has besides")):
        if keys:
            raise FormatError(
                f"{escape(index.uri)} and its shard {escape(shard)} disagree: the shard {how} {listing(sorted(keys))}.",
                details=sorted(keys),
                rule="shard keys",
            )


def _frame(folder: Folder, digests: dict[str, str], shards: Mapping[str, Header]) -> str:
    return folder_frame(folder, {**digests, **{name: header.frame() for name, header in shards.items()}})


FORMAT = _Sharded()
