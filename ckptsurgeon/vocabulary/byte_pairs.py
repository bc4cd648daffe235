"""Reads byte-pair vocabularies: files of tiktoken, with ``BASE64 RANK`` on each line, and Mistral's ``tekken.json``.

Their tokens are bytes. They are returned as ``tokenizer.json`` writes them, with a printable character for each byte
(``bytes_to_unicode`` of GPT-2, https://github.com/openai/gpt-2/blob/master/src/encoder.py). A file of tiktoken does not
list the special tokens. In ``tekken.json`` the special tokens come first.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Iterable
from typing import Any

from ..errors import ConfigError
from ..storage.json_text import read_json
from .vocabulary import ALL, Marks, Vocabulary, checked

__all__ = ["VOCABULARY"]

TEKKEN = "tekken.json"
_LINE = re.compile(rb"\A[A-Za-z0-9+/]+={0,2} [0-9]+\r?\n")
_PRINTED = (*range(33, 127), *range(161, 173), *range(174, 256))
_SIGNS = {byte: 256 + place for place, byte in enumerate(sorted({*range(256)} - {*_PRINTED}))}


class _BytePairs:
    marks = (
        Marks(f"(?i:{re.escape(TEKKEN)})"),
        Marks(r"(?i:.*(?:\.tiktoken|tiktoken\.model|tokenizer\.model))", ((_LINE, ALL),)),
    )

    def read(self, name: str, data: bytes) -> Vocabulary:
        """Return the tokens in the order of their rows; raises ConfigError if the file is malformed or incomplete."""
        try:
            if name.lower() == TEKKEN:
                return checked(name, _tekken(read_json(data)))
            return checked(name, _in_order([(int(rank), text) for text, rank in map(bytes.split, data.splitlines())]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            why = f"it has no field {error}" if isinstance(error, KeyError) else str(error)
            raise ConfigError(f"{name} is not a valid byte-pair vocabulary: {why}.") from None


def _tekken(document: Any) -> list[str]:
    """Return the special tokens and then the other tokens, up to the vocabulary size in the file.

    Raises ValueError, KeyError or TypeError if the file is malformed.
    """
    config = document["config"]
    special, size = config["default_num_special_tokens"], config["default_vocab_size"]
    named = {row["rank"]: row["token_str"] for row in document.get("special_tokens") or ()}
    if not all(isinstance(named.get(rank), str) for rank in range(special)):
        raise ValueError("the file does not list all special tokens")
    rows = [(row["rank"], row["token_bytes"]) for row in document["vocab"]]
    return [*(named[rank] for rank in range(special)), *_in_order(rows)[: size - special]]


def _in_order(rows: Iterable[tuple[int, Any]]) -> list[str]:
    """Return the tokens sorted by rank; raises ValueError or TypeError if the ranks are not 0, 1, 2 and so on."""
    found = dict(rows)
    if sorted(found) != list(range(len(found))):
        raise ValueError("the ranks of the tokens are not 0, 1, 2 and so on")
    return [b64decode(found[rank]).decode("latin-1").translate(_SIGNS) for rank in range(len(found))]


VOCABULARY = _BytePairs()
