"""Reads byte-pair vocabularies: files of tiktoken, with ``BASE64 RANK`` on each line, and Mistral's ``tekken.json``.

Their tokens are bytes. They are returned as ``tokenizer.json`` writes them, with a printable character for each byte
(``bytes_to_unicode`` of GPT-2, https://github.com/openai/gpt-2/blob/master/src/encoder.py). A file of tiktoken does not
list the special tokens. In ``tekken.json`` the special tokens come first.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Sequence
from operator import itemgetter
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
            return checked(name, _in_order([_entry(*line) for line in enumerate(data.splitlines(), 1) if line[1]]))
        except KeyError as error:
            why = f"it has no field {error}"
        except ValueError as error:
            why = str(error)
        except (TypeError, AttributeError):
            why = "a field has a value of another type than in a file of Mistral"
        raise ConfigError(f"{name} is not a valid byte-pair vocabulary: {why}.")


def _entry(place: int, line: bytes) -> tuple[int, bytes]:
    """Return the rank and the token of a line; raises ValueError for any other line."""
    fields = line.split()
    if len(fields) != 2 or not fields[1].isdigit() or len(fields[1]) > 9:
        raise ValueError(f"line {place} is not a token in Base64, a space and a rank")
    return int(fields[1]), fields[0]


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
    if len(rows) < size - special:
        raise ValueError(f"it lists {len(rows) + special} tokens, fewer than its vocabulary size {size}")
    return [*(named[rank] for rank in range(special)), *_in_order(rows)[: size - special]]


def _in_order(rows: Sequence[tuple[int, Any]]) -> list[str]:
    """Return the tokens sorted by rank; raises ValueError or TypeError if the ranks are not 0, 1, 2 and so on."""
    if sorted(rank for rank, _ in rows) != list(range(len(rows))):
        raise ValueError("the ranks of the tokens are not 0, 1, 2 and so on")
    return [_text(*row) for row in sorted(rows, key=itemgetter(0))]


def _text(rank: int, token: Any) -> str:
    try:
        return b64decode(token).decode("latin-1").translate(_SIGNS)
    except (ValueError, TypeError):
        raise ValueError(f"the token with the rank {rank} is not Base64") from None


VOCABULARY = _BytePairs()
