"""Sets the limits for interpreting a file, with reasons. A file beyond a limit raises UnsafeError or FormatError."""

PICKLE_BYTES = 512 << 20
"""Bytes of one pickle. That of 100,000 tensors has about 12 MB; half a gigabyte leaves room for other entries."""

PICKLE_MEMO = 1 << 24
"""The highest number of a memo entry. For far higher ones, CPython's reader in C allocates gigabytes."""

PICKLE_OPS = 16_000_000
"""Instructions of one pickle, about 40 for each tensor. It limits time to seconds, and memory (some 100 bytes each)."""

PICKLE_RARE = 5_000_000
"""Instructions of one pickle that are rare in a state dict (some 15 for each tensor), and take three times as long."""

PICKLE_CALLS = 1_000_000
"""Calls of our own functions for one pickle: two or three for each tensor, each as slow as ten instructions."""

PICKLE_FREE = 20 << 20
PICKLE_GROWTH = 5
"""A pickle of more than ``PICKLE_FREE`` bytes may have proportionally more instructions, up to ``PICKLE_GROWTH`` times.

A tensor takes at least 50 bytes of a pickle. The work that a small file can cause stays small.
"""

PICKLE_COPIES = 4_000_000
"""Elements that our own functions copy for one pickle: a single instruction can copy a list of a million."""

PICKLE_TEXT = 192 << 20
"""Bytes of text in one pickle. CPython takes four bytes for every character of a text that has one emoji."""

PICKLE_NAMES = 100_000
"""Distinct names of classes and functions in one pickle. Real files have fewer than a hundred."""

INFLATED_FREE = 16 << 20
INFLATED = 100
"""A compressed record of more than ``INFLATED_FREE`` bytes may unpack to at most this many times its stored size."""

PICKLE_DEPTH = 512
"""Levels of nesting (open MARKs) in a pickle. Real files have fewer than 10."""

NUMBER_BYTES = 1024
"""Bytes of an integer in a pickle; torch's own magic number has 10."""

DICT_KEY_INT = 2**61 - 1
"""Integers from here on have the same hashes as smaller ones (CPython's modulus), so they are never dict keys."""

TAR_PICKLES_BYTES = 32 << 20
"""Bytes that describe the storages, or the tensors, of one tar archive: some 70 bytes for each of them."""

TAR_RECORDS_BYTES = 1 << 16
"""Bytes of an extended header in a tar archive; one that Python writes has some 30 bytes."""

TAR_MEMBERS = 100_000
"""Members of a tar archive with a checkpoint in it; their headers are read one by one."""

DIMENSIONS = 64
"""Dimensions of a tensor: torch's own limit."""

ELEMENTS = 2**63 - 1
"""Elements of a tensor: sizes and offsets are int64 in every format."""

TENSORS = 1_000_000
"""Keys of one state dict. The largest models have about 150,000; reading and showing one takes some 20 microseconds."""

ZIP_ENTRIES = 1_100_000
"""Records of one zip archive: one for each tensor. A million of them took ten seconds on a busy machine."""
ZIP_DIRECTORY_BYTES = 256 << 20

JSON_HEADER_BYTES = 100_000_000
"""Bytes of a safetensors header: the limit of the reference implementation."""

JSON_OPENED = 6_000_000
JSON_COMMAS = 10_000_000
"""Opening brackets, and commas, in one JSON text.

A tensor takes three brackets and about six commas in a safetensors header, and one or two more in its recipe.
"""

GGUF_HEADER_BYTES = 256 << 20
"""Bytes of a GGUF header. A vocabulary of 256,000 tokens with its merges takes some 12 MB."""
GGUF_ENTRIES = 100_000
"""Entries of its metadata; real files have fewer than a hundred."""
GGUF_TEXT = 1 << 20
"""Bytes of one entry that is shown as a text; the largest chat templates have some 20,000."""
GGUF_SHOWN = 16 << 20
"""Bytes of all such entries together."""
GGUF_TEXTS = 10_000_000
"""Texts in one array of a header. Moving beyond one takes 0.2 microseconds."""

INDEX_BYTES = 256_000_000
"""Bytes of the index of a sharded checkpoint; 100,000 keys take 10 MB."""

TABLE_BYTES = 100_000_000
"""Bytes of the index of a TensorFlow checkpoint, which stores the common beginnings of keys once."""

TABLE_INFLATED = 8 << 20
"""Bytes that the compressed blocks of a TensorFlow index unpack to, which is slow; TensorFlow compresses none."""

TABLE_MESSAGES = 10 << 20
"""Bytes of all entries of a TensorFlow index: some 32 for each tensor. Reading a byte takes 0.6 microseconds."""

SHARDS = 1000
"""Data files of one TensorFlow checkpoint, all open at the same time."""

BESIDE_BYTES = 1 << 20
"""Bytes of a small file next to a checkpoint that is shown with it, such as flags or an alphabet."""

NPY_HEADER_BYTES = 1 << 16
"""Bytes of the header of a NumPy array; with 64 dimensions it takes under 2,000."""

RECIPE_BYTES = 256 << 20
"""Bytes of a recipe, which has about 100 for each tensor."""

EXPANSION = 1024
EXPANSION_FREE = 64 << 20
"""A strided view of more than ``EXPANSION_FREE`` bytes may be at most ``EXPANSION`` times as large as its storage.

With strides of 0, a tensor of terabytes needs only a few bytes of storage.
"""

TREE_NODES = 1_000_000
TREE_DEPTH = 64
"""Containers visited in search of the state dict, and their depth: a file may nest and share them without end."""

TREE_TENSORS = 1_000_000
"""Tensors in the state dicts of modules that were pickled as a whole; modules may share submodules."""

COUNTED = 4_000_000
"""Values visited to count the tensors in the other entries of one file."""

PIECES = 1_000_000
"""Pieces of all tensors of one distributed checkpoint: each is a separate archive, which takes 0.1 ms to read."""

PIECE_PICKLES = 16 << 20
PIECE_DATA = 4 << 20
"""Bytes of the different pickles in these pieces (one per dtype and shape), and of the pieces that are not tensors."""

ZERO_PIECES = 500_000
"""Pieces of all parameters on all ranks of ZeRO: each takes a TensorInfo in memory."""

RANKS = 16_384
"""Ranks of one training run, each with a file of its own, or in the mesh of a tensor."""
RANK_PIECES = 1_000_000
"""Parts of all tensors in the files of all ranks: each takes a TensorInfo in memory."""

CARRIED_VALUES = 4_000_000
CARRIED_TEXT = 64 << 20
"""Values, and characters of text, that an output gets besides its tensors: a shared value is written several times."""

EXTRAS = 10_000
"""Entries besides the tensors that are listed, for one file."""

KEY_CHARACTERS = 8192
KEY_SEGMENTS = 256
"""Characters of a key, and its dotted parts. Real keys have fewer than 200 and 20."""

PATH_CHARACTERS = 64 << 20
"""Characters of all keys built for one scripted module: some 60 for each of a million keys."""

SEGMENTS = 3_000_000
SEGMENTS_EACH = 10
"""Dotted parts of all keys together: ``SEGMENTS``, or ``SEGMENTS_EACH`` for each key if that is more.

Each part may become a line of a tree."""

# Limits of ``ckpt scan``, which must end in seconds even on files that no reader accepts.

SCAN_OPS = 16_000_000
"""Instructions of all pickles in one file together, which take some 0.3 microseconds each."""

SCAN_BYTES = 1 << 30
"""Bytes of all pickles in one file together; a pickle inside another is counted again."""

SCAN_UNPACKED = 512 << 20
"""Bytes that all compressed data in one file unpacks to; zlib makes some 200 MB in a second."""

SCAN_SEARCHED = 2 << 30
"""Bytes of one file that are searched for further archives after the first, or for records missing in a directory."""

SCAN_DEPTH = 6
"""Levels of files in files. A compressed tar of archives with pickles that contain pickles has four."""

SCAN_MARKS = 100_000
"""Levels of nesting (open MARKs) in a pickle. Python's own pickler stops at some thousands."""

SCAN_NAMES = 1000
"""Distinct names kept for one pickle. Real ones have fewer than a hundred; all others count as one unknown name."""

SCAN_NAME_CHARACTERS = 300
"""Characters kept of the name of a module or class. Python's longest have fewer than a hundred."""

SCAN_FOUND = 10_000
"""Pickles, archives and programs that are listed for one file."""

SCAN_NESTED = 10_000
"""Texts and byte strings of one pickle that are checked for being pickles or archives themselves."""

SCAN_PARTS = 5_000_000
"""Records and members that are scanned, of all archives in one file together."""

SCAN_TEXT_BYTES = 64 << 20
"""Bytes of a configuration that is searched for names of classes; the largest tokenizers have some 30 MB."""

SCAN_FILES = 100_000
SCAN_FOLDERS = 64
"""Files of a folder, and how many levels of folders it may have."""
