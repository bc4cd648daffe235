"""LevelDB's tables, as TensorFlow's index is one; each mutation is of a block and sealed anew."""

from tests.fuzz.target import fuzz, opened

# isort: split
# what is imported before atheris is not instrumented
from tests.formats import tensorflow_files as tf

ROWS = [(b"", tf.HEADER), (b"v", tf.entry([2], 8)), (b"w", tf.entry([1, 2], 8, offset=8))]
READ = opened("x.index")


def run(data: bytes) -> None:
    """The first byte chooses the compression."""
    READ(tf.table([(b"zz", data[1:])], kind=data[0] & 1 if data else 0))


if __name__ == "__main__":
    fuzz(run, [b"\0" + tf.block(ROWS), b"\1" + tf.varint(64) + b"\0\0" + b"\xfa\1\0"])
