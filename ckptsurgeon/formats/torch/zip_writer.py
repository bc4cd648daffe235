"""Lays out zip archives that ``torch.load(weights_only=True)`` opens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...tensors.dtypes import DTYPES
from ..base.header import ExtraEntries, OutTensor
from ..base.limits import TENSORS
from ..base.sharded_writer import IndexedShards
from ..zip.layout import ZipLayout, ZipRecord
from .pickle_writer import parameters_of, state_dict_pickle

__all__ = ["ZIP_RECORD", "ZipWriter", "torch_archive"]

ROOT = "archive/"
ZIP_RECORD = f"{ROOT}.data/ckptsurgeon.json"
"""The name of the record with the recipe; torch ignores such records."""


def torch_archive(pickle: bytes, owners: Sequence[OutTensor], recipe: Sequence[str] = ()) -> ZipLayout:
    """Return the layout of an archive: a pickle, and one record ``archive/data/NUMBER`` for each tensor of ``owners``.

    ``owners`` are all tensors except those that are tied to an earlier tensor. The scales and zero points of channels
    of a quantised tensor follow in records of their own.
    """
    fixed = {"data.pkl": pickle, ".format_version": b"1", ".storage_alignment": b"64", "byteorder": b"little"}
    records = [ZipRecord((ROOT + n).encode(), len(c), c) for n, c in fixed.items()]
    for number, tensor in enumerate(owners):
        name = f"{ROOT}data/{number}"
        records.append(ZipRecord(name.encode(), tensor.nbytes, None, key=tensor.key))
        parameters = parameters_of(tensor)
        records += [ZipRecord(f"{name}{end}".encode(), len(data), data) for end, (_, data) in parameters]
    records.append(ZipRecord(f"{ROOT}version".encode(), 2, b"3\n"))
    return ZipLayout(records, recipe, ZIP_RECORD)


class ZipWriter:
    """Writes ``.pth`` files."""

    name = "pth"
    sharding = IndexedShards("pytorch_model", ".bin")
    suffixes = (".pth", ".pt", ".bin", ".ckpt")
    carries = True
    shares = True
    most = TENSORS
    dtypes = frozenset(d.name for d in DTYPES.values() if d.kind != "bits" and d.bits != 6 and not d.block)

    def layout(
        self,
        tensors: Sequence[OutTensor],
        metadata: Mapping[str, str],
        recipe: Sequence[str],
        beside: ExtraEntries | None = None,
    ) -> ZipLayout:
        """Return the layout of a file; ``metadata`` is not used: in ``.pth`` files, only the recipe has it."""
        owners = [t for t in tensors if not t.alias_of]
        number = {tensor.key: str(i) for i, tensor in enumerate(owners)}
        names = {t.key: number[t.alias_of or t.key] for t in tensors}
        layout = torch_archive(state_dict_pickle(tensors, names, beside or ExtraEntries()), owners, recipe)
        layout.slots = {t.key: layout.slots[t.alias_of or t.key] for t in tensors}
        return layout
