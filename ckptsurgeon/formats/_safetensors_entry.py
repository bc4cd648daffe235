"""Checks the entry of a tensor in the header of a safetensors file; all code that reads entries uses this check."""

from __future__ import annotations

from math import prod
from typing import Any

from ..tensors.dtypes import DTYPES
from ..tensors.info import Storage, TensorInfo
from ..util.text import escape
from ._safetensors_layout import CODES
from .base import limits

__all__ = ["FIELDS", "EntryError", "tensor_of"]

FIELDS = frozenset({"dtype", "shape", "data_offsets"})


class EntryError(Exception):
    """Raised for an invalid entry; ``rule`` is the reference implementation's name of the error, ``why`` the reason."""

    def __init__(self, rule: str, why: str) -> None:
        super().__init__(why)
        self.rule = rule
        self.why = why


def tensor_of(entry: Any, stored: Storage) -> TensorInfo:
    """Return the header of the tensor that ``entry`` describes; ``stored`` is the storage of all tensors of the file.

    Raises EntryError unless the offsets span exactly the bytes that the shape needs. Whether ``stored`` is large enough
    is not checked.
    """
    if not isinstance(entry, dict) or not entry.keys() >= FIELDS:
        raise EntryError("InvalidHeaderDeserialization", "does not have the fields of a tensor")
    name = CODES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if name is None:
        raise EntryError("InvalidDtype", f"has the unknown dtype {escape(repr(entry['dtype']), 40)}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise EntryError("InvalidShape", "has an invalid shape or invalid offsets")
    begin, end = offsets
    elements = prod(shape)
    nonzero = elements or prod(size for size in shape if size)
    bits = elements * (4 if entry["dtype"] == "F4" else DTYPES[name].bits)
    if nonzero > limits.ELEMENTS or bits > 8 * limits.ELEMENTS:
        raise EntryError("ValidationOverflow", f"of shape {shape} has too many elements")
    if bits % 8:
        raise EntryError("MisalignedSlice", "does not end at the end of a byte")
    if begin > end or end - begin != bits // 8:
        has = f"has {end - begin}" if begin <= end else f"its offsets go from {begin} back to {end}"
        raise EntryError("TensorInvalidInfo", f"needs {bits // 8} bytes, but {has}")
    if entry["dtype"] == "F4":
        if not shape or shape[-1] % 2:
            raise EntryError("MisalignedSlice", "has half a byte at the end of a row")
        shape = [*shape[:-1], shape[-1] // 2]
    return TensorInfo(name, tuple(shape), stored, begin)


def _sizes(values: Any) -> bool:
    if not isinstance(values, list) or len(values) > limits.DIMENSIONS:  # a product of many sizes takes minutes
        return False
    for value in values:  # noqa: SIM110  all() takes twice as long, and files have a hundred thousand tensors
        if type(value) is not int or not 0 <= value <= limits.ELEMENTS:
            return False
    return True
