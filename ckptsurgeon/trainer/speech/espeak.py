"""The synthesiser espeak-ng, from the package espeakng-loader."""

from __future__ import annotations

import difflib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import IO

from ...errors import ConfigError
from ...util.text import escape
from ..config.imports import require_package

__all__ = ["Utterance", "check_language", "speak"]


@dataclass(frozen=True)
class Utterance:
    """A text to speak, with its espeak-ng voice (``en-us+f2``), speed in words a minute, and pitch (0 to 100)."""

    text: str
    voice: str
    speed: int
    pitch: int


def check_language(lang: str) -> None:
    """Raise ConfigError if espeak-ng does not speak a language; the hint proposes similar language codes."""
    data = Path(require_package("espeakng_loader").get_data_path())
    known = sorted(path.name.lower() for path in (data / "lang").rglob("*") if path.is_file())
    if lang.lower() not in known:
        near = difflib.get_close_matches(lang.lower(), known, n=3)
        hint = f"Did you mean {' or '.join(near)}?" if near else "Write its code: en, or with the variety en-us."
        raise ConfigError(f"espeak-ng does not speak the language {escape(lang)}.", hint=hint)


def speak(utterances: Sequence[Utterance]) -> Iterator[tuple[int, bytes]]:
    """Yield the sampling rate and the samples (16 bits, one channel) of each utterance.

    A new process speaks all of them, so that the same list makes the same bytes. Raises ConfigError if espeak-ng fails.
    """
    loader = require_package("espeakng_loader")
    command = [sys.executable, "-P", os.path.join(os.path.dirname(__file__), "_child.py")]
    command += [loader.get_library_path(), loader.get_data_path()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        try:
            child.stdin.write(json.dumps([astuple(one) for one in utterances]).encode())
            child.stdin.close()
            rate = _number(child.stdout)
            for _ in utterances:
                yield rate, _exactly(child.stdout, _number(child.stdout))
        except (EOFError, BrokenPipeError):
            why = child.stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise ConfigError(
                f"espeak-ng cannot make the speech: {escape(why) or 'it ended without a message'}."
            ) from None
        finally:
            child.kill()


def _number(stream: IO[bytes]) -> int:
    found: int = struct.unpack("<I", _exactly(stream, 4))[0]
    return found


def _exactly(stream: IO[bytes], nbytes: int) -> bytes:
    data = stream.read(nbytes)
    if len(data) < nbytes:
        raise EOFError
    return data
