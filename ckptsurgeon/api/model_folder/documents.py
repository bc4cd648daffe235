"""Names of the files in a model's folder, and functions that read its JSON files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...errors import ConfigError
from ...storage.json_text import read_json
from ...storage.read.uri import read_small
from ...storage.small_files import stand_in
from ...util.text import escape

__all__ = [
    "BYTE_PAIRS",
    "CHAT",
    "GENERATION",
    "SECOND",
    "TOKENIZER",
    "VOCABULARIES",
    "json_text",
    "parsed_object",
    "read_object",
]

# Names of the files in a model's folder, except the weights.

GENERATION = "generation_config.json"
CHAT = "chat_template.jinja"
TOKENIZER = "tokenizer_config.json"
BYTE_PAIRS = ("tekken.json", "qwen.tiktoken", "tiktoken.model")
VOCABULARIES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    *BYTE_PAIRS,
    "sentencepiece.model",
    "spm.model",
    "spm_char.model",
    "source.spm",
    "dict.txt",
    "vocab-src.json",
    "prophetnet.tokenizer",
    "alphabet.txt",
)
"""Files that may contain a tokeniser's vocabulary; the first that exists is used."""
SECOND = ("dict.txt", "vocab-tgt.json", "target_vocab.json", "entity_vocab.json")
"""Files with further token lists that a tokeniser may have: for the target language, or for entities."""


def json_text(document: Mapping[str, Any]) -> str:
    """Return a JSON object as text in the layout that transformers writes: indented by two spaces."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def read_object(path: str) -> dict[str, Any]:
    """Return the JSON object in a small file; raises SourceError, or ConfigError if the file has no JSON object."""
    return parsed_object(read_small(path), path)


def parsed_object(given: bytes, path: str) -> dict[str, Any]:
    """Return the JSON object in ``given``, the content of the file at ``path``; raises ConfigError if there is none."""
    if why := stand_in(given):
        raise ConfigError(f"{escape(path)} is not valid JSON: {why}.", hint="Correct this file, or fetch it again.")
    try:
        data = read_json(given)
    except ValueError as error:
        raise ConfigError(
            f"{escape(path)} is not valid JSON: {escape(str(error))}.", hint="Correct this file, or fetch it again."
        ) from error
    if not isinstance(data, dict):
        raise ConfigError(f"{escape(path)} is not a JSON object.", hint="Correct this file, or fetch it again.")
    return data
