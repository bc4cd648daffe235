"""Reads the model files of whisper.cpp (``ggml-base.bin``): hyper-parameters, and tensors by OpenAI's names.

Three programs write these files: https://github.com/ggml-org/whisper.cpp/blob/master/models/convert-pt-to-ggml.py,
``models/convert-h5-to-ggml.py`` and, for quantised models, ``examples/common-ggml.cpp``. ``src/whisper.cpp`` reads them
(``whisper_model_load``). All numbers have 32 bits and are little-endian. A file begins with the magic number, 11
hyper-parameters, the shape of the mel filters, the filters, the number of tokens, and the length and the text of each
token. The tensors follow up to the end of the file: number of dimensions, length of the name, type, dimensions from the
last to the first, name, values.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from ...errors import FormatError, UnsafeError
from ...storage.read.base import File, Source
from ...tensors.dtypes import BLOCKS
from ...tensors.info import Storage, TensorInfo
from ...util.note_kind import NoteKind
from ...util.notes import Note
from ...util.text import count, escape
from ..base import limits
from ..base.header import FilePrint, Header, digest_outside, naming
from ..base.window import Window
from ..ggml.cursor import cut_short
from ..ggml.types import stored_shape, tensor_dtype

__all__ = ["FORMAT"]

_MAGIC, _BIG_ENDIAN = b"lmgg", b"ggml"
"""The number 0x67676d6c in little-endian and in big-endian."""
_SIZES = (
    "n_vocab", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer", "n_text_ctx", "n_text_state",
    "n_text_head", "n_text_layer", "n_mels",
)  # fmt: skip
"""The hyper-parameters in their order in the file; the type of most matrices (``ftype``) follows them."""
_FIXED = 4 * (1 + len(_SIZES) + 1 + 2)
"""The size in bytes of the part that all files have: magic number, hyper-parameters, shape of the mel filters."""
_VERSION_FACTOR = 1000
"""``ftype`` is the number of a type plus this factor times the version of ggml's quantised types."""
_VERSION = 2
_UNCHANGED = ("q5_0", "q5_1")
"""The types whose blocks did not change after version 1, https://github.com/ggml-org/llama.cpp/pull/1508.

Quantised models of May 2023 have version 1. Blocks of version 0 have their codes in another order
(https://github.com/ggml-org/llama.cpp/pull/1405).
"""
_COLUMNS = ("encoder.conv1.bias", "encoder.conv2.bias")
"""Biases that a file stores with the shape (n, 1), since ggml adds them to a matrix; in OpenAI's package it is (n)."""
_DIMENSIONS = 4
_NAME_BYTES = 1 << 16
_HEADER = 1 << 10
"""How many bytes are read at once for the header of a tensor; the values after it are not read."""


class _Start(NamedTuple):
    """The content of a file before its tensors: ``metadata``, and ``version``, the version of the quantised types.

    ``tokens`` is the number of tokens, and ``end`` the offset at which the tensors begin.
    """

    metadata: dict[str, str]
    version: int
    tokens: int
    end: int


class _WhisperCpp:
    name = "whisper.cpp"
    magic = (_MAGIC, _BIG_ENDIAN)

    def sniff(self, source: Source, head: bytes) -> bool:
        """Return whether the file begins like a model of whisper.cpp; the magic number is not enough.

        Other programs write the same magic number. But in a model of Whisper, encoder and decoder have the same width,
        and the number of mel filters fits the encoder. A little-endian file that is too short for this check counts as
        a model: reading it raises the error for a truncated file.
        """
        if not isinstance(source, File) or not head.startswith(self.magic):
            return False
        if len(head) < _FIXED:
            return head.startswith(_MAGIC)
        order = "<" if head.startswith(_MAGIC) else ">"
        *sizes, _, filters, _ = struct.unpack_from(f"{order}{len(_SIZES) + 3}i", head, 4)
        said = dict(zip(_SIZES, sizes, strict=True))
        return bool(said["n_audio_state"] == said["n_text_state"] and said["n_mels"] == filters)

    def read(self, source: Source, name: str = "") -> Header:
        """Return the header of the model; raises FormatError or UnsafeError if the file breaks a rule of the format."""
        assert isinstance(source, File)
        with naming(source):
            start = _start(source)
            tree = dict[str, TensorInfo]()
            for key, info in _tensors(source, start, name):
                if key in tree:
                    raise FormatError(f"the file has two tensors with the name {escape(key)}.", rule="duplicate key")
                if len(tree) == limits.TENSORS:
                    raise UnsafeError(f"the file has more than {limits.TENSORS:,} tensors.", rule="counts")
                tree[key] = info
            if not tree:
                raise FormatError(
                    "the file has no tensors, like the files for-tests-ggml-*.bin of whisper.cpp's own tests.",
                    hint="Pass a model, such as ggml-base.bin.",
                    rule="no state dict",
                )
            places = [one.storage for one in tree.values() if one.storage is not None]
            digest = digest_outside(source, [(one.offset, one.offset + one.nbytes) for one in places])
        left = f"its mel filters and its {count(start.tokens, 'token')}"
        return Header(
            format=self.name,
            tree=tree,
            files=(FilePrint.of(source, digest, name),),
            handles={name: source},
            metadata=start.metadata,
            notes=(
                f"read the tensors and the sizes of a model of whisper.cpp, not {left}",
                *_size_notes(start.metadata, tree),
            ),
        )


_TENSORS, _IN_ENCODER_LAYER, _IN_DECODER_LAYER = 11, 15, 24
"""The number of tensors outside the layers, in each layer of the encoder, and in each layer of the decoder."""
_ROWS = {
    "n_vocab": "decoder.token_embedding.weight", "n_audio_ctx": "encoder.positional_embedding",
    "n_text_ctx": "decoder.positional_embedding",
}  # fmt: skip
"""{hyper-parameter: the tensor whose number of rows it gives}"""


def _size_notes(metadata: Mapping[str, str], tree: Mapping[str, TensorInfo]) -> Iterator[str]:
    """Yield notes on hyper-parameters that contradict the tensors, as in a file that was cut between two tensors."""
    layers = [int(metadata[f"n_{side}_layer"]) for side in ("audio", "text")]
    wanted = _TENSORS + _IN_ENCODER_LAYER * layers[0] + _IN_DECODER_LAYER * layers[1]
    if len(tree) != wanted:
        yield Note(
            NoteKind.INCOMPLETE_FILE if len(tree) < wanted else NoteKind.METADATA,
            f"a model of {layers[0]} and {layers[1]} layers, as its hyper-parameters say, has {wanted} tensors, but "
            f"this file has {len(tree)}{': perhaps it was cut short' if len(tree) < wanted else ''}",
        )
    for field, key in _ROWS.items():
        rows = tree[key].shape[0] if key in tree and tree[key].shape else 0
        if key in tree and rows != int(metadata[field]):
            yield Note(NoteKind.METADATA, f"{field} is {metadata[field]}, but {key} has {count(rows, 'row')}")


# The part before the tensors.


def _start(file: File) -> _Start:
    """Return the content of a file before its tensors; raises FormatError or UnsafeError if it breaks a rule."""
    if file.size < _FIXED:
        raise cut_short("its hyper-parameters")
    head = file.read(0, _FIXED)
    if head.startswith(_BIG_ENDIAN):
        raise FormatError(
            "this is a model of whisper.cpp whose numbers are big-endian.",
            hint="Convert the model again on a little-endian computer: whisper.cpp's files are little-endian.",
            rule="byte order",
        )
    *sizes, ftype, mels, bins = struct.unpack_from(f"<{len(_SIZES) + 3}i", head, 4)
    for key, value in zip((*_SIZES, "n_fft of the mel filters"), (*sizes, bins), strict=True):
        if value <= 0:
            raise FormatError(f"the field {key} is {value}, not a positive number.", rule="whisper sizes")
    if ftype < 0:
        raise FormatError(f"the field ftype is {ftype}, but must be 0 or more.", rule="whisper sizes")
    number, end = _past_tokens(file, _FIXED + 4 * mels * bins)
    version, kind = divmod(ftype, _VERSION_FACTOR)
    metadata = {key: str(value) for key, value in zip(_SIZES, sizes, strict=True)}
    metadata |= {"ftype": str(kind), "qntvr": str(version), "mel_filters": f"[{mels}, {bins}]", "tokens": str(number)}
    return _Start(metadata, version, number, end)


def _past_tokens(file: File, begin: int) -> tuple[int, int]:
    """Return the number of tokens, and the offset after the last token; the number is stored at ``begin``.

    Raises FormatError if the file is truncated, UnsafeError if the tokens are too many or too long.
    """
    if begin + 4 > file.size:
        raise cut_short("its mel filters")
    if begin > limits.GGUF_HEADER_BYTES:
        raise UnsafeError(f"the mel filters have more than {limits.GGUF_HEADER_BYTES >> 20} MB.", rule="header size")
    window = Window(file)
    number = int.from_bytes(window.read(begin, 4), "little")
    if number > limits.WHISPER_TOKENS:
        raise UnsafeError(
            f"the file has {number:,} tokens, more than the limit of {limits.WHISPER_TOKENS:,}.", rule="counts"
        )
    at = begin + 4
    for place in range(number):
        if at + 4 > file.size:
            raise cut_short("its tokens")
        length = int.from_bytes(window.read(at, 4), "little")
        if at + 4 + length > file.size:
            raise cut_short("its tokens")
        if length > limits.WHISPER_TOKEN_BYTES:
            raise UnsafeError(
                f"token {place} has {length:,} bytes, more than the limit of {limits.WHISPER_TOKEN_BYTES:,}.",
                rule="token size",
            )
        at += 4 + length
    return number, at


# The tensors.


def _tensors(file: File, start: _Start, name: str) -> Iterator[tuple[str, TensorInfo]]:
    """Yield the key and the TensorInfo of each tensor; ``name`` is the path of the file within the checkpoint.

    Raises FormatError if a header is not valid.
    """
    window, at, place = Window(file, _HEADER), start.end, 0
    while at < file.size:
        place += 1
        where = f"the header of tensor {place}"
        dims, length, number = struct.unpack("<3i", _read(window, at, 12, where))
        if not 0 <= dims <= _DIMENSIONS:
            raise FormatError(f"tensor {place} has {dims} dimensions, not 0 to {_DIMENSIONS}.", rule="dimensions")
        if not 0 <= length <= _NAME_BYTES:
            raise FormatError(
                f"the name of tensor {place} has {length} bytes, not 0 to {_NAME_BYTES}.", rule="name length"
            )
        raw = _read(window, at + 12, 4 * dims + length, where)
        shape = tuple(reversed(struct.unpack_from(f"<{dims}i", raw)))
        key = _text(raw[4 * dims :], place)
        info = _info(key, tensor_dtype(key, number), shape, start.version)
        at += 12 + len(raw)
        if at + info.nbytes > file.size:
            raise cut_short(f"the tensor {escape(key)}")
        yield key, replace(info, storage=Storage(name, at, info.nbytes, name=file.name))
        at += info.nbytes


def _read(window: Window, at: int, nbytes: int, where: str) -> bytes:
    if at + nbytes > window.file.size:
        raise cut_short(where)
    return window.read(at, nbytes)


def _text(raw: bytes, place: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise FormatError(f"the name of tensor {place} is not UTF-8.", rule="name") from None


def _info(key: str, dtype: str, shape: tuple[int, ...], version: int) -> TensorInfo:
    """Return the header of a tensor without its storage; raises FormatError for invalid sizes and unknown types."""
    if min(shape, default=0) < 0:
        raise FormatError(
            f"the tensor {escape(key)} has the shape {list(shape)}: a size is negative.", rule="tensor size"
        )
    if dtype in BLOCKS and version != _VERSION and not (version == 1 and dtype in _UNCHANGED):
        raise FormatError(
            f"the tensor {escape(key)} is {dtype} of version {version} of ggml's quantised types; only version "
            f"{_VERSION} can be read, or version 1 of {' and '.join(_UNCHANGED)}.",
            hint="Quantise the float16 model again, with a newer whisper.cpp." if version < _VERSION else "",
            rule="quantisation version",
        )
    if key in _COLUMNS and len(shape) == 2 and shape[1] == 1 and dtype not in BLOCKS:
        shape = shape[:1]
    return TensorInfo(dtype, stored_shape(key, dtype, shape))


FORMAT = _WhisperCpp()
