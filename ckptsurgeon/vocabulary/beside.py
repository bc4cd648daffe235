"""Finds the token list that lies beside a model."""

from __future__ import annotations

import os

from ..errors import ConfigError
from ..text import escape

__all__ = ["tokens_beside"]

NAMES = (
    "tokenizer.json", "vocab.json", "vocab.txt", "tokens.txt", "alphabet.txt", "label_encoder.txt", "tokenizer.model",
    "spiece.model", "sentencepiece.bpe.model", "config.yaml",
)  # fmt: skip
"""By what name, the surest first: tokenizer.json has the added tokens too."""


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
