"""Reads torch's zip checkpoints (``.pth``, ``.pt``, ``.bin``, ``.ckpt``), as ``torch.save`` writes them since 1.6.

``<root>/data.pkl`` pickles the object, ``<root>/data/<key>`` holds each storage, ``<root>/byteorder`` the byte order.
Follows ``torch/serialization.py`` and ``caffe2/serialize/inline_container.cc``.
"""

from __future__ import annotations

from ..storage.read.base import File, Source
from ..util.text import count
from .base import limits
from .base.header import FilePrint, Header, digest_outside, naming
from .pickle.torch import rebuilders
from .torch.archive import TorchArchive, script_tensors
from .torch.pickle_writer import PARAMETERS
from .torch.zip_writer import ZIP_RECORD, ZipWriter
from .zip.archive import Archive

__all__ = ["FORMAT"]


class _TorchZip:
    name = "torch zip"
    magic = (b"PK\3\4", b"PK\5\6")
    writer = ZipWriter()

    def sniff(self, source: Source, head: bytes) -> bool:
        """Return whether the source is a zip archive; its content is checked when it is read."""
        return isinstance(source, File) and head.startswith(self.magic)

    def read(self, source: Source, name: str = "") -> Header:
        """Return the header, from the directory and ``data.pkl``; raises FormatError if they contradict each other."""
        assert isinstance(source, File)
        with naming(source):
            return self._read(source, name)

    def _read(self, source: File, name: str) -> Header:
        archive = TorchArchive(source, name)
        root, records = archive.root, archive.zip
        tree = archive.load(rebuilders())
        scripted = f"{root}constants.pkl" in records.entries
        if scripted:
            tree = script_tensors(tree)
        recipe = None
        if ZIP_RECORD in records.entries:
            recipe = records.read(ZIP_RECORD, limits.RECIPE_BYTES).decode("utf-8", "replace")
        return Header(
            format="torchscript" if scripted else self.name,
            tree=tree,
            notes=(_script_note(records, root),) if scripted else (),
            files=(FilePrint.of(source, archive.digest(), name),),
            handles={name: records.file},
            recipe=recipe,
            frame=lambda: _frame(records, root, recipe or ""),
        )


def _script_note(archive: Archive, root: str) -> str:
    """Return the note on a TorchScript archive: only the tensors of the module are read from it.

    If the module was frozen in part, its program has further weights as constants: the note counts them.
    """
    constants = sum(name.startswith(f"{root}constants/") for name in archive.entries)
    also = f", and not {count(constants, 'tensor')} that its program has as constants" if constants else ""
    return f"read the tensors of a TorchScript module, not its program{also}"


def _frame(archive: Archive, root: str, recipe: str) -> str:
    """Return the digest of all bytes of a file outside the storages of its tensors.

    The storages of scales and zero points are included in the digest. The recipe contains this digest. The digest is
    computed as if the recipe contained zeros instead.
    """
    stored = [one for one in archive.entries.values() if one.name.startswith(f"{root}data/")]
    payload = sorted((one.data, one.data + one.stored) for one in stored if not one.name.endswith(PARAMETERS))
    return digest_outside(archive.file, payload, archive.without_seal(ZIP_RECORD, recipe))


FORMAT = _TorchZip()
