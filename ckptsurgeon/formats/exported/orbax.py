"""Reads the checkpoints of Orbax (JAX, Flax): folders of zarr arrays, which are usually in a database (OCDBT).

https://orbax.readthedocs.io/en/latest/guides/checkpoint/checkpoint_format.html and
https://google.github.io/tensorstore/kvstore/ocdbt/index.html. ``_METADATA`` lists the values. Arrays have the keys that
Flax's msgpack files give them. The packages zstandard and blosc unpack nodes and chunks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ...errors import FormatError
from ...storage.read.base import Folder, Source
from ...util.text import escape
from ..base.header import Header
from ..base.sharded_writer import folder_digest
from ._flax_keys import dotted_parts

if TYPE_CHECKING:
    from ..orbax.files import StoredFile

__all__ = ["FORMAT"]


class _Orbax:
    name = "orbax"
    magic: tuple[bytes, ...] = ()

    def sniff(self, source: Source, head: bytes) -> bool:
        """Return whether a folder has the files of Orbax, or has subfolders for steps that have these files."""
        if not isinstance(source, Folder):
            return False
        from ..orbax.items import is_checkpoint  # eight modules, which other formats do not need

        return is_checkpoint(source)

    def read(self, source: Source, name: str = "") -> Header:
        """Return the header; raises FormatError or UnsafeError if the checkpoint is not valid.

        Raises ConfigError if the nodes of a database are compressed, and zstandard is missing.
        """
        from ..orbax.arrays import ArrayReader
        from ..orbax.files import files_of, local, prints_of
        from ..orbax.items import find_items

        assert isinstance(source, Folder)
        place = find_items(local(source))
        files = files_of(place.folder)
        reader = ArrayReader(place.folder.uri, sum(one.size for one in files.values()))
        trees = {}
        for item in place.items:
            folder = place.folder.inside(item) if item else place.folder
            trees[item] = dotted_parts(reader.tree(folder, _within(files, f"{item}/" if item else "")))
        if not reader.number:
            raise FormatError(f"{escape(source.uri)} is a checkpoint of Orbax without arrays.", rule="no state dict")
        prints = prints_of(place.folder, files)
        return Header(
            format=self.name,
            tree=next(iter(trees.values())) if len(trees) == 1 else trees,
            files=prints,
            handles=reader.handles(),
            metadata=reader.metadata,
            notes=(*place.notes, *reader.notes()),
            frame=lambda: folder_digest({one.name: one.sha256 for one in prints}),
        )


def _within(files: Mapping[str, StoredFile], prefix: str) -> dict[str, StoredFile]:
    """Return the files whose paths begin with ``prefix``, by their paths without ``prefix``."""
    return {name.removeprefix(prefix): one for name, one in files.items() if name.startswith(prefix)}


FORMAT = _Orbax()
