"""Reads HDF5 files: the weights of Keras (``.h5``, ``.weights.h5``), and any datasets of numbers; also writes HDF5.

HDF5 File Format Specification 3.0, https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html. A key is the
path of a dataset, such as ``layers/dense/vars/0``. If the values of a dataset are contiguous in the file, they are read
there. If they are in chunks, the chunks are joined when the values are needed. Links to other files are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...storage.read.base import File, Source
from ..base.header import UNSEALED, FilePrint, Header, digest_outside, naming, seal_of
from ..hdf5.superblock import superblock_at
from ..hdf5.writer import Hdf5Writer

if TYPE_CHECKING:
    from ..hdf5.content import HdfContent

__all__ = ["FORMAT"]


class _Hdf5:
    name = "hdf5"
    magic: tuple[bytes, ...] = ()
    writer = Hdf5Writer()

    def sniff(self, source: Source, head: bytes) -> bool:
        """Return whether the file begins with the signature of HDF5, or has it after a user block of zeros."""
        return isinstance(source, File) and superblock_at(source, head) >= 0

    def read(self, source: Source, name: str = "") -> Header:
        """Return the header; raises FormatError or UnsafeError if the file is not valid, or has no tensors."""
        assert isinstance(source, File)
        from ..hdf5.content import read_content  # 13 modules, which other formats do not need

        with naming(source):
            content = read_content(source, name)
            digest = digest_outside(source, content.payload)
            recipe = _text(source, content.recipe)
        return Header(
            format=self.name,
            tree=content.tree,
            files=(FilePrint.of(source, digest, name),),
            handles=content.datasets.handles(),
            metadata=content.metadata,
            notes=tuple(content.notes()),
            recipe=recipe,
            frame=lambda: _frame(source, content, recipe or ""),
        )


def _text(file: File, place: tuple[int, int] | None) -> str | None:
    if place is None:
        return None
    begin, end = place
    return file.read(begin, end - begin).decode("utf-8", "replace")


def _frame(file: File, content: HdfContent, recipe: str) -> str:
    """Return the digest of all bytes of a file except the values of its datasets.

    ``recipe`` is the text of the recipe in the file, which contains this digest (its seal). The digest is computed as
    if the recipe contained zeros instead.
    """
    patches = []
    if content.recipe is not None and (sealed := seal_of(recipe).encode()):
        begin, end = content.recipe
        patches = [(begin + file.read(begin, end - begin).rfind(sealed), UNSEALED.encode())]
    return digest_outside(file, content.payload, patches)


FORMAT = _Hdf5()
