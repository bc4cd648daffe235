"""Sets the limits for interpreting a file, each with its reason. Beyond one: UnsafeError or FormatError."""

PICKLE_BYTES = 512 << 20
"""A state dict of 100,000 tensors pickles to about 12 MB; half a gigabyte leaves room for odd extras."""

PICKLE_MEMO = 1 << 24
"""The highest number of a memo entry. For a far higher one, C's reader takes gigabytes, and Python's does not."""

PICKLE_OPS = 16_000_000
"""About 40 a tensor. Bounds time (seconds) and memory (the costliest opcode makes some 100 bytes)."""

PICKLE_RARE = 5_000_000
"""Instructions among them that are rare in a state dict, some fifteen a tensor, and take three times as long."""

PICKLE_CALLS = 1_000_000
"""Calls of functions of ours, for one pickle. A tensor takes two or three, each as long as ten instructions."""

PICKLE_FREE = 20 << 20
PICKLE_GROWTH = 5
"""A pickle of more bytes may have proportionally more instructions, up to so many times.

A tensor takes 50 bytes and more of a pickle. What a small file can ask for stays small.
"""

PICKLE_COPIES = 4_000_000
"""Elements that functions of ours copy, for one pickle: a single instruction can copy a list of a million."""

PICKLE_TEXT = 192 << 20
"""Bytes of text in one pickle. One emoji makes CPython keep four bytes for every character of its text."""

PICKLE_NAMES = 100_000
"""Distinct names of classes and functions. Real files stay below a hundred."""

INFLATED_FREE = 16 << 20
INFLATED = 100
"""A deflated record may be at most this many times larger than what is stored, once it is larger than 16 MiB."""

PICKLE_DEPTH = 512
"""Marks open at once. Real files stay below 10."""

NUMBER_BYTES = 1024
"""Longest integer kept as a number; torch's own magic number has 10 bytes."""

DICT_KEY_INT = 2**61 - 1
"""Integers from here on share hashes with smaller ones (CPython's modulus), so they never become keys."""

TAR_PICKLES_BYTES = 32 << 20
"""Bytes that describe the storages, or the tensors, of one tar archive: some 70 bytes for each."""

TAR_RECORDS_BYTES = 1 << 16
"""Bytes of an extended header of a tar archive, about the next member; Python's own has some 30 bytes."""

DIMENSIONS = 64
"""torch's own limit."""

ELEMENTS = 2**63 - 1
"""Sizes and offsets are int64 in every format we read."""

TENSORS = 1_000_000
"""Keys of one state dict. The largest models have about 150,000; each costs some 20 microseconds until it is shown."""

ZIP_ENTRIES = 1_100_000
"""Records of one archive: one for each tensor. A million of them took ten seconds on a busy machine."""
ZIP_DIRECTORY_BYTES = 256 << 20

JSON_HEADER_BYTES = 100_000_000
"""The reference implementation's limit for a safetensors header."""

JSON_OPENED = 6_000_000
JSON_COMMAS = 10_000_000
"""Objects and arrays opened, and commas, in one JSON text.

A tensor of a safetensors header has three and about six, and one or two more in the recipe that stands there.
"""

INDEX_BYTES = 256_000_000
"""A shard index names each key once; 100,000 keys take 10 MB."""

TABLE_BYTES = 100_000_000
"""The index of a TensorFlow checkpoint, which shares the beginnings of keys."""

TABLE_INFLATED = 8 << 20
"""Bytes that the compressed blocks of a TensorFlow index unpack to, byte by byte; TensorFlow compresses none."""

TABLE_MESSAGES = 10 << 20
"""Bytes of all entries of a TensorFlow index: 32 for each tensor at the limit, and 0.6 microseconds a byte."""

SHARDS = 1000
"""Files that one TensorFlow checkpoint may be spread over; all are held open."""

BESIDE_BYTES = 1 << 20
"""A text next to a checkpoint that is shown with it: flags, an alphabet."""

NPY_HEADER_BYTES = 1 << 16
"""Bytes of the header of a NumPy array; with 64 dimensions it takes under 2,000."""

RECIPE_BYTES = 256 << 20
"""A recipe has about 100 bytes for each tensor."""

EXPANSION = 1024
EXPANSION_FREE = 64 << 20
"""A strided view may be at most this many times larger than its storage, once it is larger than 64 MiB.

A few hundred bytes with a stride of 0 can claim terabytes.
"""

TREE_NODES = 1_000_000
TREE_DEPTH = 64
"""Containers visited, and how deep, in search of the state dict: files may nest and share without end."""

TREE_TENSORS = 1_000_000
"""Parameters and buffers in the state dicts of modules that were pickled whole; modules may share what they hold."""

COUNTED = 4_000_000
"""Values visited to count the tensors in extras, for one file."""

PIECES = 1_000_000
"""Pieces of which the tensors of one checkpoint are made: each is an archive of its own, and takes 0.1 ms."""

PIECE_PICKLES = 16 << 20
PIECE_DATA = 4 << 20
"""Bytes of the pickles in those pieces (tensors of one dtype and shape share one), and of pieces of other data."""

ZERO_PIECES = 500_000
"""Pieces into which the ranks of ZeRO cut the parameters: each is a few numbers and a description."""

CARRIED_VALUES = 4_000_000
CARRIED_TEXT = 64 << 20
"""Values and characters of text that are carried into an output with its tensors: shared values are written again."""

EXTRAS = 10_000
"""Entries next to the tensors that are described."""

KEY_CHARACTERS = 8192
KEY_SEGMENTS = 256
"""How long a key may be, and how many dotted parts it may have. Real ones stay below 200 and 20."""

PATH_CHARACTERS = 64 << 20
"""Characters of all paths that are put together in one scripted module: 200 for each of the most keys."""

SEGMENTS = 3_000_000
SEGMENTS_EACH = 10
"""Dotted parts of all keys together, or so many for each key where that is more. Each may become a line of a tree."""

# Limits of ``ckpt scan``, which must end in seconds even on files that no reader accepts.

SCAN_OPS = 16_000_000
"""Instructions of all pickles in one file together: some 0.3 microseconds each."""

SCAN_BYTES = 1 << 30
"""Bytes of all pickles that are decoded in one file together, nested ones counted again."""

SCAN_UNPACKED = 512 << 20
"""Bytes that all compressed data in one file unpacks to; zlib makes some 200 MB in a second."""

SCAN_SEARCHED = 2 << 30
"""Bytes of one file that are searched for archives one behind the other, or for records that no directory names."""

SCAN_DEPTH = 6
"""Files in files in files. A compressed tar of archives of pickles with pickles in them has four levels."""

SCAN_MARKS = 100_000
"""Marks open at once. Python's own pickler stops at a nesting of some thousands."""

SCAN_NAMES = 1000
"""Distinct names kept for one pickle. Real ones stay below a hundred; what is beyond counts as one unknown name."""

SCAN_NAME_CHARACTERS = 300
"""Characters kept of a module or a name. Python's longest stay below a hundred."""

SCAN_FOUND = 10_000
"""Things in one file that are listed: pickles, archives, programs."""

SCAN_NESTED = 10_000
"""Texts and byte strings of one pickle that are looked at as pickles or archives of their own."""

SCAN_PARTS = 5_000_000
"""Records and members of all archives in one file that are looked at."""

SCAN_TEXT_BYTES = 64 << 20
"""A configuration next to a model that is searched for the classes it names; the largest tokenizers have some 30 MB."""

SCAN_FILES = 100_000
SCAN_FOLDERS = 64
"""Files of a folder, and how many levels of folders it may have."""
