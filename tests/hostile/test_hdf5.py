"""HDF5 files that break a rule of the format."""

from __future__ import annotations

from typing import Any

import pytest

from tests.formats.exported.test_hdf5 import AT_COPYING, HOSTILE

from ..promises.clauses import HDF5
from .case import COPY, Case, all_named, broken, by_refusal, each, unsafe, written
from .holding import divide, held

RULES = {
    broken("cut short"): ("the signature alone", "cut in the superblock", "cut at the end", "an end beyond the file", "a root outside", "an object of 2^32 bytes", "a tree of 65,535 entries", "a heap of 2^60 bytes", "65,535 symbols", "values outside", "a chunk outside the file", "an array of another file"),
    broken("hdf5 version"): ("version 9", "a layout of version 2"),
    broken("hdf5 checksum"): ("a wrong checksum", "a wrong checksum of an object"),
    broken("hdf5 driver"): ("a driver of several files", "the first of several files"),
    broken("hdf5 external"): ("a link to another file", "a link to another file, newer", "values in another file"),
    broken("hdf5 link"): ("a link of an unknown kind",),
    broken("hdf5 cycle"): ("a group in itself", "groups in a circle"),
    broken("hdf5 overlap"): ("values that overlap", "values that are metadata", "chunks that overlap", "a recipe in the metadata"),
    broken("no state dict"): ("no tensors",),
    broken("recipe size"): ("a recipe of numbers", "a recipe of 4 GB", "a recipe outside the file", "a recipe of another length"),
    broken("duplicate key"): ("a name twice",),
    broken("tensor shape"): ("2^63 elements",),
    broken("tensor size"): ("sizes whose product overflows", "2^62 elements", "too few bytes"),
    unsafe("tree size"): ("100 groups deep",),
    unsafe("key length"): ("2^60 paths", "a name of 60,000 bytes"),
    unsafe("deflate bomb"): ("2^40 values never written", "a bomb"),
    broken("hdf5"): ("addresses of 3 bytes", "a root that is a dataset", "a root that is nothing", "an object of version 7", "more messages than there are", "a continuation that is itself", "a name with a slash", "a name that is a dot", "a name of nothing", "a name that is not text", "a tree in itself", "a tree with a node twice", "a name without an end", "names out of order", "free space outside a heap", "a symbol of an unknown kind", "an object that is neither", "a type of class 15", "a type without a size", "a type that is cut", "a dataspace of version 9", "100 dimensions", "a dataspace that is cut", "a layout of an unknown kind", "two layouts", "a fill value of 3 bytes", "chunks of other dimensions", "chunks of no elements", "a chunk twice", "a chunk outside its dataset", "a chunk between two", "a chunk of too few bytes", "an array that is cut", "an array of fewer chunks", "an array of impossible sizes", "records of 1 byte", "a tree of 2^16 levels", "a heap without columns", "a heap with filters"),
}  # fmt: skip

CASES = by_refusal(HDF5, RULES, lambda name: written("x.h5", HOSTILE[name]))
COPIED = [Case(name, HDF5, broken("hdf5 chunk"), written("x.h5", data), (COPY,)) for name, data in AT_COPYING.items()]


@each([*CASES, *COPIED], costly=["2^60 paths"])
def test_a_broken_file_is_refused(case: Any, ckpt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    divide(["PATH_CHARACTERS"], 4, monkeypatch)
    held(case, ckpt, share=4)


def test_every_file_has_a_case() -> None:
    assert all_named(CASES, HOSTILE)
