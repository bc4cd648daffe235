"""Encodes texts with a tokenizer.json, to find the tokens that they use, and to compare two tokenisers."""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ....errors import ConfigError
from ....storage.small_files import open_file
from ....util.did_you_mean import did_you_mean
from ....util.text import brief_repr, escape

__all__ = ["check_encodes_alike", "opened_tokenizer", "text_batches", "used_ids"]

PART = 1 << 18
"""A corpus is encoded in parts of about this many characters; each part consists of whole lines."""
LONGEST = 1 << 20
"""A line with more characters than this is encoded in several parts."""


def opened_tokenizer(text: str, name: str) -> Any:
    """Return the tokeniser that a tokenizer.json describes; raises ConfigError if the package tokenizers refuses it.

    ``text`` is the text of the file, and ``name`` its name in messages.
    """
    try:
        package = importlib.import_module("tokenizers")
    except ImportError as error:
        raise ConfigError(
            "to encode a corpus, the package tokenizers is needed.", hint="Run pip install 'ckptsurgeon[hf]'."
        ) from error
    try:
        made = package.Tokenizer.from_str(text)
    except Exception as error:  # the package raises plain Exception
        raise ConfigError(f"tokenizers cannot read {escape(name)}: {escape(brief_repr(str(error), 200))}.") from error
    made.no_truncation()
    made.no_padding()
    return made


def used_ids(tokenizer: Any, batches: Iterable[list[str]]) -> set[int]:
    """Return the ids of the tokens that encode the texts; ``batches`` are lists of texts."""
    found: set[int] = set()
    for texts in batches:
        for one in tokenizer.encode_batch(texts, add_special_tokens=False):
            found.update(one.ids)
    return found


def check_encodes_alike(first: Any, second: Any, batches: Iterable[list[str]]) -> None:
    """Raise ConfigError if two tokenisers encode a text into different tokens; ``batches`` are lists of texts."""
    tokens = first.get_vocab()
    moved = {number: second.token_to_id(token) for token, number in tokens.items()}
    for texts in batches:
        pair = [tokenizer.encode_batch(texts, add_special_tokens=False) for tokenizer in (first, second)]
        for text, old, new in zip(texts, *pair, strict=True):
            if [moved[number] for number in old.ids] != new.ids:
                raise ConfigError(
                    f"the smaller tokeniser would encode the text {escape(brief_repr(text, 60))} into other tokens "
                    "than the larger one does.",
                    hint="Make a smaller tokeniser in another way, and name it with --tokenizer.",
                )


def text_batches(paths: Sequence[str]) -> Iterator[list[str]]:
    """Yield a list of texts for each part of a file: first the whole part, with many lines, then each of its lines.

    Both are needed: the first token of a line may differ if the line is encoded alone, and tokens for several line ends
    occur only in whole parts. Raises ConfigError if a file cannot be read.
    """
    for path in paths:
        for part in _parts(path):
            yield [part, *part.splitlines()]


def _parts(path: str) -> Iterator[str]:
    try:
        with io.TextIOWrapper(open_file(path), encoding="utf-8-sig", newline="") as file:
            while part := file.read(PART):
                yield part + file.readline(LONGEST)
    except OSError as error:
        said = f"the corpus {escape(path)} cannot be read: {error.strerror}."
        raise ConfigError(said, hint=did_you_mean(path)) from error
    except UnicodeDecodeError:
        raise ConfigError(f"the corpus {escape(path)} is not text in UTF-8.", hint="Save the file as UTF-8.") from None
