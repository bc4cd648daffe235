"""Reads the sections of a ``tokenizer.json`` other than its long list of tokens.

The library tokenizers writes ``model``, with all tokens and merges, as the last section: reading stops before it, if
``added_tokens`` came before.
"""

from __future__ import annotations

import json
import re
from typing import Any

__all__ = ["tokenizer_head"]

_SPACE = re.compile(r"[\s,]*")
_COLON = re.compile(r"\s*:\s*")
_LAST, _ADDED = "model", "added_tokens"


def tokenizer_head(data: bytes) -> dict[str, Any]:
    """Return the sections of a tokenizer.json before ``model``; empty if the file cannot be read.

    If ``model`` comes before ``added_tokens``, all other sections are returned.
    """
    try:
        text = data.decode("utf-8").lstrip()
        return _sections(text) if text[:1] == "{" else {}
    except (ValueError, RecursionError):
        return {}


def _sections(text: str) -> dict[str, Any]:
    decoder, found = json.JSONDecoder(), dict[str, Any]()
    at = _end(_SPACE, text, 1)
    while text[at : at + 1] == '"':
        name, at = decoder.raw_decode(text, at)
        if name == _LAST and _ADDED in found:
            break
        found[name], at = decoder.raw_decode(text, _end(_COLON, text, at))
        at = _end(_SPACE, text, at)
    found.pop(_LAST, None)
    return found


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return at if match is None else match.end()
