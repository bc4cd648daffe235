"""Flax: nested maps, arrays of several types, an array in chunks, and other values."""

from ..helpers.flax_files import array, extension, packed
from .target import Files, Target, written


def make() -> Files:
    w = array((2, 3), "float32", bytes(24))
    chunks = {"0": array((4,), "bfloat16", bytes(8)), "1": array((2,), "bfloat16", bytes(4))}
    whole = {"__msgpack_chunked_array__": True, "shape": {"0": 2, "1": 3}, "chunks": chunks}
    state = {"params": {"a": {"w": w, "list": [w, 1]}, "b": whole}, "step": 7, "x": extension(2, b"12"), "n": None}
    return {
        "state.msgpack": packed(state),
        "plain.msgpack": packed({"a": {"b": w}, "c": array((), "int64", bytes(8), 3)}),
    }


TARGET = Target(written("x.msgpack"), make)
