"""Names of files in a model's folder, and JSON documents in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...errors import ConfigError
from ...storage.json_text import read_json
from ...storage.read.uri import read_small
from ...util.text import escape

__all__ = [
    "BYTE_PAIRS",
    "CHAT",
    "GENERATION",
    "OF_PEOPLE",
    "SECOND",
    "TOKENIZER",
    "VOCABULARIES",
    "json_text",
    "parsed_object",
    "read_object",
]

# Names of the files beside the weights of a model.

GENERATION = "generation_config.json"
OF_PEOPLE = ("readme", "license", "licence", "copying", "notice", "use_policy")
"""What names of files for people begin with: they speak of the model as it was."""
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
)
"""Where a tokeniser's vocabulary is, the first that is there."""
SECOND = ("dict.txt", "vocab-tgt.json", "target_vocab.json", "entity_vocab.json")
"""Lists of tokens that a tokeniser may have beside its vocabulary: of the other language, of entities."""


def json_text(document: Mapping[str, Any]) -> str:
    """Return a document as transformers writes it."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def read_object(path: str) -> dict[str, Any]:
    """Return the JSON object in a small file; raises SourceError, or ConfigError if it is not one."""
    return parsed_object(read_small(path), path)


def parsed_object(given: bytes, path: str) -> dict[str, Any]:
    """Return the JSON object that bytes read from ``path`` spell; raises ConfigError if they do not."""
    try:
        data = read_json(given)
    except ValueError as error:
        raise ConfigError(f"{escape(path)} is not valid JSON: {escape(str(error))}.") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{escape(path)} is not a JSON object.")
    return data
