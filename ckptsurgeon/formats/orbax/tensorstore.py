"""Calls the package tensorstore, which is optional: it reads databases (OCDBT) and unpacks chunks (zstd, Blosc).

tensorstore gets paths and options of ckpt alone. Its other drivers, for networks and other folders, are never named: no
metadata of a checkpoint reach it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ...errors import ConfigError, FormatError
from ...util.text import escape

__all__ = ["CODECS", "Database", "unpacked"]

_EXTRA = "pip install 'ckptsurgeon[orbax]' installs it."
"""The hint of an error about the missing package."""
_CONTEXT = {"cache_pool": {"total_bytes_limit": 0}, "file_io_concurrency": {"limit": 4}}
"""Options of tensorstore: it keeps nothing in memory, and reads few files at once."""
_NODES = _CONTEXT | {"cache_pool": {"total_bytes_limit": 256 << 20}}
"""Options for databases: nodes of the B-tree stay in memory, as each read needs them; Orbax makes nodes of 100 MB."""
_BLOSC = {"cname": "lz4", "clevel": 5, "shuffle": "noshuffle", "typesize": 1, "blocksize": 0}
"""Options that zarr 3 wants of a codec; when it unpacks, Blosc ignores them."""
CODECS: Mapping[str, Mapping[str, object]] = {
    "zstd": {"name": "zstd"},
    "blosc": {"name": "blosc", "configuration": _BLOSC},
}
"""{name of a codec: the codec as zarr 3 describes it}."""
_users: list[int] = []
"""[the process that used tensorstore first]; empty if it was not used."""


def _package() -> Any:
    """Import and return tensorstore; raises ConfigError if it is missing or cannot run in this process."""
    try:
        import tensorstore
    except ImportError as error:
        raise ConfigError(
            f"this Orbax checkpoint is read with the package tensorstore, which cannot be imported: {error}.",
            hint=_EXTRA,
        ) from error
    if not _users:
        _users.append(os.getpid())
    if _users[0] != os.getpid():  # its threads do not exist here, so that it would wait for ever
        raise ConfigError("tensorstore cannot be used in a process that was forked after it was used.")
    return tensorstore


class Database:
    """A key-value store in a folder on this machine, in the format OCDBT.

    Only single keys are read. Listing them could go on without end: a small B-tree can have the same node many times.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        package = _package()
        spec = {"driver": "ocdbt", "base": {"driver": "file", "path": os.path.join(os.path.abspath(path), "")}}
        self._store = package.KvStore.open(spec, context=package.Context(_NODES)).result()

    def read(self, key: str) -> bytes | None:
        """Return the value of a key, None if there is none; raises FormatError if the database is damaged."""
        _package()
        try:
            found = self._store.read(key.encode()).result()
        except (ValueError, OSError, RuntimeError, NotImplementedError) as error:
            raise FormatError(
                f"the OCDBT database in {escape(self._path)} is damaged: {escape(_first(error), 400)}.", rule="ocdbt"
            ) from None
        return found.value if found.state == "value" else None


def unpacked(data: bytes, codec: str, nbytes: int) -> Any:
    """Return the ``nbytes`` bytes that ``data`` unpacks to; raises FormatError if there are fewer or more.

    The bytes are a chunk of an array in memory: tensorstore stops as soon as there are more than the chunk has.
    """
    package = _package()
    grid = {"name": "regular", "configuration": {"chunk_shape": [nbytes]}}
    metadata = {
        "zarr_format": 3, "node_type": "array", "shape": [nbytes], "data_type": "uint8", "chunk_grid": grid,
        "chunk_key_encoding": {"name": "default"}, "fill_value": 0,
        "codecs": [{"name": "bytes"}, CODECS[codec]],
    }  # fmt: skip
    spec = {"driver": "zarr3", "kvstore": {"driver": "memory"}, "metadata": metadata}
    context = package.Context(_CONTEXT)
    try:
        package.KvStore.open({"driver": "memory"}, context=context).result().write("c/0", data).result()
        return package.open(spec, create=True, open=True, context=context).result().read().result()
    except (ValueError, OSError, RuntimeError) as error:
        raise FormatError(f"it cannot be unpacked: {escape(_first(error), 200)}.", rule="zarr chunk") from None


def _first(error: Exception) -> str:
    """Return the first sentence of a message of tensorstore; details on source lines follow it."""
    return str(error).partition(" [")[0].rstrip(".")
