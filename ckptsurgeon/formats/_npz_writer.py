"""Lays out numpy's ``.npz``: a zip archive with one ``.npy`` array for each key, not compressed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import OutputError
from ..util.text import escape
from ._npy import DTYPES_OF_NPY, npy_header
from .base.header import ExtraEntries, OutTensor
from .base.limits import TENSORS
from .base.sharded_writer import OneFile
from .zip.layout import ZipLayout, ZipRecord

__all__ = ["NPY_SUFFIX", "NPZ_RECIPE", "NpzWriter"]

NPY_SUFFIX = ".npy"
NPZ_RECIPE = "ckptsurgeon.json"
"""The name of the record with the recipe. ``numpy.load`` lists it among the keys, and returns its bytes."""
_NAME_BYTES = 0xFFFF


class NpzWriter:
    """Writes ``.npz`` files."""

    name = "npz"
    sharding = OneFile("npz")
    suffixes = (".npz",)
    carries = False
    shares = False
    most = TENSORS
    dtypes = DTYPES_OF_NPY

    def layout(
        self,
        tensors: Sequence[OutTensor],
        metadata: Mapping[str, str],
        recipe: Sequence[str],
        beside: ExtraEntries | None = None,
    ) -> ZipLayout:
        """Return the layout of a file; ``metadata`` is not used here: the text ``recipe`` contains it.

        Raises OutputError for a key that cannot be the name of a record, or that differs from another only in case.
        """
        _check_case(tensors)
        return ZipLayout([_record(tensor) for tensor in tensors], recipe, NPZ_RECIPE)


def _record(tensor: OutTensor) -> ZipRecord:
    lead = npy_header(tensor.dtype, tensor.shape)
    return ZipRecord(_name(tensor.key), len(lead) + tensor.nbytes, None, key=tensor.key, lead=lead)


def _name(key: str) -> bytes:
    """Return the name of a key's record; raises OutputError if readers of zip archives would refuse this name."""
    try:
        name = (key + NPY_SUFFIX).encode()
    except UnicodeEncodeError:
        name = b""
    is_path = key.startswith("/") or "\\" in key or "\0" in key or ".." in key.split("/")
    if is_path or not 0 < len(name) <= _NAME_BYTES:
        raise OutputError(
            f"npz cannot store the key {escape(key)}: it cannot be the name of a file in a zip archive.",
            hint="Rename the key with ckpt rename --map, or write safetensors: -o FILE.safetensors.",
        )
    return name


def _check_case(tensors: Sequence[OutTensor]) -> None:
    folded: dict[str, str] = {}
    for tensor in tensors:
        other = folded.setdefault(tensor.key.casefold(), tensor.key)
        if other != tensor.key:
            raise OutputError(
                f"npz cannot store both {escape(other)} and {escape(tensor.key)}: they differ only in case.",
                hint="Rename one of the keys with ckpt rename --map, or write safetensors: -o FILE.safetensors.",
            )
