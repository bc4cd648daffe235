"""Pickles of arrays: of each protocol, of Python 2, with arrays in place, as text and small ones, and nested."""

import pickle

import numpy as np

from ..helpers.pickled_arrays import of_python2, text_of
from .target import Files, Target, written


def make() -> Files:
    large, small = np.arange(1100, dtype="f4"), np.asfortranarray(np.ones((2, 3), ">i2"))
    tree = {"model": {"a": large, "b": [small, {"c": small}], "d": large}, "text": "x", "scalar": np.float32(1)}
    found = {f"{protocol}.pkl": pickle.dumps(tree, protocol) for protocol in (1, 2, 4, 5)}
    old = of_python2({"blobs": {"a": large, "b": small}})
    return {**found, "old.pkl": old, "text.pkl": text_of("\u00e9" * 4500, 4500)}


TARGET = Target(written("x.pkl"), make)
