"""Formats on disk, one file each: how to know one, read its header, lay one out for writing."""

from ._crc32c import crc32c
from ._header import Beside, FileHeader, Format, Header, Layout, OutTensor, Writer
from ._numpy import Array
from ._opaque import ARRAY, META, QUANTISED, SPARSE
from ._open import read_header, writers
from ._safetensors_writer import RECIPE_KEY
from ._seal import UNSEALED, seal, seal_of
from ._sharded_writer import RECIPE_FILE, folder_digest, split_shards
from ._values import Group, Name, Opaque, Unhashable, key_text

__all__ = [
    "ARRAY",
    "META",
    "QUANTISED",
    "RECIPE_FILE",
    "RECIPE_KEY",
    "SPARSE",
    "UNSEALED",
    "Array",
    "Beside",
    "FileHeader",
    "Format",
    "Group",
    "Header",
    "Layout",
    "Name",
    "Opaque",
    "OutTensor",
    "Unhashable",
    "Writer",
    "crc32c",
    "folder_digest",
    "key_text",
    "read_header",
    "seal",
    "seal_of",
    "split_shards",
    "writers",
]
