"""Token lists as files that are read back as they were."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from ..errors import ConfigError
from . import huggingface, plain

__all__ = ["token_file", "with_added_tokens"]

PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
"""How an added token is described that nobody describes; as transformers does it."""


def token_file(tokens: Sequence[str]) -> tuple[str, str]:
    """Return the name and the text of a file with these tokens: one a line, or JSON where lines cannot spell one."""
    text = "".join(f"{token}\n" for token in tokens)
    try:
        if plain.VOCABULARY.read("tokens.txt", text.encode()).tokens == tuple(tokens):
            return "tokens.txt", text
    except (ConfigError, UnicodeEncodeError):
        pass
    numbers = {token: number for number, token in enumerate(tokens)}
    return "vocab.json", json.dumps(numbers, indent=0) + "\n"


def with_added_tokens(
    base: bytes, others: Sequence[bytes], tokens: Sequence[str], asked: Collection[str] = ()
) -> str | None:
    """Return a tokenizer.json with further tokens, None where that would not be exactly right.

    It is right for tokens that are added ones where they come from (``<|im_start|>``), matched before anything else and
    part of no word, and are described alike by all; a word or a piece of one is found by the model itself, with merges
    or scores, and cannot be added. Those that are ``asked`` for are added, whatever they are elsewhere.
    """
    document = json.loads(base)
    number = len(huggingface.VOCABULARY.read("tokenizer.json", base).tokens)
    found: dict[str, dict[str, Any]] = {}
    for row in (row for other in others for row in json.loads(other).get("added_tokens") or ()):
        said = {name: value for name, value in row.items() if name != "id"}
        if found.setdefault(str(row.get("content")), said) != said:
            return None
    if any(token not in found and token not in asked for token in tokens[number:]):
        return None
    rows = [
        {"id": number + place, **found.get(token, {"content": token, **PLAIN})}
        for place, token in enumerate(tokens[number:])
    ]
    document["added_tokens"] = [*(document.get("added_tokens") or ()), *rows]
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
