"""Options that contradict each other or make no sense together, found before any work is done."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, cast

from ..errors import ConfigError
from ..util.registry import discover
from ..util.text import escape

__all__ = ["check_explain", "check_output", "default_output", "mismatch_policies", "numbers", "quoted"]


def mismatch_policies(on_mismatch: Sequence[str], *, ignore: bool) -> list[str]:
    """Return the policies for shapes that differ; raises ConfigError where --ignore-mismatch contradicts one."""
    other = next((text for text in on_mismatch if ignore and "=" not in text and text != "init"), None)
    if other is not None:
        raise ConfigError(
            f"--ignore-mismatch and --on-mismatch {other} contradict each other.",
            hint="Keep one, or scope the other, as in --on-mismatch ctc=init.",
        )
    return [*(["init"] if ignore else []), *on_mismatch]


def numbers(option: str, text: str | None) -> list[float] | None:
    """Return numbers with commas between them, None for none; raises ConfigError for what is no number."""
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} {escape(text or '')} are no numbers.", hint="Write 0.7,0.3.") from None


def check_explain(**writing: object) -> None:
    """Raise ConfigError for --explain with an option of writing, as which it does none."""
    given = [f"--{name.replace('_', '-')}" for name, value in writing.items() if value]
    if given:
        raise ConfigError(f"--explain writes nothing, and {given[0]} is for what is written.", hint="Leave one out.")


def check_output(path: str) -> None:
    """Raise ConfigError for an output that is meant to be stdout."""
    if path == "-":
        raise ConfigError("-o - names no file; nothing is written to stdout.", hint="For a file called - write ./-.")


def _suffixes() -> Mapping[str, tuple[str, ...]]:
    """Return the suffixes of each format that can be written, by the name that --to gives it."""
    formats = cast("dict[str, Any]", discover("ckptsurgeon.formats", "FORMAT"))
    writers = [getattr(found, "writer", None) for found in formats.values()]
    return {writer.name: writer.suffixes for writer in writers if writer is not None}


def default_output(destination: str, to: str | None, max_shard_size: str | None) -> str:
    """Return where to write when -o is left out: beside the destination, under the name that the format has."""
    if "://" in destination:
        raise ConfigError("a remote destination does not say where to write.", hint="Name the output with -o.")
    stem = f"{os.path.splitext(destination.rstrip('/'))[0]}.init"
    if max_shard_size is not None:
        return stem
    return stem + _suffixes().get(to or "safetensors", (".safetensors",))[0]


def quoted(path: str) -> str:
    r"""Return a path as a shell takes it; what does more to a terminal than letters do is spelled, as in $'a\x1b'."""
    if escape(path, len(path)) == path:
        return shlex.quote(path)
    return f"$'{''.join(map(_spelled, path))}'"


def _spelled(char: str) -> str:
    """Return a character as it stands between $' and ' (POSIX.1-2024, 2.2.4)."""
    if char in "'\\":
        return f"\\{char}"
    plain = char.isascii() and char.isprintable()
    return char if plain else "".join(f"\\x{byte:02x}" for byte in os.fsencode(char))
