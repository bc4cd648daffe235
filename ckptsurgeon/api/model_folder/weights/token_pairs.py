"""A note on a token list that is not that of the embedding, found in pairs of tokens such as ``▁the`` and ``the``.

The rows of such a pair are alike in a trained embedding. If the list was read from a wrong line on, they are alike only
at a distance from the ids of the list; if it is that of another model, they are alike nowhere. Medians are compared,
since a part of the list may be right: lists of one kind begin with the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from ....checkpoint.checkpoint import Checkpoint
from ....errors import CheckpointError
from ....util.text import count, escape
from ..documents import VOCABULARIES
from ..folder import ModelFolder
from ..tokenizer.tokenizer_files import SPECIAL, brief_token, local_tokens
from .embedding_rows import WIDE, Rows, can_read
from .last_rows import is_readable, token_embeddings

__all__ = ["is_token_pair_note", "token_pair_notes"]

LISTS = VOCABULARIES[:3]
"""The lists whose ids are rows. The ids of a sentencepiece model may be others: XLM-R moves them by one."""
MARKS = ("▁", "Ġ", "##")
"""The marks at the beginning of a token that make a pair with the token without the mark."""
FEWEST, MOST = 32, 96
"""The fewest and most pairs that are compared."""
FIRST, TRIED = 20_000, 4_000
"""The tokens at the beginning of a list among which a mark is looked for, and how many tokens with a mark are tried."""
FURTHEST = 4
"""The largest shift that is tried, in rows."""
CLEAR, LEAST, TIMES, OWN_TIMES = 6.0, 0.1, 2.0, 3.0
"""Pairs are alike if their median cosine is ``CLEAR`` standard errors above that of tokens that do not belong together.

A shift must also be ``LEAST`` above that, ``TIMES`` as far as any other shift, and ``OWN_TIMES`` as far as the rows of
the list. For 92 pairs of all-MiniLM-L6-v2, ``x`` and ``##x``, it is 20 standard errors, and 5 at most at other shifts.
"""
MANY, UNRELATED = 64, 2.5
"""``MANY`` pairs or more are not alike if their median cosine is under ``UNRELATED`` errors above that of others.

Only pairs count whose two rows have close relatives: tokens that the training texts lack keep their random rows.
"""
MOST_TRAINED = 192
"""Of how many pairs it is asked whether their rows were trained."""
SPREAD = 1.5
"""The norms of trained rows vary more than those of as many normal numbers, by this factor at least."""


class Verdict(NamedTuple):
    """What the rows of an embedding say about a list: that it fits, or a note that it is off, or is another's."""

    fits: bool = False
    off: str = ""
    other: str = ""


def token_pair_notes(checkpoint: Checkpoint, folder: ModelFolder) -> Iterator[str]:
    """Yield a note if pairs of tokens are unrelated at the rows of a folder's list, but alike some rows further.

    There is a note, too, if they are alike nowhere, although the embedding is trained: its rows have close relatives,
    which those of an untrained one do not have. Of most models, a part of 192 rows is read. A model may have several
    embeddings with a list each (``EncoderDecoderModel``): there is no note if the list fits one of them. Those whose
    rows cannot be read, because they are quantised, float64 or very wide, are not compared with the list.
    """
    if folder.vocabulary not in LISTS or checkpoint.elsewhere:
        return
    with suppress(CheckpointError, ValueError, OverflowError):  # infinite numbers have no mean
        found = token_embeddings(checkpoint)
        tokens = local_tokens(folder) if any(_has_rows(checkpoint, key) for key in found) else ()
        if not tokens or folder.token_list is None or not folder.token_list.is_whole:
            return
        verdicts = list[Verdict]()
        large = [key for key in found if checkpoint[key].shape[0] >= len(tokens)] or found[:1]
        for key in [key for key in large if _has_rows(checkpoint, key)]:
            verdicts.append(_verdict(checkpoint, key, tokens, folder.vocabulary))
            if verdicts[-1].fits:
                return
        off = next((one.off for one in verdicts if one.off), "")
        if off or (verdicts and all(one.other for one in verdicts)):
            yield off or verdicts[0].other


def is_token_pair_note(note: str) -> bool:
    """Return whether a note is one of ``token_pair_notes``."""
    return note.startswith("the tokens of ") and ": pairs such as " in note


def _has_rows(checkpoint: Checkpoint, key: str) -> bool:
    """Return whether the rows of an embedding can be read, as numbers that are compared."""
    return is_readable(checkpoint, key) and can_read(checkpoint[key])


def _verdict(checkpoint: Checkpoint, key: str, tokens: Sequence[str], name: str) -> Verdict:
    """Return what the rows of an embedding say about the tokens of the list with this file name."""
    info = checkpoint[key]
    every = _pairs(tokens, info.shape[0])
    pairs = _spaced(every, MOST)
    if len(pairs) < FEWEST:
        return Verdict()
    rows = Rows(checkpoint, info)
    rows.measure(pairs)
    base, error = rows.unrelated(pairs)
    own = rows.cosine(pairs, 0)
    if not error or own - base >= CLEAR * error:
        return Verdict(fits=error > 0)
    means = {shift: rows.cosine(pairs, shift) for shift in range(-FURTHEST, FURTHEST + 1) if shift}
    shift = _clear_shift({shift: mean - base for shift, mean in means.items()}, error)
    one, two = (brief_token(tokens[row]) for row in pairs[len(pairs) // 2])
    if shift and means[shift] - base > OWN_TIMES * abs(own - base):
        apart = f"{count(abs(shift), 'row')} {'after' if shift > 0 else 'before'}"
        said = f"the tokens of {escape(name)} are perhaps {count(abs(shift), 'row')} off {escape(key)}"
        return Verdict(
            off=f"{said}: pairs such as {one} and {two} have rows that are alike (median cosine {means[shift]:.2f}) "
            f"only {apart} those that the list gives them ({own:.2f}), so each token has the row of another"
        )
    if own - base >= UNRELATED * error or len(tokens) > info.shape[0] or rows.spread(pairs) <= SPREAD:
        return Verdict()
    found = Rows(checkpoint, info, WIDE).related(len(tokens), _spaced(every, MOST_TRAINED))
    if found is None or len(found[1]) < MANY:
        return Verdict()
    near, trained = found
    base, error = rows.unrelated(trained)
    own = rows.cosine(trained, 0)
    if not error or own - base >= UNRELATED * error:
        return Verdict()
    return Verdict(
        other=f"the tokens of {escape(name)} are perhaps not those of {escape(key)}: pairs such as "
        f"{one} and {two} have rows that are no more alike than any two (median cosine {own:.2f}), "
        f"although most rows of this embedding have another close to them ({near:.2f}), as after training"
    )


def _spaced(pairs: Sequence[tuple[int, int]], most: int) -> Sequence[tuple[int, int]]:
    return pairs[:: (len(pairs) - 1) // most + 1] if pairs else pairs


def _pairs(tokens: Sequence[str], rows: int) -> list[tuple[int, int]]:
    """Return the rows of pairs of tokens that differ only in a mark, or in the case of letters, from the whole list."""
    places = {token: row for row, token in enumerate(tokens)}
    first = tokens[:FIRST]
    mark = next((mark for mark in MARKS if sum(token.startswith(mark) for token in first) >= FEWEST), "")
    found = [pair for pair in _marked(places, mark) if _is_usable(pair, rows)] if mark else []
    if len(found) < FEWEST:
        found += [pair for pair in _cased(places) if _is_usable(pair, rows)]
    return found


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
