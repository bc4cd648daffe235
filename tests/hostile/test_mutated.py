"""Sound files that are flipped, cut, spliced and edited: read, or refused with an error of ours, in time."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

import ckptsurgeon as cs
from tests.formats import tensorflow_files as tf
from tests.formats.torch_files import legacy_variety, saved, variety

from ..promises.clauses import MUTATED, clause
from .bombs import long_script_names
from .holding import in_time, nothing_executed


def arrays() -> bytes:
    out = io.BytesIO()
    np.savez(out, a=np.ones(2), b=np.asfortranarray(np.zeros((2, 3), ">f4")), c=np.array(["x"]))
    return out.getvalue()


def table() -> bytes:
    return tf.index_of({"v": tf.entry([2], 8), "w": tf.entry([1, 2], 8, offset=8)})


def resealed(data: bytes) -> bytes:
    """A table of one block with this content, whose checksum is right, so that what it holds is looked at."""
    return tf.table([(b"zz", data)])


ROWS = [(b"", tf.HEADER), (b"v", tf.entry([2], 8)), (b"w", tf.entry([1, 2], 8, offset=8))]
FILES: dict[str, tuple[str, Callable[[], bytes], Callable[[bytes], bytes]]] = {
    "torch zip": ("x.pth", lambda: saved(variety()), bytes),
    "torch legacy": ("x.pt", lambda: saved(legacy_variety(), _use_new_zipfile_serialization=False), bytes),
    "torchscript": ("x.pt", lambda: long_script_names(3, 2), bytes),
    "safetensors": ("x.safetensors", lambda: save({"a": torch.ones(2), "b.c": torch.zeros(1, 3).half()}), bytes),
    "npz": ("x.npz", arrays, bytes),
    "TensorFlow's index": ("x.index", table, bytes),
    "a block of TensorFlow's index": ("x.index", lambda: tf.block(ROWS), resealed),
    "an index of shards": ("x.index.json", lambda: b'{"metadata":{"a":"b"},"weight_map":{"a":"m.safetensors"}}', bytes),
}

edits = st.lists(
    st.tuples(st.sampled_from(["flip", "set", "cut", "insert", "splice"]), st.floats(0, 1), st.floats(0, 1), st.binary(min_size=1, max_size=9)),
    min_size=1,
    max_size=4,
)  # fmt: skip


def edited(data: bytes, kind: str, first: float, second: float, new: bytes) -> bytes:
    at, other = int(first * len(data)), int(second * len(data))
    return {
        "flip": data[:at] + bytes(byte ^ 1 << new[0] % 8 for byte in data[at : at + 1]) + data[at + 1 :],
        "set": data[:at] + new + data[at + len(new) :],
        "cut": data[:at],
        "insert": data[:at] + new + data[at:],
        "splice": data[:at] + data[other : other + 64] + data[at:],
    }[kind]


@clause(MUTATED)
@pytest.mark.parametrize("kind", FILES)
@settings(max_examples=60)
@given(changes=edits)
def test_a_file_that_was_changed_is_read_or_refused(kind: str, changes: list[tuple[str, float, float, bytes]]) -> None:
    name, sound, finished = FILES[kind]
    data = sound()
    for change in changes:
        data = edited(data, *change)
    Path(name).write_bytes(finished(data))
    with nothing_executed(), in_time():
        try:
            with cs.open_checkpoint(name) as found:
                for key in found:
                    found.tensor(key)
        except cs.CheckpointError:
            pass
