"""Finds out what kind of file a vocabulary is in, and reads it."""

from __future__ import annotations

import os
from typing import cast

from ..errors import ConfigError
from ..storage.small_files import read_file
from ..util.did_you_mean import did_you_mean
from ..util.registry import discover
from ..util.text import escape
from . import plain
from .vocabulary import Reader, Vocabulary, checked

__all__ = ["BYTES", "VOCABULARY_BYTES", "read_vocabulary", "vocabulary_of"]

BYTES = "bytes"
"""Stands for Coqui STT's bytes output mode: label n is the byte n + 1, and the blank comes last."""
VOCABULARY_BYTES = 256 << 20
"""More than any vocabulary has, with the merges of its tokeniser."""


def read_vocabulary(path: str) -> Vocabulary:
    """Read the vocabulary in a file, of whatever toolkit; ``bytes`` where no such file is means Coqui's bytes mode.

    Raises ConfigError where it cannot be read, is malformed or holds a token twice.
    """
    if path == BYTES and not os.path.exists(path):
        return checked(BYTES, [*(f"<0x{byte:02X}>" for byte in range(1, 256)), "<blank>"])
    try:
        data = read_file(path, VOCABULARY_BYTES)
    except OSError as error:
        said = f"the vocabulary {escape(path)} cannot be read: {error.strerror}."
        raise ConfigError(said, hint=did_you_mean(path)) from error
    return vocabulary_of(os.path.basename(path), data)


def vocabulary_of(filename: str, data: bytes) -> Vocabulary:
    """Return the vocabulary that a file holds; raises ConfigError where it is malformed."""
    name = escape(filename)
    kinds = cast("dict[str, Reader]", discover("ckptsurgeon.vocabulary", "VOCABULARY"))
    for reader in kinds.values():
        if reader is not plain.VOCABULARY and reader.sniff(filename, data):
            return reader.read(name, data)
    return plain.VOCABULARY.read(name, data)
