"""A note on a token list that is some rows off the embedding, found in pairs of tokens such as ``▁the`` and ``the``.

The rows of such a pair are alike in a trained embedding. If the list was read from a wrong line on, they are alike only
at a distance from the ids of the list.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from operator import mul

from ....checkpoint.checkpoint import Checkpoint
from ....errors import CheckpointError
from ....tensors.info import TensorInfo
from ....util.text import count, escape
from ..documents import VOCABULARIES
from ..folder import ModelFolder
from ..tokenizer.tokenizer_files import SPECIAL, brief_token, local_tokens
from .last_rows import token_embedding

__all__ = ["shifted_row_notes"]

LISTS = VOCABULARIES[:3]
"""The lists whose ids are rows. The ids of a sentencepiece model may be others: XLM-R moves them by one."""
MARKS = ("▁", "Ġ", "##")
"""The marks at the beginning of a token that make a pair with the token without the mark."""
FEWEST, MOST, WIDTH = 32, 96, 128
"""The fewest and most pairs that are compared, and how many numbers of each row."""
FIRST, TRIED = 20_000, 4_000
"""The tokens at the beginning of a list among which a mark is looked for, and how many tokens with a mark are tried."""
FURTHEST = 4
"""The largest shift that is tried, in rows."""
CLEAR, LEAST, TIMES, OWN_TIMES = 6.0, 0.1, 2.0, 3.0
"""Pairs are alike if their mean cosine is ``CLEAR`` standard errors above that of tokens that do not belong together.

A shift must also be ``LEAST`` above that, ``TIMES`` as far as any other shift, and ``OWN_TIMES`` as far as the rows of
the list. For 92 pairs of all-MiniLM-L6-v2, ``x`` and ``##x``, it is 20 standard errors, and 5 at most at other shifts.
"""
_CODES = {"float32": "f", "float16": "e", "bfloat16": "H"}


def shifted_row_notes(checkpoint: Checkpoint, folder: ModelFolder) -> Iterator[str]:
    """Yield a note if pairs of tokens are unrelated at the rows of a folder's list, but alike some rows further.

    Of most models, a part of 192 rows is read. An untrained embedding gets no note, as its pairs are alike nowhere.
    """
    if folder.vocabulary not in LISTS or checkpoint.elsewhere:
        return
    with suppress(CheckpointError, ValueError, OverflowError):  # infinite numbers have no mean
        found = token_embedding(checkpoint)
        tokens = local_tokens(folder) if found is not None else ()
        if found is None or not tokens or folder.token_list is None or not folder.token_list.is_whole:
            return
        key, info = found
        pairs = _pairs(tokens, info.shape[0]) if info.dtype in _CODES and _is_little(info) else []
        if len(pairs) < FEWEST:
            return
        rows = _Rows(checkpoint, info)
        rows.measure(pairs)
        base, error = rows.unrelated(pairs)
        own = rows.cosine(pairs, 0)
        if not error or own - base >= CLEAR * error:
            return
        means = {shift: rows.cosine(pairs, shift) for shift in range(-FURTHEST, FURTHEST + 1) if shift}
        shift = _clear_shift({shift: mean - base for shift, mean in means.items()}, error)
        if shift and means[shift] - base > OWN_TIMES * abs(own - base):
            one, two = (brief_token(tokens[row]) for row in pairs[len(pairs) // 2])
            apart = f"{count(abs(shift), 'row')} {'after' if shift > 0 else 'before'}"
            said = f"the tokens of {escape(folder.vocabulary)} are perhaps {count(abs(shift), 'row')} off {escape(key)}"
            yield (
                f"{said}: pairs such as {one} and {two} have rows that are alike (mean cosine {means[shift]:.2f}) only "
                f"{apart} those that the list gives them ({own:.2f}), so each token has the row of another"
            )


def _is_little(info: TensorInfo) -> bool:
    return info.storage is None or not info.storage.big_endian


def _pairs(tokens: Sequence[str], rows: int) -> list[tuple[int, int]]:
    """Return the rows of pairs of tokens that differ only in a mark, or in the case of letters, from the whole list."""
    places = {token: row for row, token in enumerate(tokens)}
    first = tokens[:FIRST]
    mark = next((mark for mark in MARKS if sum(token.startswith(mark) for token in first) >= FEWEST), "")
    found = [pair for pair in _marked(places, mark) if _is_usable(pair, rows)] if mark else []
    if len(found) < FEWEST:
        found += [pair for pair in _cased(places) if _is_usable(pair, rows)]
    return found[:: (len(found) - 1) // MOST + 1] if found else []


def _marked(places: Mapping[str, int], mark: str) -> Iterator[tuple[int, int]]:
    marked = [token for token in places if token.startswith(mark)]
    for token in marked[:: len(marked) // TRIED + 1]:
        bare = token[len(mark) :]
        if len(bare) > 1 and bare.isalpha() and bare in places:
            yield places[token], places[bare]


def _cased(places: Mapping[str, int]) -> Iterator[tuple[int, int]]:
    for token, row in places.items():
        lower = token.lower()
        if lower != token and len(token) > 2 and lower in places and not SPECIAL.fullmatch(token):
            yield row, places[lower]


def _is_usable(pair: tuple[int, int], rows: int) -> bool:
    """Return whether both rows have neighbours on both sides, and are not neighbours of each other."""
    return min(pair) >= FURTHEST and max(pair) < rows - FURTHEST and abs(pair[0] - pair[1]) > 2 * FURTHEST


def _clear_shift(above: Mapping[int, float], error: float) -> int:
    """Return the shift at which pairs are clearly alike, and clearer than at any other; 0 if there is none."""
    best = max(above, key=lambda one: above[one])
    others = max(abs(value) for shift, value in above.items() if shift != best)
    return best if above[best] > max(CLEAR * error, LEAST, TIMES * others) else 0


class _Rows:
    """The first numbers of rows of an embedding, each less the mean of its column and divided by its deviation."""

    def __init__(self, checkpoint: Checkpoint, info: TensorInfo) -> None:
        self._file = checkpoint.file(info)
        self._begin = (info.storage.offset if info.storage is not None else 0) + info.offset
        self._size, self._width = info.nbytes // info.shape[0], min(info.shape[1], WIDTH)
        self._code = f"<{self._width}{_CODES[info.dtype]}"
        self._is_half = info.dtype == "bfloat16"
        self._means, self._scales = [0.0] * self._width, [1.0] * self._width
        self._known = dict[int, list[float]]()

    def measure(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Measure mean and deviation of each column, over the rows of the pairs."""
        columns = list(zip(*(self._read(row) for pair in pairs for row in pair), strict=True))
        self._means = [math.fsum(column) / len(column) for column in columns]
        squares = [
            math.fsum((one - mean) ** 2 for one in column) for column, mean in zip(columns, self._means, strict=True)
        ]
        self._scales = [math.sqrt(len(column) / square) if square else 0.0
                        for column, square in zip(columns, squares, strict=True)]  # fmt: skip

    def cosine(self, pairs: Sequence[tuple[int, int]], shift: int) -> float:
        """Return the mean cosine of the rows of pairs, ``shift`` rows further."""
        return math.fsum(self._cosine(one + shift, two + shift) for one, two in pairs) / len(pairs)

    def unrelated(self, pairs: Sequence[tuple[int, int]]) -> tuple[float, float]:
        """Return the mean cosine of rows of neighbouring pairs, and its standard error; (0, 0) for bad numbers."""
        found = [self._cosine(one, two) for (one, _), (_, two) in zip(pairs, (*pairs[1:], pairs[0]), strict=True)]
        mean = math.fsum(found) / len(found)
        error = math.sqrt(math.fsum((one - mean) ** 2 for one in found)) / len(found)
        return (mean, error) if math.isfinite(error) else (0.0, 0.0)

    def _cosine(self, one: int, two: int) -> float:
        return math.fsum(map(mul, self._unit(one), self._unit(two)))

    def _unit(self, row: int) -> list[float]:
        found = self._known.get(row)
        if found is None:
            scaled = list(
                map(mul, (x - mean for x, mean in zip(self._read(row), self._means, strict=True)), self._scales)
            )
            length = math.sqrt(math.fsum(map(mul, scaled, scaled)))
            found = self._known[row] = [x / length for x in scaled] if length else scaled
        return found

    def _read(self, row: int) -> Sequence[float]:
        size = struct.calcsize(self._code)
        data = self._file.read(self._begin + row * self._size, size)
        numbers = struct.unpack(self._code, data)
        if self._is_half:
            numbers = struct.unpack(
                f"<{self._width}f", struct.pack(f"<{self._width}I", *(one << 16 for one in numbers))
            )
        return numbers
