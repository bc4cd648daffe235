"""Defines the limits for reading a file, with reasons.

A file above a limit raises UnsafeError or FormatError. Above a limit on what is shown, searched or listed, the rest is
left out.
"""

PICKLE_BYTES = 512 << 20
"""The most bytes of one pickle. 100,000 tensors take about 12 MB; half a gigabyte leaves room for other entries."""

PICKLE_MEMO = 1 << 24
"""The highest index of a memo entry. For far higher indices, CPython's reader in C allocates gigabytes."""

PICKLE_OPS = 16_000_000
"""The most instructions of one pickle: about 40 for each tensor.

The limit keeps the time to seconds. An instruction takes up to 100 bytes of memory.
"""

PICKLE_RARE = 5_000_000
"""The most instructions of rare kinds in one pickle: each takes three times as long as one of a frequent kind.

State dicts have about 15 instructions of rare kinds for each tensor.
"""

PICKLE_CALLS = 1_000_000
"""The most calls of ckptsurgeon's functions for one pickle: two or three for each tensor.

A call takes as long as ten instructions.
"""

PICKLE_FREE = 20 << 20
PICKLE_GROWTH = 5
"""If a pickle has more than ``PICKLE_FREE`` bytes, some limits grow in proportion to its size.

These are ``PICKLE_OPS``, ``PICKLE_RARE`` and ``PICKLE_CALLS``; they grow at most ``PICKLE_GROWTH``-fold.
A tensor takes at least 50 bytes of a pickle. So a small file can only cause little work.
"""

PICKLE_COPIES = 4_000_000
"""The most elements that ckptsurgeon's functions copy for one pickle: one instruction can copy a list of a million."""

PICKLE_TEXT = 192 << 20
"""The most bytes of text in one pickle.

In CPython's memory, every character of a string with an emoji takes four bytes.
"""

PICKLE_NAMES = 100_000
"""The most distinct names of classes and functions in one pickle. Real files have fewer than a hundred."""

INFLATED_FREE = 16 << 20
INFLATED = 100
"""A compressed record of more than ``INFLATED_FREE`` bytes may unpack to at most this many times its stored size."""

PICKLE_DEPTH = 512
"""The most levels of nesting (open MARKs) in a pickle. Real files have fewer than 10."""

NUMBER_BYTES = 1024
"""The most bytes of an integer in a pickle; torch's own magic number has 10."""

DICT_KEY_INT = 2**61 - 1
"""Integers from this one on are not used as dict keys: CPython gives them the hashes of smaller integers."""

TAR_PICKLES_BYTES = 32 << 20
"""The most bytes of all pickles in one member of a tar archive: about 70 for each storage or tensor in the member."""

TAR_RECORDS_BYTES = 1 << 16
"""The most bytes of an extended header in a tar archive; Python writes about 30 bytes."""

TAR_MEMBERS = 100_000
"""The most members of a tar archive with a checkpoint in it; their headers are read one by one."""

DIMENSIONS = 64
"""The most dimensions of a tensor: torch's own limit."""

ELEMENTS = 2**63 - 1
"""The most elements of a tensor: sizes and offsets are int64 in every format."""

TENSORS = 1_000_000
"""The most keys of one state dict. The largest models have about 150,000; reading and showing a key takes 20 µs."""

ZIP_ENTRIES = 1_100_000
"""The most records of one zip archive: one for each tensor. A million records took ten seconds on a busy machine."""
ZIP_DIRECTORY_BYTES = 256 << 20
"""The most bytes of the directory of one zip archive."""

JSON_HEADER_BYTES = 100_000_000
"""The most bytes of a safetensors header: the limit of the reference implementation."""

JSON_OPENED = 6_000_000
JSON_COMMAS = 10_000_000
"""The most opening brackets, and the most commas, in one JSON text.

A tensor takes three brackets and about six commas in a safetensors header, and one or two more in its recipe.
"""

GGUF_HEADER_BYTES = 256 << 20
"""The most bytes of a GGUF header. A vocabulary of 256,000 tokens with its merges takes some 12 MB."""
GGUF_ENTRIES = 100_000
"""The most metadata entries of a GGUF file; real files have fewer than a hundred."""
GGUF_TEXT = 1 << 20
"""The most bytes of one string in GGUF metadata that is shown; the largest chat templates have about 20,000."""
GGUF_SHOWN = 16 << 20
"""The most characters of all texts and arrays together that are shown of a GGUF file's metadata."""
GGUF_TEXTS = 10_000_000
"""The most strings in one array of a GGUF header. Skipping a string takes 0.2 microseconds."""

WHISPER_TOKENS = 1_000_000
"""The most tokens in a model file of whisper.cpp; Whisper has 51,866. Skipping the most tokens takes a second."""
WHISPER_TOKEN_BYTES = 1 << 12
"""The most bytes of one token in a model file of whisper.cpp, whose own tools take at most 128."""

MESSAGE_FIELDS = 4_000_000
"""The most fields of an ONNX model that are read; a tensor has about five. Reading them takes ten seconds."""
ONNX_TEXT = 1 << 20
"""The most bytes of a text in the metadata of an ONNX model."""
MESSAGE_NUMBERS = 2_000_000
"""The most values that all tensors of an ONNX model may store as varints. Reading them takes two seconds."""
ONNX_DEPTH = 16
"""How deeply nested subgraphs of an ONNX model are searched for constants."""

HDF5_METADATA = 256 << 20
"""The most bytes of metadata that are read of one HDF5 file: about 500 for each tensor."""
HDF5_CHECKED = 32 << 20
"""The most bytes of metadata with checksums in one HDF5 file: about 300 for each tensor. Checking takes ten seconds."""
HDF5_MESSAGES = 100_000
"""The most messages in the header of one object of an HDF5 file; headers that Keras writes have fewer than 20."""
HDF5_CHUNKS = 1_000_000
"""The most chunks of all datasets of one HDF5 file; h5py makes chunks of up to 1 MB."""
HDF5_BAND = 256 << 20
"""The most bytes of one chunk of an HDF5 dataset, and of one band: the chunks that are unpacked together.

The values of a band are contiguous in the dataset. While a band is unpacked, up to four times as many bytes are in
memory.
"""
HDF5_NAME = 200
HDF5_TEXT = 1 << 16
"""The most characters of an attribute's name in an HDF5 file, and the most bytes of its text, that are shown."""

ORBAX_FILES = 1_000_000
"""The most files and folders of an Orbax checkpoint: without OCDBT, each chunk of an array is a file."""
ORBAX_BAND = 4 << 30
"""The most bytes of one chunk of an array in an Orbax checkpoint, and of one band, as for HDF5.

Orbax makes one chunk of the part of an array that is on one device: an embedding may be one chunk of gigabytes.
"""
ORBAX_JSON = 1 << 20
"""The most bytes of the metadata of one array in an Orbax checkpoint (``.zarray``, ``zarr.json``): usually 500."""

OCDBT_NODE = 128 << 20
"""The most bytes of a manifest or node of an OCDBT database, unpacked: Orbax makes nodes of up to 100 MB."""
OCDBT_HEIGHT = 32
"""The most levels of the B-tree of an OCDBT database: enough for four billion keys with two children per node."""
OCDBT_NUMBERS = 16_000_000
"""The most numbers in all nodes of an OCDBT database: six for each key, 400 for each node. Reading takes 3 seconds."""
OCDBT_UNPACKED = 1 << 30
"""The most bytes of all unpacked nodes of an OCDBT database: some 100 for each key. One node at a time is in memory."""
OCDBT_KEPT, OCDBT_ENTRY = 384 << 20, 200
"""The most bytes of all keys and values in the nodes of an OCDBT database, plus ``OCDBT_ENTRY`` bytes for each key.

This limit allows more than a million keys, like ``ORBAX_FILES``.
"""

INDEX_BYTES = 256_000_000
"""The most bytes of the index of a sharded checkpoint; 100,000 keys take 10 MB."""

TABLE_BYTES = 100_000_000
"""The most bytes of the index of a TensorFlow checkpoint; the index stores common prefixes of keys only once."""

TABLE_INFLATED = 8 << 20
"""The most bytes that the compressed blocks of a TensorFlow index unpack to, because unpacking them is slow.

TensorFlow itself does not compress the blocks.
"""

TABLE_MESSAGES = 10 << 20
"""The most bytes of all entries of a TensorFlow index: about 32 for each tensor. Reading a byte takes 0.6 µs."""

SHARDS = 1000
"""The most data files of a TensorFlow checkpoint or ONNX model, or files of a split GGUF model; all stay open."""

BESIDE_BYTES = 1 << 20
"""The most bytes of a small file next to a checkpoint (such as an alphabet) that is read or shown with it."""

NPY_HEADER_BYTES = 1 << 16
"""The most bytes of the header of a NumPy array; a header with 64 dimensions has under 2,000."""

RECIPE_BYTES = 256 << 20
"""The most bytes of a recipe: about 100 for each tensor."""

EXPANSION = 1024
EXPANSION_FREE = 64 << 20
"""A strided view of more than ``EXPANSION_FREE`` bytes may be at most ``EXPANSION`` times as large as its storage.

Otherwise, with strides of 0, a storage of a few bytes could describe a tensor of terabytes.
"""

PACKED_EXPANSION = 100
"""The most bytes that a gzip file unpacks to, as a multiple of its size; ``EXPANSION_FREE`` are always allowed."""

TREE_NODES = 1_000_000
TREE_DEPTH = 64
"""The most containers that are visited in the search for the state dict, and the most levels of nested containers.

Without limits, a file could nest and share containers without end.
"""

TREE_TENSORS = 1_000_000
"""The most tensors in all modules that were pickled as objects; modules may share submodules."""

COUNTED = 4_000_000
"""The most values of one file, outside the state dict, that are visited to count the tensors among them."""

PIECES = 1_000_000
"""The most pieces of all tensors of one distributed checkpoint. A piece is an archive, which takes 0.1 ms to read."""

PIECE_PICKLES = 16 << 20
PIECE_DATA = 4 << 20
"""The most bytes of the distinct pickles, and of the pieces that are not tensors, in one distributed checkpoint.

Each piece has a pickle; tensors of the same dtype and shape have the same pickle.
"""

EXPORT_PICKLES = 64 << 20
"""The most bytes of all pickles of tensors in one archive of torch.export: about 120 for each tensor.

An archive may have many pickles, and a large pickle takes seconds to read.
"""

ZERO_PIECES = 500_000
"""The most pieces of all parameters on all ranks of ZeRO; each piece takes a TensorInfo in memory."""

RANKS = 16_384
"""The most ranks of one training run, or of the mesh of a tensor."""
RANK_PIECES = 1_000_000
"""The most parts of all tensors in the files of all ranks; each part takes a TensorInfo in memory."""

CARRIED_VALUES = 4_000_000
CARRIED_TEXT = 64 << 20
"""The most values, and characters of text, that are copied into an output besides tensors.

A value that is shared counts each time that it occurs.
"""

EXTRAS = 10_000
"""The most entries other than tensors that are listed for one file."""

KEY_CHARACTERS = 8192
KEY_SEGMENTS = 256
"""The most characters, and segments (parts between dots), of a key. Real keys have under 200 and under 20."""

PATH_CHARACTERS = 64 << 20
"""The most characters of all keys that are built for one file: about 60 for each of a million keys."""

SEGMENTS = 3_000_000
SEGMENTS_EACH = 10
"""The most segments (parts between dots) of all keys together: ``SEGMENTS_EACH`` per key, but at least ``SEGMENTS``.

Each segment may become a line of a tree."""

# Limits of ``ckpt scan``, which must finish in seconds even for files that no reader accepts.

SCAN_OPS = 16_000_000
"""The most instructions of all pickles in one file together; each takes about 0.3 microseconds."""

SCAN_BYTES = 1 << 30
"""The most bytes of all pickles in one file together; a pickle inside another pickle is counted twice."""

SCAN_UNPACKED = 512 << 20
"""The most bytes that all compressed data in one file unpacks to; zlib unpacks about 200 MB per second."""

SCAN_SEARCHED = 2 << 30
"""The most bytes of one file that are searched for further archives, or for records that a directory omits."""

SCAN_DEPTH = 6
"""The most levels of nested files. A compressed tar of archives with pickles that contain pickles has four levels."""

SCAN_MARKS = 100_000
"""The most levels of nesting (open MARKs) in a pickle. Python's pickler stops after some thousands."""

SCAN_NAMES = 1000
"""The most distinct names recorded for one pickle; further names are recorded as one unknown name.

Real files have fewer than a hundred names.
"""

SCAN_NAME_CHARACTERS = 300
"""The most characters recorded of the name of a module or class. Python's longest names have fewer than a hundred."""

SCAN_FOUND = 10_000
"""The most pickles, archives and programs that are listed for one file."""

SCAN_NESTED = 10_000
"""The most strings and byte strings of one pickle that are checked in case they are pickles or archives."""

SCAN_PARTS = 5_000_000
"""The most records and members scanned in all archives of one file together."""

SCAN_TEXT_BYTES = 64 << 20
"""The most bytes of a configuration that is searched for names of classes; the largest tokenizers have about 30 MB."""

SCAN_FILES = 100_000
SCAN_FOLDERS = 64
"""The most files of a folder, and the most levels of nested folders, that are scanned."""
