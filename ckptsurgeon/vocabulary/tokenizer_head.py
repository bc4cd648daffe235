"""Reads the sections of a ``tokenizer.json`` other than its long list of tokens.

The library tokenizers writes ``model``, with all tokens and merges, as the last section: reading stops before it. A
file in which sections may have another order is read as a whole.
"""

from __future__ import annotations

import json
import re
from typing import Any

__all__ = ["tokenizer_head"]

_SPACE = re.compile(r"[\s,]*")
_COLON = re.compile(r"\s*:\s*")
_LAST = "model"
_OTHERS = ("added_tokens", "truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")


def tokenizer_head(data: bytes) -> dict[str, Any]:
    """Return all sections of a tokenizer.json except ``model``; empty if the file cannot be read."""
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
        if name == _LAST and not any(text.find(f'"{one}"', at) >= 0 for one in _OTHERS if one not in found):
            break
        found[name], at = decoder.raw_decode(text, _end(_COLON, text, at))
        at = _end(_SPACE, text, at)
    found.pop(_LAST, None)
    return found


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return at if match is None else match.end()
