"""TensorFlow's checkpoints: index, data and the texts beside them in turn, or a block of an index that is sealed anew."""

import os
from pathlib import Path

import numpy as np

from ckptsurgeon.storage.crc32c import crc32c

from ..helpers import tensorflow_files as tf
from .target import Files, Target, files_of, in_parts, numbered

PARTS = in_parts("bundles")
INDEX, PLAIN, PACKED = 5, 0x80, 0x81
"""The place of the index among the files, by name; and what stands in front of a block, plain or packed by snappy."""


def run(data: bytes) -> None:
    if data[:1] >= bytes([PLAIN]):
        PARTS(bytes([INDEX]) + tf.table([(b"zz", data[1:])], kind=data[0] & 1))
    else:
        PARTS(data)


def make() -> Files:
    os.mkdir("bundle")
    tf.write("bundle/model-1", {"v": np.ones(2, "f4"), "w": np.ones((1, 2), "f4")})
    Path("bundle/checkpoint").write_text('model_checkpoint_path: "/home/me/model-1"\n')
    Path("bundle/best_dev_checkpoint").write_text('model_checkpoint_path: "model-1"\n')
    Path("bundle/flags.txt").write_text('{"n_hidden": 2}\n')
    Path("bundle/alphabet.txt").write_text("a\nb\n")
    return files_of("bundle")


def inputs(files: Files) -> list[bytes]:
    crc = crc32c(np.ones(2, "f4").tobytes())
    rows = [(b"", tf.HEADER), (b"v", tf.entry([2], 8, crc=crc)), (b"w", tf.entry([1, 2], 8, offset=8, crc=crc))]
    block = tf.block(rows)
    literal = bytes([60 << 2, len(block) - 1]) + block  # of more than 60 bytes: one byte for their number
    packed = tf.varint(len(block)) + literal
    return [*numbered(files), bytes([PLAIN]) + block, bytes([PACKED]) + packed]


TARGET = Target(run, make, inputs)
