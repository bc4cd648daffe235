"""Tar archives as torch wrote them before 0.1.10: what ``save`` in its ``torch/serialization.py`` put into them."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch

SYSTEM = {"protocol_version": 1000, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 8}}
STATE = OrderedDict(
    weight=torch.arange(6.0).reshape(2, 3), turned=torch.arange(6.0).reshape(2, 3).t(), count=torch.tensor([7])
)

Parts = dict[str, bytes]


class Kind:
    """Pickles as the class of a storage."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> str:
        raise AssertionError


class _Pickler(pickle._Pickler):
    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Kind):
            self.write(b"ctorch\n" + obj.name.encode() + b"\n")
        else:
            super().save(obj, save_persistent_id)  # type: ignore[misc]

    def persistent_id(self, obj: Any) -> Any:
        return str(id(obj)) if isinstance(obj, torch.Tensor) else None


def pickled(value: Any) -> bytes:
    out = io.BytesIO()
    _Pickler(out, 2).dump(value)
    return out.getvalue()


def kind_of(tensor: torch.Tensor) -> Kind:
    return Kind(tensor.type().rpartition(".")[2].replace("Tensor", "Storage"))


def parts(state: Mapping[str, torch.Tensor] = STATE, views: Any = ()) -> Parts:
    """The members of an archive; ``views`` are (key, key of the whole, offset, size)."""
    wholes = {tensor.untyped_storage().data_ptr(): tensor for tensor in state.values()}
    storages = pickled(len(wholes))
    for key, tensor in wholes.items():
        raw = bytes(tensor.untyped_storage())
        storages += pickled((key, "cpu", kind_of(tensor))) + struct.pack("<q", len(raw) // tensor.element_size()) + raw
    tensors = pickled(len(state))
    for tensor in state.values():
        tensors += described(
            id(tensor), tensor.untyped_storage().data_ptr(), tensor.shape, tensor.stride(), tensor.storage_offset()
        )
    return {
        "sys_info": pickled(SYSTEM),
        "pickle": pickled(state),
        "tensors": tensors,
        "storages": storages + pickled(list(views)),
    }


def described(key: int, storage: int, size: Any, stride: Any, offset: int) -> bytes:
    head = pickled((key, storage, Kind("FloatTensor"))) + struct.pack("<ii", len(size), 0)
    return head + struct.pack(f"<{2 * len(size)}q", *size, *stride) + struct.pack("<q", offset)


def archive(files: Mapping[str, bytes], change: Callable[[tarfile.TarInfo], object] = id, mode: Any = "w:") -> bytes:
    """An archive with Python's own headers, which say fractions of seconds in an extended one."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=tarfile.PAX_FORMAT) as made:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1480000000.5
            change(info)
            made.addfile(info, io.BytesIO(data))
    return out.getvalue()
