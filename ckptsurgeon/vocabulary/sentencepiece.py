"""Reads a sentencepiece model: its pieces and their scores, from the protocol buffer (sentencepiece_model.proto).

``ModelProto.pieces`` is field 1. In each piece, field 1 is the text, field 2 the score, a float, and field 3 the kind.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from ..errors import ConfigError
from .vocabulary import MOST, Marks, Vocabulary, checked

__all__ = ["VOCABULARY", "Piece", "described_pieces", "pieces_in"]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_PIECES, _TEXT, _SCORE, _KIND = 1, 1, 2, 3
_NORMAL = 1


class _SentencePiece:
    marks = (
        Marks(r"(?i:.*\.(?:model|spm))"),
        Marks(content=((re.compile(rb"\A(?=\n).*\n\x05<unk>", re.DOTALL), slice(32)),)),
    )
    """The name of a sentencepiece model, or a piece ``<unk>`` at the beginning."""

    def read(self, name: str, data: bytes) -> Vocabulary:
        """Return the pieces and their scores, in the order of the file.

        Raises ConfigError if the file is not a complete model.
        """
        tokens, scores = [], []
        try:
            for field, value in _fields(data):
                if field == _PIECES and isinstance(value, bytes):
                    piece = dict(_fields(value))
                    text, score = piece.get(_TEXT, b""), piece.get(_SCORE, 0.0)
                    tokens.append(text.decode("utf-8") if isinstance(text, bytes) else "")
                    scores.append(float(score) if isinstance(score, float) else 0.0)
                    if len(tokens) > MOST:
                        break
        except (ValueError, IndexError, struct.error, UnicodeDecodeError):
            raise ConfigError(f"{name} is not a complete sentencepiece model.", hint="Fetch this file again.") from None
        return checked(name, tokens, scores)


def _fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """Yield (number, value) of each field of a protobuf message.

    Raises ValueError, IndexError or struct.error if the message is malformed.
    """
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        field, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield field, value
        elif kind == _BYTES:
            length, at = _varint(data, at)
            if at + length > len(data):
                raise ValueError("a field is truncated")
            yield field, data[at : at + length]
            at += length
        elif kind == _FIXED32:
            yield field, float(struct.unpack_from("<f", data, at)[0])
            at += 4
        elif kind == _FIXED64:
            at += 8
        else:
            raise ValueError(f"a field of the model has the unknown wire type {kind}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("an integer (varint) in the model has more than 10 bytes")


def pieces_in(data: bytes) -> tuple[str, ...] | None:
    """Return the pieces of a sentencepiece model; None if it has none, or cannot be parsed, as after truncation."""
    try:
        found = tuple(
            _text_of(value) for field, value in _fields(data) if field == _PIECES and isinstance(value, bytes)
        )
    except (ValueError, IndexError, struct.error):
        return None
    return found or None


class Piece(NamedTuple):
    """A piece of a sentencepiece model; ``kind`` is the number of its type: 1 normal, 3 control, 6 a byte."""

    text: str
    score: float
    kind: int


def described_pieces(name: str, data: bytes) -> list[Piece]:
    """Return the pieces of a sentencepiece model with their scores and kinds; raises ConfigError for any other file."""
    found = []
    try:
        for field, value in _fields(data):
            if field == _PIECES and isinstance(value, bytes):
                piece = dict(_fields(value))
                text, score, kind = piece.get(_TEXT, b""), piece.get(_SCORE, 0.0), piece.get(_KIND, _NORMAL)
                if not isinstance(text, bytes) or not isinstance(score, float) or not isinstance(kind, int):
                    raise ValueError("a piece is malformed")
                found.append(Piece(text.decode("utf-8"), score, kind))
    except (ValueError, IndexError, struct.error):
        raise ConfigError(f"{name} is not a complete sentencepiece model.", hint="Fetch this file again.") from None
    return found


def _text_of(piece: bytes) -> str:
    if piece[:1] == b"\x0a" and len(piece) > 1 and piece[1] < 0x80 and len(piece) >= 2 + piece[1]:
        # A fast path for a short text in the first field, because there are hundreds of thousands of pieces.
        return piece[2 : 2 + piece[1]].decode("utf-8")
    text = next((value for field, value in _fields(piece) if field == _TEXT), b"")
    return text.decode("utf-8") if isinstance(text, bytes) else ""


VOCABULARY = _SentencePiece()
