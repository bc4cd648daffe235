"""Converts texts to token ids, and token ids to texts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise

from ...errors import ConfigError
from ...util.text import escape
from ...vocabulary.spoken import BLANKS, SPACES
from .segmenter import Segmenter

__all__ = ["HALF_LETTER", "Labels", "UnknownLetterError"]

PIECE_SPACE = "▁"
"""The character that sentencepiece writes for a space, before the first piece of each word."""
BYTE_SPACE = "Ġ"
"""The character that byte-level byte-pair encoding (as in GPT-2) writes for a space."""
BAR = "|"
"""The space of transformers' CTC tokenisers."""
STARTS, ENDS = ("<sos/eos>", "<sos>", "<bos>", "<s>"), ("<sos/eos>", "<eos>", "</s>")

HALF_LETTER = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair, which JSON may contain without the other half; tokenisers cannot read it."""
_SPECIAL = re.compile(r"<[^<>\s]+>|\[[A-Z]+\]")
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class UnknownLetterError(ValueError):
    """Raised for a text that cannot be cut into tokens: ``letter`` begins no token there. ``hint`` is advice, or ''."""

    def __init__(self, letter: str, hint: str) -> None:
        super().__init__(letter)
        self.letter = letter
        self.hint = hint


class Labels:
    """The token list of a model: a token for each output of the model, in order; some tokens are special.

    ``segmenter`` is the tokeniser that cuts a text into tokens. If it is None, a text is cut from left to right, each
    time at the longest token that fits. If each token is a byte (Coqui STT's bytes output mode), a text is cut into its
    UTF-8 bytes. If ``needs_blank`` is false, the list may have no blank; ``blank`` is then -1.
    """

    def __init__(self, tokens: Sequence[str], *, needs_blank: bool = True, segmenter: Segmenter | None = None) -> None:
        self.tokens, self._segmenter = tuple(tokens), segmenter
        self._ids = {token: i for i, token in enumerate(self.tokens)}
        blank = _first(BLANKS, self._ids)
        if blank is None and needs_blank:
            raise ConfigError(
                "the token list has no blank, which CTC needs.",
                hint=f"Add one of {', '.join(BLANKS)} as the first or the last line, where the model has its blank.",
            )
        self.blank = -1 if blank is None else blank
        self.start, self.end = _first(STARTS, self._ids), _first(ENDS, self._ids)
        byte_tokens = {int(found[1], 16): i for i, token in enumerate(tokens) if (found := _BYTE.fullmatch(token))}
        self._bytes = byte_tokens if len(byte_tokens) == len(tokens) - 1 else {}
        self._of_byte = {i: byte for byte, i in self._bytes.items()}
        self._space = next((space for space in SPACES if space in self._ids), PIECE_SPACE)
        self._begins_words = self._space == PIECE_SPACE and any(
            token[0] == PIECE_SPACE and len(token) > 1 for token in tokens if token
        )
        self._spoken = {token: i for token, i in self._ids.items() if self._can_be_spoken(token)}
        self._longest = max(map(len, self._spoken), default=1)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def spaces(self) -> frozenset[int]:
        """The ids of the tokens that are a space and nothing else."""
        found = self._bytes.get(ord(" ")) if self._bytes else self._ids.get(self._space)
        return frozenset() if found is None else frozenset([found])

    @property
    def word_starts(self) -> frozenset[int]:
        """The ids of the tokens that begin a word: their first character is a mark of a space (sentencepiece, BPE)."""
        marks = (PIECE_SPACE, BYTE_SPACE) if self._segmenter is not None else (PIECE_SPACE,)
        return frozenset(i for i, token in enumerate(self.tokens) if token.startswith(marks) and token not in marks)

    def _can_be_spoken(self, token: str) -> bool:
        return bool(token) and (token == self._space or not _SPECIAL.fullmatch(token))

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text; raises UnknownLetterError if it cannot be cut into tokens."""
        half = HALF_LETTER.search(text)
        if half is not None:
            raise UnknownLetterError(half[0], "It is half of a letter in UTF-16: write the whole letter.")
        if self._segmenter is not None:
            lost = self._segmenter.lost_letters(text)
            if lost:
                hint = "has no piece for this letter: correct the transcript, or train the tokeniser with it."
                raise UnknownLetterError(min(lost), f"{escape(self._segmenter.path)} {hint}")
            return self._of_pieces(self._segmenter.pieces(text), self._segmenter.path)
        if self._bytes:
            return [self._byte(byte, letter) for letter in text for byte in letter.encode()]
        words = text.split(" ") if self._space != " " else [text]
        spelled = [self._cut(word, begins=self._begins_words) for word in words if word]
        if self._begins_words:
            return [i for word in spelled for i in word]
        space = [self._ids[self._space]] if self._space in self._ids else []
        if len(spelled) > 1 and not space:
            raise UnknownLetterError(" ", "Add a token for the space between words: ' ', '<space>', '|' or '▁'.")
        return [i for number, word in enumerate(spelled) for i in (*(space if number else ()), *word)]

    def unknown_letters(self, text: str) -> set[str]:
        """Return the set of letters of a text that no token contains; empty if tokens are bytes.

        If a segmenter cuts texts, these are only the letters that it loses.
        """
        if self._segmenter is not None:
            return set(self._segmenter.lost_letters(text))
        if self._bytes:
            return set()
        return set(text).difference(" ", *self._spoken)

    def _of_pieces(self, pieces: Iterable[str], path: str) -> list[int]:
        ids = []
        for piece in pieces:
            if piece not in self._spoken:
                letter = piece.lstrip(PIECE_SPACE)[:1] or piece[:1]
                hint = (
                    f"{escape(path)} makes the piece {escape(piece)!r} of the text, but the token list lacks "
                    "this piece: does the token list belong to this tokeniser?"
                )
                raise UnknownLetterError(letter, hint)
            ids.append(self._spoken[piece])
        return ids

    @property
    def is_guessed(self) -> bool:
        """Whether texts may be cut wrongly: the tokens are pieces of words, and the tokeniser is not known."""
        return self._begins_words and self._segmenter is None

    def _byte(self, byte: int, letter: str) -> int:
        found = self._bytes.get(byte)
        if found is None:
            raise UnknownLetterError(letter, "")
        return found

    def _cut(self, word: str, *, begins: bool) -> list[int]:
        spelled = f"{PIECE_SPACE}{word}" if begins else word
        ids, at = [], 0
        while at < len(spelled):
            ends = range(min(at + self._longest, len(spelled)), at, -1)
            end = next((end for end in ends if spelled[at:end] in self._spoken), None)
            if end is None:
                letter = spelled[at] if not begins or at else word[0]
                raise UnknownLetterError(letter, self._near(letter))
            ids.append(self._spoken[spelled[at:end]])
            at = end
        return ids

    def _near(self, letter: str) -> str:
        """Return a hint on a letter that no token begins with: the likely cause, or '' if none is known.

        Two causes are known: the token list has the letter only in upper or only in lower case, or the text is not in
        Unicode's form NFC.
        """
        for other in (letter.upper(), letter.lower()):
            if other != letter and other in self._ids:
                return f"The token list has {other!r}."
        if unicodedata.combining(letter):
            return "It is a combining mark of the letter before it: convert the text to Unicode's form NFC."
        return ""

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids; special tokens (blank, begin, end) are left out."""
        ids = list(ids)
        if self._bytes:
            return bytes(self._of_byte[i] for i in ids if i in self._of_byte).decode(errors="replace")
        silent = {self.blank, self.start, self.end}
        if self._segmenter is not None:
            return self._segmenter.text([self.tokens[i] for i in ids if i not in silent])
        text = "".join(" " if self.tokens[i] == self._space else self.tokens[i] for i in ids if i not in silent)
        if self._space == PIECE_SPACE:
            return " ".join(text.replace(PIECE_SPACE, " ").split())
        return text.strip() if self._space == BAR else text  # as transformers does

    def collapse(self, frames: Iterable[int]) -> list[int]:
        """Return the tokens of a CTC path (one token for each frame), with repeats merged and blanks removed.

        https://dl.acm.org/doi/10.1145/1143844.1143891
        """
        return [token for token, _ in groupby(frames) if token != self.blank]

    @staticmethod
    def frames_needed(ids: Sequence[int]) -> int:
        """Return the number of frames for CTC: one for each token id, and one for a blank between equal neighbours."""
        return len(ids) + sum(first == second for first, second in pairwise(ids))


def _first(names: Sequence[str], ids: dict[str, int]) -> int | None:
    return next((ids[name] for name in names if name in ids), None)
