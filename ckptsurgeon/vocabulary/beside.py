"""Finds the token list that lies beside a model."""

from __future__ import annotations

import os
from dataclasses import replace

from ..errors import ConfigError
from ..text import escape
from .huggingface import read_added
from .read import read_vocabulary
from .vocabulary import Vocabulary

__all__ = ["tokens_beside", "vocabulary_beside"]

NAMES = (
    "tokenizer.json", "vocab.json", "vocab.txt", "tokens.txt", "alphabet.txt", "label_encoder.txt", "tokenizer.model",
    "spiece.model", "sentencepiece.bpe.model", "config.yaml",
)  # fmt: skip
"""By what name, the surest first: tokenizer.json has the added tokens too."""
ADDED = "added_tokens.json"
"""Where tokenisers of transformers have tokens that the other lists of theirs lack."""
LACKING = ("vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


def tokens_beside(model: str) -> str:
    """Return the path of the token list in a model's folder; raises ConfigError where there is none."""
    folder = model if os.path.isdir(model) else os.path.dirname(model)
    for name in NAMES if "://" not in model else ():
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            return path
    raise ConfigError(
        f"there is no token list beside {escape(model)}.",
        hint=f"Name it: --tokens {escape(model)}=LIST. Looked for {', '.join(NAMES)}.",
    )


def vocabulary_beside(path: str) -> Vocabulary:
    """Return the vocabulary in a file, with the tokens that a tokeniser of transformers added to it beside it.

    Raises ConfigError where either cannot be read, or the added ones do not follow it.
    """
    vocabulary = read_vocabulary(path)
    beside = os.path.join(os.path.dirname(path), ADDED)
    if os.path.basename(path) not in LACKING or not os.path.isfile(beside):
        return vocabulary
    more = read_added(beside, vocabulary.tokens)
    return replace(vocabulary, tokens=(*vocabulary.tokens, *more), scores=()) if more else vocabulary
