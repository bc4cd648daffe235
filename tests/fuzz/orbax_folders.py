"""Orbax: the list of values, the metadata of arrays in zarr 2 and 3, and chunks, of an item in folders."""

import json
import struct
from pathlib import Path

from ckptsurgeon.storage.crc32c import crc32c

from ..helpers.orbax_files import VALUES, in_chunks, metadata, zarr, zarr3
from .target import Files, Target, in_parts, numbered, read

PLACES = {
    "list.json": "x/_METADATA", "zarray.json": "x/w/.zarray", "chunk": "x/w/0.1",
    "list3.json": "y/_METADATA", "zarr.json": "y/a.w/zarr.json", "chunk3": "y/a.w/c/0/0",
}  # fmt: skip


def make() -> Files:
    index = struct.pack("<8Q", 0, 24, 24, 24, 48, 24, 72, 24)
    files = {
        "list.json": json.dumps(metadata({"w": {"write_shape": [2, 4]}})).encode(),
        "zarray.json": json.dumps(zarr(fill_value=3)).encode(),
        "chunk": in_chunks(VALUES, (2, 4))[1][1],
        "list3.json": json.dumps(metadata({"a.w": {}, "n": {"value_type": "string"}}, use_zarr3=True)).encode(),
        "zarr.json": json.dumps(zarr3()).encode(),
        "chunk3": bytes(range(96)) + index + struct.pack("<I", crc32c(index)),
    }
    assert files.keys() == PLACES.keys()
    return files


def read_both(_: str) -> None:
    """Lay the parts out as two items, and read those."""
    for name, place in PLACES.items():
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        Path(place).write_bytes(Path(name).read_bytes())
    read("x")
    read("y")


TARGET = Target(in_parts("orbax_folders", read_both), make, numbered)
