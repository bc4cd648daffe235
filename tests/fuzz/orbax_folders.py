"""Orbax: the list of values, the metadata of arrays in zarr 2 and 3, and chunks, of an item in folders; databases."""

import json
import struct
from pathlib import Path

import ckptsurgeon as cs
from ckptsurgeon.storage.crc32c import crc32c

from ..helpers.ocdbt_files import MANIFEST, NODE, Reference, framed, inner, leaf, manifest
from ..helpers.orbax_files import VALUES, in_chunks, metadata, zarr, zarr3
from .target import Files, Target, in_parts, numbered, read

PLACES = {
    "list.json": "x/_METADATA", "zarray.json": "x/w/.zarray", "chunk": "x/w/0.1",
    "list3.json": "y/_METADATA", "zarr.json": "y/a.w/zarr.json", "chunk3": "y/a.w/c/0/0",
}  # fmt: skip
HEAD, SUM = 14, 4
"""The lengths of what is before and after the fields of a manifest or node: it is made anew."""


def bodies() -> Files:
    """A database with the array of a folder: a node, in a file of its own, above a leaf."""
    low = leaf({"w/.zarray": json.dumps(zarr()).encode(), "w/0.0": bytes(32), "w/0.1": Reference("values", 0, 32)})
    high = inner({"w/": Reference("leaf", 0, len(low))}, 1)
    files = {"manifest": manifest(Reference("node", 0, len(high)), 1), "node": high, "leaf": low}
    return {name: data[HEAD:-SUM] for name, data in files.items()}


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
    return files | bodies()


def databases() -> dict[str, dict[str, bytes]]:
    """Three databases: in two, the manifest refers to the node and to the leaf as they are, however long."""
    high, low = (framed(NODE, Path(name).read_bytes()) for name in ("node", "leaf"))
    manifests = {
        "m": framed(MANIFEST, Path("manifest").read_bytes()),
        "n": manifest(Reference("node", 0, len(high)), 1),
        "l": manifest(Reference("leaf", 0, len(low))),
    }
    files = {"node": high, "leaf": low, "values": bytes(32), "_METADATA": json.dumps(metadata({"w": {}})).encode()}
    return {folder: {"manifest.ocdbt": data, **files} for folder, data in manifests.items()}


def read_all(_: str) -> None:
    """Lay the parts out as five items, and read those."""
    refused: cs.CheckpointError | None = None
    for name, place in PLACES.items():
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        Path(place).write_bytes(Path(name).read_bytes())
    for folder, files in databases().items():
        Path(folder).mkdir(exist_ok=True)
        for name, data in files.items():
            Path(folder, name).write_bytes(data)
    for folder in ("x", "y", *databases()):
        try:
            read(folder)
        except cs.CheckpointError as error:
            refused = error
    if refused:
        raise refused


TARGET = Target(in_parts("orbax_folders", read_all), make, numbered)
