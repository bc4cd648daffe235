"""Formats on disk, one file each: how to know one, read its header, lay one out for writing."""

from ._bounds import most_segments
from ._choosing import has_weights
from ._crc32c import crc32c
from ._header import Beside, FileHeader, Format, Header, Layout, OutTensor, Writer
from ._json import parse_json
from ._numpy import Array
from ._opaque import ARRAY, META, NESTED, QUANTISED, SPARSE
from ._open import read_header, writers
from ._rebuild import rebuilders
from ._safetensors_writer import RECIPE_KEY
from ._seal import UNSEALED, seal, seal_of
from ._shard_names import shards_of
from ._sharded_writer import RECIPE_FILE, folder_digest, split_shards
from ._slice import FileSlice
from ._tar import pax_records
from ._torch import STORAGE_DTYPES
from ._values import Group, Name, Opaque, Unhashable, key_text
from ._zip import Archive, Entry, read_archive

__all__ = [
    "ARRAY",
    "META",
    "NESTED",
    "QUANTISED",
    "RECIPE_FILE",
    "RECIPE_KEY",
    "SPARSE",
    "STORAGE_DTYPES",
    "UNSEALED",
    "Archive",
    "Array",
    "Beside",
    "Entry",
    "FileHeader",
    "FileSlice",
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
    "has_weights",
    "key_text",
    "most_segments",
    "parse_json",
    "pax_records",
    "read_archive",
    "read_header",
    "rebuilders",
    "seal",
    "seal_of",
    "shards_of",
    "split_shards",
    "writers",
]
