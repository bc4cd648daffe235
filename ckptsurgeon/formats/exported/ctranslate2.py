"""Reads CTranslate2's ``model.bin``, the file of faster-whisper and of OPUS and NLLB models that were converted for it.

Follows ``_serialize`` in
https://github.com/OpenNMT/CTranslate2/blob/v4.8.1/python/ctranslate2/specs/model_spec.py and ``Model::load`` in
https://github.com/OpenNMT/CTranslate2/blob/v4.8.1/src/models/model.cc. Numbers are little-endian, and variables follow
each other without alignment. Keys are the names of the variables: ``encoder/layer_0/ffn/linear_0/weight``.

A variable without dimensions is a setting of the network (``encoder/num_heads``) and becomes an entry of the metadata,
unless it is the scale of an int16 weight. An alias is a second name of a variable, and of its scale: both keys are one
tensor. Binary versions 4 to 6 have the same fields: version 5 rounds differently when it quantises, and version 6
stores settings in config.json. Version 3 stores the size of an element instead of a type. Version 2 has no aliases, and
version 1 has no name of a specification.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping

from ...storage.read.base import File, Source
from ...tensors.info import Storage, TensorInfo
from ...util.text import count, listing
from ..base.header import FilePrint, Header, naming
from ..ggml.values import FLOAT32, text
from ._ctranslate2_variables import Reader, Variable, is_tensor

__all__ = ["FORMAT"]

_HEAD = re.compile(rb"([\x02-\xff])\0\0\0([\x02-\xff])\0([A-Za-z]\w*)\0")
"""Matches a version from 2 to 255, the length of the specification's name with its zero byte, and the name itself."""
_FORMATS = {"float32": "<f", "int8": "<b", "int16": "<h", "int32": "<i", "float16": "<e"}


class _CTranslate2:
    name = "ctranslate2"
    magic = ()  # the version and the length in front of the name differ from file to file

    def sniff(self, source: Source, head: bytes) -> bool:
        """Return whether the file begins with a version and the name of a specification, as ``WhisperSpec``."""
        found = _HEAD.match(head)
        return isinstance(source, File) and found is not None and len(found[3]) + 1 == found[2][0]

    def read(self, source: Source, name: str = "") -> Header:
        """Return the header of the file; raises FormatError or UnsafeError if it is not valid."""
        assert isinstance(source, File)
        with naming(source):
            reader = Reader(source)
            settings = reader.specification()
            variables = dict(reader.variables())
            aliases = dict(reader.aliases(variables))
            reader.end()
        storage = Storage(name, 0, source.size, name=source.name)
        kept = {key: one for key, one in variables.items() if is_tensor(key, one, variables)}
        settings |= {key: _said(one) for key, one in variables.items() if key not in kept}
        tree = {key: TensorInfo(one.dtype, one.shape, storage, one.begin) for key, one in kept.items()}
        return Header(
            format=self.name,
            tree={**tree, **{alias: tree[key] for alias, key in aliases.items()}},
            files=(FilePrint.of(source, reader.digest.hexdigest(), name),),
            handles={name: source},
            metadata=settings,
            notes=tuple(_notes(tree)),
        )


def _said(one: Variable) -> str:
    if one.dtype not in _FORMATS:  # struct has no bfloat16: it is the upper half of a float32
        return text(FLOAT32, struct.unpack("<f", b"\0\0" + one.raw)[0])
    value = struct.unpack(_FORMATS[one.dtype], one.raw)[0]
    return text(FLOAT32, value) if isinstance(value, float) else str(value)


def _notes(tree: Mapping[str, TensorInfo]) -> Iterator[str]:
    bare = [
        key
        for key, info in tree.items()
        if key.endswith("/weight") and info.dtype in ("int8", "int16", "int32") and f"{key}_scale" not in tree
    ]
    if bare:
        yield (
            f"{count(len(bare), 'weight')} of integers without a scale, which ckpt copies but does not decode "
            f"(CTranslate2 divides int16 weights by 1000): {listing(bare)}"
        )


FORMAT = _CTranslate2()
