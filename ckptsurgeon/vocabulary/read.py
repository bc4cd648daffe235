"""Finds the token list next to a model, recognises its kind and reads it; plain lists are read here."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast
from weakref import WeakValueDictionary

from ..errors import ConfigError, PlanError
from ..storage.json_text import read_json
from ..storage.read._descriptors import leads_out
from ..storage.small_files import read_file
from ..storage.wrong_downloads import stand_in
from ..util.did_you_mean import did_you_mean
from ..util.registry import discover
from ..util.text import brief_repr, escape
from .huggingface import of_language, read_added, read_decoder
from .row_order import in_row_order, is_of_pieces
from .vocabulary import Marks, Reader, Vocabulary, checked, has_marks, marked

__all__ = [
    "BYTES",
    "BY_LANGUAGE",
    "PLAIN_LIST",
    "VOCABULARY_BYTES",
    "lines_of",
    "read_lists",
    "read_vocabulary",
    "tokens_beside",
    "vocabulary_beside",
    "vocabulary_in",
    "vocabulary_of",
]


BYTES = "bytes"
"""A path that means the vocabulary of Coqui STT's bytes mode: label n is the byte n + 1, and the blank is last."""
VOCABULARY_BYTES = 256 << 20
"""The largest token list that is read, in bytes: more than any tokenizer.json has, with all merges."""


def read_vocabulary(path: str) -> Vocabulary:
    """Return the vocabulary in a file of any toolkit; for ``bytes``, return the vocabulary of Coqui STT's bytes mode.

    A file with the name ``bytes`` must be given as ``./bytes``. Raises ConfigError if the file cannot be read, is
    malformed or has a token twice.
    """
    if path == BYTES:
        return checked(BYTES, [*(f"<0x{byte:02X}>" for byte in range(1, 256)), "<blank>"])
    try:
        data = read_file(path, VOCABULARY_BYTES)
    except OSError as error:
        said = f"the vocabulary {escape(path)} cannot be read: {error.strerror}."
        raise ConfigError(said, hint=did_you_mean(path)) from error
    return vocabulary_of(os.path.basename(path), data)


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


_IN_USE: WeakValueDictionary[tuple[str, bytes], Vocabulary] = WeakValueDictionary()
"""The vocabularies in use, by file name and digest: a command opens a folder several times, and lists are megabytes."""


def vocabulary_of(filename: str, data: bytes) -> Vocabulary:
    """Return the vocabulary in a file; raises ConfigError if it is malformed, a Git LFS pointer or a web page."""
    place = filename, hashlib.sha256(data).digest()
    found = _IN_USE.get(place)
    if found is None:
        found = _IN_USE[place] = _vocabulary_of(filename, data)
    return found


def _vocabulary_of(filename: str, data: bytes) -> Vocabulary:
    name = escape(filename)
    if why := stand_in(data):
        raise ConfigError(f"{name} is not a list of tokens: {why}.")
    kinds = cast("dict[str, Reader]", discover("ckptsurgeon.vocabulary", "VOCABULARY"))
    for reader in kinds.values():
        if has_marks(reader, filename, data):
            return reader.read(name, data)
    if name.lower().endswith(".json"):
        raise ConfigError(f"{name} is not a vocabulary: its JSON is not an object that maps each token to its id.")
    return PLAIN_LIST.read(name, data)


# Finds the token list next to a model.

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
    """Return the path of the token list in a model's folder; raises ConfigError if there is none."""
    folder = model if os.path.isdir(model) else os.path.dirname(model)
    for name in NAMES if "://" not in model else ():
        path = os.path.join(folder, name)
        if os.path.isfile(path) and not leads_out(path):
            return path
    raise ConfigError(
        f"there is no token list next to {escape(model)}.",
        hint=f"Give the list with --tokens {escape(model)}=LIST. ckpt looked for {', '.join(NAMES)}.",
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
            f"{escape(path)} does not say which embedding row belongs to which token, nor does any other file in its "
            "folder.",
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


WORDPIECE, _UNKNOWN = "vocab.txt", "[UNK]"
_NUMBERED = re.compile(r"(.+?)[ \t]+(0|[1-9][0-9]{0,17})")


def lines_of(name: str, data: bytes) -> list[str]:
    """Return the lines of a UTF-8 text, with any line endings; raises ConfigError if it is not UTF-8 or has NULs."""
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise ConfigError(
            f"{name} is not a list of tokens: it is not UTF-8.",
            hint="Give a text file in UTF-8, with one token on each line.",
        ) from None
    if "\0" in text:
        raise ConfigError(
            f"{name} is not a list of tokens: it contains zero bytes, so it is not text.",
            hint="Give a text file in UTF-8, with one token on each line.",
        )
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if lines and not lines[-1] else lines


class _Plain:
    """Reads a text file with one token on each line, such as ESPnet's ``tokens.txt``."""

    marks: tuple[Marks, ...] = ()
    """No marks: this reader reads the files in which no other reader finds its marks."""

    def read(self, name: str, data: bytes) -> Vocabulary:
        """Return the non-empty lines as tokens.

        If each line is ``token index`` (Kaldi's words.txt), the tokens are sorted by index. In a vocab.txt (BERT), an
        empty line before the last token is a token, too, as in transformers.
        """
        lines = lines_of(name, data)
        while lines and not lines[-1]:
            lines.pop()
        if name != WORDPIECE or _UNKNOWN not in lines:
            lines = [line for line in lines if line]
        found = [match for match in map(_NUMBERED.fullmatch, lines) if match is not None]
        if len(lines) > 1 and len(found) == len(lines):
            lines = _by_number(name, [(match[1], int(match[2])) for match in found])
        return marked(checked(name, lines))


def _by_number(name: str, pairs: Sequence[tuple[str, int]]) -> list[str]:
    """Return the tokens sorted by index, from 0 or 1 on; raises ConfigError if an index is missing or occurs twice."""
    tokens: dict[int, str] = {}
    hint = "If the numbers are parts of the tokens, give the list as a vocab.json."
    for token, number in pairs:
        if number in tokens:
            both = f"{brief_repr(tokens[number], 40)} and {brief_repr(token, 40)}"
            raise ConfigError(f"{name} has two tokens with the index {number}: {both}.", hint=hint)
        tokens[number] = token
    first = 0 if 0 in tokens else 1
    numbers = range(first, first + len(tokens))
    absent = next((number for number in numbers if number not in tokens), None)
    if absent is not None:
        raise ConfigError(f"{name} has {len(tokens)} tokens, but no token with the index {absent}.", hint=hint)
    return [tokens[number] for number in numbers]


PLAIN_LIST = _Plain()
"""The reader of plain lists of tokens: of each file that has the marks of no other kind."""
