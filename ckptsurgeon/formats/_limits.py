"""The bounds within which a file is interpreted, each with its reason. Beyond one: UnsafeError or FormatError."""

PICKLE_BYTES = 512 << 20
"""A state dict of 100,000 tensors pickles to about 12 MB; half a gigabyte leaves room for odd extras."""

PICKLE_OPS = 16_000_000
"""About 40 a tensor. Bounds time (seconds) and memory (the costliest opcode makes some 100 bytes)."""

PICKLE_DEPTH = 512
"""Marks open at once. Real files stay below 10."""

NUMBER_BYTES = 1024
"""Longest integer kept as a number; torch's own magic number has 10 bytes."""

DICT_KEY_INT = 2**61 - 1
"""Integers from here on share hashes with smaller ones (CPython's modulus), so they never become keys."""

DIMENSIONS = 64
"""torch's own limit."""

ELEMENTS = 2**63 - 1
"""Sizes and offsets are int64 in every format we read."""

ZIP_ENTRIES = 1_000_000
ZIP_DIRECTORY_BYTES = 256 << 20

JSON_HEADER_BYTES = 100_000_000
"""The reference implementation's limit for a safetensors header."""

INDEX_BYTES = 256 << 20
"""A shard index names each key once; 100,000 keys take 10 MB."""

EXPANSION = 1024
EXPANSION_FREE = 64 << 20
"""A strided view may be at most this many times larger than its storage, once it is larger than 64 MiB.

A few hundred bytes with a stride of 0 can claim terabytes.
"""

TREE_NODES = 4_000_000
TREE_DEPTH = 64
"""Containers visited, and how deep, when a file's contents are laid out for people."""
