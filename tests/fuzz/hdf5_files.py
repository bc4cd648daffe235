"""HDF5: groups of both kinds, chunks, a heap of links, and every index of chunks; with checksums, and without them."""

from unittest.mock import patch

from ckptsurgeon import CheckpointError
from ckptsurgeon.formats.hdf5.blocks import BlockReader

from ..helpers.hdf5_files import GOLDEN
from .target import Files, Target, read, written

_FILES = ("few_v108.h5", "few_v114.h5", "keras_2.h5", "many_latest.h5", "indexes_v110.h5")


def make() -> Files:
    return {name: (GOLDEN / name).read_bytes() for name in _FILES}


def also_unchecked(path: str) -> None:
    """Read a file; one that is refused is read again without its checksums, which hide what is behind them."""
    try:
        read(path)
    except CheckpointError:
        with patch.object(BlockReader, "check"):
            read(path)


TARGET = Target(written("x.h5", also_unchecked), make)
