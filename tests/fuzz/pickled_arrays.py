"""Pickles of arrays: of each protocol, of Python 2, with arrays in place, as text and small ones, nested, and in slices."""

import pickle

import numpy as np

from ..helpers.pickled_arrays import of_python2, text_of
from .target import Files, Target, written


def make() -> Files:
    large, small = np.arange(1100, dtype="f4"), np.asfortranarray(np.ones((2, 3), ">i2"))
    tree = {"model": {"a": large, "b": [small, {"c": small}], "d": large}, "text": "x", "scalar": np.float32(1)}
    found = {f"{protocol}.pkl": pickle.dumps(tree, protocol) for protocol in (1, 2, 4, 5)}
    old = of_python2({"blobs": {"a": large, "b": small}})
    slices = {"w": {"OriginShape": (2, 550), "slices": ["w@@.0", "w@@.1"]}}
    paddle = {"w@@.0": large[:500], "w@@.1": large[500:], "b": small, "UnpackBigParamInfor@@": slices}
    found["paddle.pkl"] = pickle.dumps(paddle, 4)
    return {**found, "old.pkl": old, "text.pkl": text_of("\u00e9" * 4500, 4500)}


TARGET = Target(written("x.pkl"), make)
