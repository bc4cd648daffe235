"""Finds out what kind of file a vocabulary is in, and reads it."""

from __future__ import annotations

import os
from typing import cast

from ..errors import ConfigError
from ..registry import discover
from ..text import escape
from . import plain
from .vocabulary import Reader, Vocabulary, checked

__all__ = ["BYTES", "read_vocabulary"]

BYTES = "bytes"
"""Stands for Coqui STT's bytes output mode: label n is the byte n + 1, and the blank comes last."""
_LARGEST = 256 << 20


def read_vocabulary(path: str) -> Vocabulary:
    """Read the vocabulary in a file, of whatever toolkit; ``bytes`` where no such file is means Coqui's bytes mode.

    Raises ConfigError where it cannot be read, is malformed or holds a token twice.
    """
    if path == BYTES and not os.path.exists(path):
        return checked(BYTES, [*(f"<0x{byte:02X}>" for byte in range(1, 256)), "<blank>"])
    name = escape(os.path.basename(path))
    try:
        if not os.path.isfile(path) or os.path.getsize(path) > _LARGEST:
            why = "it is too large" if os.path.isfile(path) else "it is no file"
            raise ConfigError(f"the vocabulary {escape(path)} cannot be read: {why}.")
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise ConfigError(f"the vocabulary {escape(path)} cannot be read: {error.strerror}.") from error
    kinds = cast("dict[str, Reader]", discover("ckptsurgeon.vocabulary", "VOCABULARY"))
    for reader in kinds.values():
        if reader is not plain.VOCABULARY and reader.sniff(os.path.basename(path), data):
            return reader.read(name, data)
    return plain.VOCABULARY.read(name, data)
