"""HDF5: groups of both kinds, chunks, a heap of links, and every index of chunks."""

from ..helpers.hdf5_files import GOLDEN
from .target import Files, Target, written

_FILES = ("few_v108.h5", "few_v114.h5", "keras_2.h5", "many_latest.h5", "indexes_v110.h5")


def make() -> Files:
    return {name: (GOLDEN / name).read_bytes() for name in _FILES}


TARGET = Target(written("x.h5"), make)
