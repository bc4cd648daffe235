"""Whether a WAV file holds what its header says: what reads sound takes one that was cut short for a shorter one."""

from __future__ import annotations

import os
import struct

from ...storage.small_files import open_file

__all__ = ["missing_bytes"]

OPEN_ENDED = 0x7FFF_0000
"""Sizes from here on stand for an end that was not known when the header was written, into a pipe."""


def missing_bytes(path: str) -> int:
    """Return how many bytes of sound a WAV file lacks, 0 for a whole one and for any other file; raises OSError.

    http://www-mmsp.ece.mcgill.ca/Documents/AudioFormats/WAVE/WAVE.html
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return 0
        place = 12
        while len(chunk := file.read(8)) == 8:
            name, length = struct.unpack("<4sI", chunk)
            place += 8
            if name == b"data":
                return 0 if length >= OPEN_ENDED else max(0, place + length - size)
            place += length + length % 2
            file.seek(place)
    return 0
