"""Cuts texts into pieces with the tokeniser that a token list comes from: sentencepiece, or tokenizers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ...errors import ConfigError
from ...util.text import escape
from ..config.imports import require_package

__all__ = ["Segmenter"]


class Segmenter:
    """A tokeniser: a ``tokenizer.json`` if the file's name ends in .json, else a model of sentencepiece.

    The same text can be cut into pieces in several ways, so a token list alone is not enough. A unigram model chooses
    the most likely pieces (Viterbi, https://arxiv.org/abs/1804.10959). Byte-pair encoding follows its merge rules.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._is_json = path.lower().endswith(".json")
        package = require_package("tokenizers" if self._is_json else "sentencepiece", extra="pieces")
        try:
            if self._is_json:
                self._model: Any = package.Tokenizer.from_file(path)
            else:
                self._model = package.SentencePieceProcessor(model_file=path)
        except Exception as error:  # tokenizers raises Exception itself
            why = escape(" ".join(str(error).split()), 200).rstrip(".")
            raise ConfigError(
                f"train.data.segmenter: {escape(path)} cannot be read: {why}.",
                hint="Use a model of sentencepiece, such as bpe.model, or a tokenizer.json.",
            ) from error
        self._is_lost: dict[str, bool] = {}

    @property
    def unknown_id(self) -> int | None:
        """The id of the token for text that the tokeniser does not know; None if it has no such token."""
        if self._is_json:
            token = getattr(self._model.model, "unk_token", None)
            return self._model.token_to_id(token) if token is not None else None
        number = int(self._model.unk_id())
        return number if number >= 0 else None

    def lost_letters(self, text: str) -> Counter[str]:
        """Return the letters that the tokeniser leaves out of a text, each with the number of times that it occurs.

        Only BPE of tokenizers without an unknown token does this, if it has no piece for a letter or its bytes. The
        letters are those of the normalised text: a normaliser may compose or replace them. Each letter is tried once,
        by itself.
        """
        if not self._is_json or type(self._model.model).__name__ != "BPE" or self.unknown_id is not None:
            return Counter()
        letters = set(self._normalised(text))
        for letter in letters.difference(self._is_lost):
            self._is_lost[letter] = self._lacks(letter)
        lost = {letter for letter in letters if self._is_lost[letter]}
        if not lost:
            return Counter()
        for token in self._model.get_added_tokens_decoder().values():  # one may contain such a letter
            text = text.replace(token.content, "")
        return Counter(letter for letter in self._normalised(text) if letter in lost)

    def _normalised(self, text: str) -> str:
        return text if self._model.normalizer is None else str(self._model.normalizer.normalize_str(text))

    def _lacks(self, letter: str) -> bool:
        model = self._model.model
        symbols = self._symbols(letter)
        if letter != " ":  # some tokenisers put a space before each text
            symbols -= self._symbols(" ")
        before, after = model.continuing_subword_prefix or "", model.end_of_word_suffix or ""
        return not all(
            any(self._has(form) for form in (one, before + one, one + after, before + one + after))
            or (model.byte_fallback and all(self._has(f"<0x{byte:02X}>") for byte in one.encode()))
            for one in symbols
        )

    def _has(self, token: str) -> bool:
        return self._model.token_to_id(token) is not None

    def _symbols(self, text: str) -> set[str]:
        """Return the smallest pieces of a normalised text, which BPE merges; in byte-level BPE, one is a byte."""
        if self._model.pre_tokenizer is None:
            return set(text)
        return {one for piece, _ in self._model.pre_tokenizer.pre_tokenize_str(text) for one in piece}

    def pieces(self, text: str) -> list[str]:
        """Return the pieces of a text as strings; letters that the tokeniser does not know are separate pieces."""
        if self._is_json:
            return list(self._model.encode(text, add_special_tokens=False).tokens)
        return list(self._model.encode(text, out_type=str))

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of the pieces of each text, without special tokens before and after them."""
        if self._is_json:
            return [list(one.ids) for one in self._model.encode_batch(list(texts), add_special_tokens=False)]
        return [list(one) for one in self._model.encode(list(texts))]

    def text(self, pieces: Sequence[str]) -> str:
        """Return the text that consists of ``pieces``."""
        if self._is_json:
            ids = [self._model.token_to_id(piece) for piece in pieces]
            return str(self._model.decode([one for one in ids if one is not None]))
        return str(self._model.decode(list(pieces)))
