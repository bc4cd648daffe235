"""Items of Orbax made by hand: arrays in folders, which need no package as long as they are not compressed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["VALUES", "in_chunks", "item", "metadata", "zarr", "zarr3"]

VALUES = np.arange(30, dtype="<i4").reshape(5, 6)


def zarr(shape: Any = (5, 6), chunks: Any = (2, 4), dtype: Any = "<i4", **more: Any) -> dict[str, Any]:
    """The metadata of an array in version 2."""
    return {
        "zarr_format": 2, "shape": shape, "chunks": chunks, "dtype": dtype, "compressor": None, "filters": None,
        "fill_value": None, "order": "C", **more,
    }  # fmt: skip


def zarr3(shape: Any = (4, 6), chunks: Any = (4, 6), inner: Any = (2, 3), **more: Any) -> dict[str, Any]:
    """The metadata of an array in version 3, whose chunks are divided and not compressed."""
    plain = {"name": "bytes", "configuration": {"endian": "little"}}
    parts = {"chunk_shape": inner, "codecs": [plain], "index_codecs": [plain, {"name": "crc32c"}]}
    return {
        "zarr_format": 3, "node_type": "array", "shape": shape, "data_type": "int32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
        "chunk_key_encoding": {"name": "default"}, "fill_value": 0,
        "codecs": [{"name": "sharding_indexed", "configuration": parts}], **more,
    }  # fmt: skip


def metadata(leaves: dict[str, dict[str, Any]], **more: Any) -> dict[str, Any]:
    """``_METADATA`` of arrays by their dotted names; each has entries that replace those of ``value_metadata``."""
    listed = {
        str(tuple(name.split("."))): {
            "key_metadata": [{"key": key, "key_type": 2} for key in name.split(".")],
            "value_metadata": {"value_type": "jax.Array", "skip_deserialize": False, **values},
        }
        for name, values in leaves.items()
    }
    return {"tree_metadata": listed, "use_ocdbt": False, "use_zarr3": False, **more}


def item(path: str, arrays: dict[str, Any], chunk: tuple[int, ...] = (2, 4), **more: Any) -> Path:
    """Write an item whose arrays are folders; each value is an array, or metadata without chunks."""
    folder = Path(path)
    for name, values in arrays.items():
        place = folder / name
        place.mkdir(parents=True)
        made = values if isinstance(values, dict) else zarr(values.shape, chunk, values.dtype.str, **more)
        (place / (".zarray" if made.get("zarr_format") != 3 else "zarr.json")).write_text(json.dumps(made))
        for number, part in [] if isinstance(values, dict) else in_chunks(values, chunk, more.get("order", "C")):
            (place / ".".join(map(str, number))).write_bytes(part)
    is_3 = any(isinstance(one, dict) and one.get("zarr_format") == 3 for one in arrays.values())
    (folder / "_METADATA").write_text(json.dumps(metadata({name: {} for name in arrays}, use_zarr3=is_3)))
    return folder


def in_chunks(values: Any, chunk: tuple[int, ...], order: str = "C") -> list[tuple[tuple[int, ...], bytes]]:
    """The chunks of an array by their places; those at its edge are filled up with zeros."""
    found = []
    for place in np.ndindex(*(-(-size // step) for size, step in zip(values.shape, chunk, strict=True))):
        part = values[tuple(slice(at * step, (at + 1) * step) for at, step in zip(place, chunk, strict=True))]
        whole = np.zeros(chunk, values.dtype)
        whole[tuple(slice(size) for size in part.shape)] = part
        found.append((place, whole.tobytes(order)))
    return found
