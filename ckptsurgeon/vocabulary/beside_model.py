"""Finds the token list next to a model, and reads it with the added tokens and in the order of the embedding's rows."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..errors import ConfigError, PlanError
from ..storage.json_text import read_json
from ..storage.read.uri import leads_out
from ..storage.small_files import read_file
from ..util.text import escape
from .huggingface import of_language, read_added, read_decoder
from .row_order import in_row_order, is_of_pieces
from .vocabulary import Vocabulary, read_vocabulary, vocabulary_of

__all__ = ["BY_LANGUAGE", "read_lists", "tokens_beside", "vocabulary_beside", "vocabulary_in"]

NAMES = (
    "tokenizer.json", "vocab.json", "vocab.txt", "tokens.txt", "alphabet.txt", "label_encoder.txt", "tokenizer.model",
    "spiece.model", "sentencepiece.bpe.model", "tekken.json", "config.yaml",
)  # fmt: skip
"""Names of token lists, the most reliable first: a tokenizer.json, for example, includes the added tokens."""
ADDED = "added_tokens.json"
"""The file in which transformers before 5 saves added tokens, which a vocab.json or vocab.txt lacks."""
CONFIG = "tokenizer_config.json"
"""The file in which transformers 5 saves added tokens, among other settings."""
MODEL = "config.json"
BY_LANGUAGE = "vocab.json"
"""The file that may have a token list for each language."""
LACKING = ("vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")
"""Token lists that do not contain the added tokens."""
SHIFTED = (
    "sentencepiece.bpe.model", "sentencepiece.model", "spm.model", "spm_char.model", "source.spm", "dict.txt",
    "vocab-src.json", "prophetnet.tokenizer",
)  # fmt: skip
"""Token lists (XLM-R, fairseq, Marian) in which some or all tokens are in another order than the embedding's rows."""


def tokens_beside(model: str) -> str:
    """Return the path of the token list in a model's folder; raises ConfigError if there is none.

    Links that lead out of the folder do not count, and at an address no list is looked for.
    """
    hint = f"Give the list with --tokens {escape(model)}=LIST."
    if "://" in model:
        raise ConfigError(
            f"the token list of {escape(model)} is not known: none is looked for at addresses.", hint=hint
        )
    folder = model if os.path.isdir(model) else os.path.dirname(model)
    paths = [path for name in NAMES if os.path.isfile(path := os.path.join(folder, name))]
    found = next((path for path in paths if not leads_out(path)), None)
    if found is not None:
        return found
    but = f" (the link {os.path.basename(paths[0])} leads out of the folder)" if paths else ""
    raise ConfigError(
        f"there is no token list next to {escape(model)}{but}.", hint=f"{hint} ckpt looked for {', '.join(NAMES)}."
    )


def vocabulary_beside(path: str) -> Vocabulary:
    """Return the vocabulary in a file, with the added tokens that transformers saved in files of the same folder.

    Raises ConfigError if a file cannot be read, or if the ids of the added tokens do not continue the ids of the list.
    Raises PlanError if the list is not in the order of the embedding's rows, and no file of the folder contains this
    order.
    """
    folder, name = os.path.split(path)
    if name not in LACKING and not is_of_pieces(name):
        return read_vocabulary(path)

    def read(beside: str) -> bytes | None:
        return _bytes(os.path.join(folder, beside))

    data = read(name) if name == BY_LANGUAGE else None
    own = read_vocabulary(path) if data is None else _of_language(name, data, read)
    vocabulary = _in_row_order(name, own, read)
    if name in SHIFTED and not vocabulary.is_whole:
        raise PlanError(
            f"{escape(path)} does not say which embedding row belongs to which token, and its folder names no "
            "tokeniser whose order of rows ckpt knows.",
            hint="Save the tokenizer.json of the model's tokeniser with transformers, and give that file.",
        )
    return _with_added(vocabulary, read)


def vocabulary_in(name: str, read: Callable[[str], bytes | None]) -> Vocabulary:
    """Return the vocabulary in the file ``name`` of a folder, with the added tokens in other files of the folder.

    ``read`` returns the bytes of a file by its name, None if there is no such file. Raises ConfigError as
    ``vocabulary_beside`` does, and also if the order of the rows is not known.
    """
    data = read(name)
    is_shifted = name in SHIFTED
    if data is None or (is_shifted and not is_of_pieces(name)):
        why = "does not say which embedding row belongs to which token" if data is not None else "does not exist"
        raise ConfigError(f"{escape(name)} {why}.")
    vocabulary = _of_language(name, data, read) if name == BY_LANGUAGE else vocabulary_of(name, data)
    if name not in LACKING and not is_of_pieces(name):
        return vocabulary
    vocabulary = _in_row_order(name, vocabulary, read)
    if is_shifted and not vocabulary.is_whole:
        raise ConfigError(
            f"{escape(name)} does not say which embedding row belongs to which token.",
            hint="Save the tokenizer.json of the model's tokeniser with transformers, and give that file.",
        )
    return _with_added(vocabulary, read)


def _in_row_order(name: str, vocabulary: Vocabulary, read: Callable[[str], bytes | None]) -> Vocabulary:
    settings = _fields(read(CONFIG))
    return in_row_order(name, vocabulary, settings, {} if settings.get("tokenizer_class") else _fields(read(MODEL)))


def _of_language(name: str, data: bytes, read: Callable[[str], bytes | None]) -> Vocabulary:
    return vocabulary_of(name, of_language(name, data, _fields(read(CONFIG)).get("target_lang")))


def _fields(data: bytes | None) -> dict[str, Any]:
    """Return the fields of a JSON object; empty for any other bytes.

    No error is raised for a malformed file here: the error is raised later, when the file is copied.
    """
    try:
        document = read_json(data or b"{}")
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _with_added(vocabulary: Vocabulary, read: Callable[[str], bytes | None]) -> Vocabulary:
    added = read(ADDED)
    if added is not None:
        more = read_added(ADDED, added, vocabulary.tokens)
    else:
        more = read_decoder(read(CONFIG) or b"{}", vocabulary.tokens)
    return replace(vocabulary, tokens=(*vocabulary.tokens, *more), scores=()) if more else vocabulary


def _bytes(path: str) -> bytes | None:
    try:
        return None if leads_out(path) else read_file(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{os.path.basename(path)} cannot be read: {error.strerror}.") from None


def read_lists(paths: Sequence[str], read: Callable[[str], Vocabulary]) -> list[Vocabulary]:
    """Return the vocabularies that the function ``read`` returns for ``paths``.

    Raises the ConfigError of ``read``; if several of the files have the same name, its message has the whole path.
    """
    found, names = [], Counter(map(os.path.basename, dict.fromkeys(paths)))
    for path in paths:
        try:
            found.append(read(path))
        except ConfigError as error:
            if names[os.path.basename(path)] < 2 or escape(path) in error.message:
                raise
            raise ConfigError(f"{escape(path)}: {error.message}", hint=error.hint) from error
    return found
