"""Reads special tokens and added tokens from the files of a tokeniser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from ....errors import ConfigError, SourceError
from ....storage.read.uri import scheme_of
from ....util.text import brief_repr, escape
from ..documents import TOKENIZER
from ..folder import LARGEST, ModelFolder

__all__ = [
    "ADDED",
    "MAP",
    "MORE",
    "NAMES",
    "SPECIAL",
    "WHOLE",
    "added_in",
    "added_tokens",
    "brief_token",
    "is_ctc",
    "local_tokens",
    "named_tokens",
    "object_in",
    "ordinary_tokens",
    "roles_in",
    "text_of",
]

ADDED = "added_tokens.json"
WHOLE = "tokenizer.json"
MAP = "special_tokens_map.json"
MORE = "added_tokens_decoder"
"""A field of tokenizer_config.json with all added tokens.

If it exists, transformers does not read special_tokens_map.json (since 4.34, ``_from_pretrained`` in
https://github.com/huggingface/transformers, tokenization_utils_base.py). Otherwise, special_tokens_map.json overrides
the special tokens in tokenizer_config.json.
"""
LONGEST = 10
"""A number with this many digits, or more, is not read as an id."""
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Fields with special tokens, in the order in which transformers adds tokens that a vocabulary lacks."""
SPECIAL = re.compile(r"▁?(<.*>|\[.*\]|\|.*\||__\w+__|[a-z]{2,3}_[A-Z]\w+|)", re.DOTALL)
"""Matches tokens that look like special or language tokens, not like words."""
UNUSED = ("ForCTC",)
"""Suffixes of the names of CTC classes: they use no special token except the blank, which is their pad_token."""


def local_tokens(folder: ModelFolder) -> tuple[str, ...]:
    """Return the tokens of a folder's tokeniser in the order of their ids; () if they would have to be downloaded."""
    if not folder.vocabulary or any(scheme_of(one.path) for one in folder.tokenizer):
        return ()
    return folder.tokens or ()


def named_tokens(folder: ModelFolder) -> dict[str, str]:
    """Return the special tokens in a tokeniser's files, by role: ``{"eos_token": "</s>"}``."""
    said, named = object_in(folder, TOKENIZER), object_in(folder, MAP)
    by_map = roles_in(named) if MORE not in said else {}
    return {name: token for name in NAMES if (token := by_map.get(name) or roles_in(said).get(name))}


def roles_in(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return the special tokens in the fields of a tokeniser's file, by role: ``{"eos_token": "</s>"}``."""
    found = {name: text_of(fields.get(name)) for name in NAMES}
    return {name: token for name, token in found.items() if token}


def text_of(token: Any) -> str:
    """Return the text of a token, which is a string or an object in JSON files; "" for any other value."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def added_tokens(folder: ModelFolder) -> set[str]:
    """Return the tokens that the files of a tokeniser add to its vocabulary."""
    there = {one.name for one in folder.files}
    return {token for name in (ADDED, TOKENIZER, WHOLE) if name in there for token, _ in added_in(folder, name)}


def added_in(folder: ModelFolder, name: str) -> Iterator[tuple[str, int]]:
    """Yield (token, id) for each token that a file adds; none if it cannot be read, which is reported elsewhere."""
    try:
        document = folder.tokenizer_head if name == WHOLE else json.loads(folder.read(name, LARGEST))
    except (ConfigError, SourceError, ValueError, RecursionError):
        return
    if not isinstance(document, Mapping):
        return
    if name == ADDED:
        yield from ((token, number) for token, number in document.items() if type(number) is int)
    elif name == WHOLE:
        rows = document.get("added_tokens")
        for row in rows if isinstance(rows, list) else ():
            if isinstance(row, dict) and type(row.get("id")) is int and isinstance(row.get("content"), str):
                yield row["content"], row["id"]
    else:
        decoder = document.get(MORE)
        for number, row in decoder.items() if isinstance(decoder, dict) else ():
            token = row.get("content") if isinstance(row, dict) else None
            if isinstance(token, str) and number.isdecimal() and len(number) < LONGEST:
                yield token, int(number)


def ordinary_tokens(folder: ModelFolder) -> list[str]:
    """Return the tokens that tokenizer.json adds with ``"special": false``; [] if it is remote or cannot be read."""
    rows: Any = ()
    with suppress(ConfigError, SourceError, ValueError, RecursionError):
        rows = folder.tokenizer_head.get("added_tokens")
    found = (row for row in rows if isinstance(row, dict)) if isinstance(rows, list) else ()
    return [text for row in found if row.get("special") is False and (text := text_of(row))]


def is_ctc(folder: ModelFolder) -> bool:
    """Return whether a model is a CTC model: its output layer has a row for each token, and its pad_token is the blank.

    The class in config.json decides; if there is none, the class of the tokeniser.
    """
    architectures = folder.config.get("architectures")
    if isinstance(architectures, list) and architectures:
        return str(architectures[0]).endswith(UNUSED)
    return str(object_in(folder, TOKENIZER).get("tokenizer_class")).endswith("CTCTokenizer")


def object_in(folder: ModelFolder, name: str) -> Mapping[str, Any]:
    """Return a small JSON object of a folder; empty if it is missing or cannot be read, which is reported elsewhere."""
    if all(one.name != name for one in folder.files):
        return {}
    with suppress(ConfigError, SourceError, ValueError, RecursionError):
        return folder.document(name)
    return {}


def brief_token(token: str) -> str:
    """Return a token for a message: quoted, escaped and short."""
    return escape(brief_repr(token, 24))
