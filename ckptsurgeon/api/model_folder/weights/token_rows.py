"""Notes on a token list that does not belong to the embedding: last rows are zeros, or similar tokens have unlike rows.

In a trained embedding, the rows of a pair such as ``▁the`` and ``the`` are similar. If lines of the list are missing or
were inserted, the similar rows of pairs are some rows before or after the rows that the list gives. If the list is of
another model, no rows of pairs are similar. Medians are compared, because a part of the list may be right: lists of the
same kind begin with the same tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from ....checkpoint.checkpoint import Checkpoint
from ....errors import CheckpointError
from ....planning.transplant.by_place import is_embedding
from ....tensors.dtypes import DTYPES
from ....tensors.info import TensorInfo
from ....util.note_kind import NoteKind
from ....util.notes import notes_of
from ....util.text import count, escape, listing
from ....vocabulary.placeholders import is_placeholder
from ..documents import BYTE_PAIRS, VOCABULARIES
from ..folder import ModelFolder
from ..tokenizer.tokenizer_files import SPECIAL, added_tokens, brief_token, local_tokens, named_tokens

__all__ = [
    "is_readable",
    "last_row_notes",
    "token_embedding",
    "token_embeddings",
    "token_pair_notes",
]

_MOST = 64
"""The largest number of rows at the end of a token list that are read."""
_WIDEST = 1 << 20
"""The largest row, in bytes, that is read."""
_PADDING = "pad_token_id"


@notes_of(NoteKind.VOCABULARY)
def last_row_notes(checkpoint: Checkpoint, folder: ModelFolder) -> Iterator[str]:
    """Yield a note if ordinary tokens at the end of a folder's token list have rows of zeros, and others do not.

    If tokens are inserted into the list but not into the embedding, each later token has the row of another token, and
    the last tokens have padding rows, which are often zeros. Special and added tokens, placeholders such as
    ``[unused12]`` and the padding token may have rows of zeros. For most models, only the last row is read.
    """
    if not folder.vocabulary or folder.vocabulary in BYTE_PAIRS or checkpoint.elsewhere:
        return
    with suppress(CheckpointError):
        found = token_embedding(checkpoint)
        if found is None or not _is_zero(checkpoint, *found, found[1].shape[0] - 1):
            return
        key, info = found
        tokens = local_tokens(folder)
        if not 0 < len(tokens) <= info.shape[0] or folder.token_list is None or not folder.token_list.is_whole:
            return
        zero, is_all = _of_zeros(checkpoint, key, info, _ordinary(folder, tokens))
        if zero and not (is_all and _is_zero(checkpoint, key, info, len(tokens) // 2)):
            named = listing([brief_token(tokens[one]) for one in reversed(zero)], 3, where="")
            many = f"{'at least ' if is_all else ''}{count(len(zero), 'token')}"
            has = "has a row" if len(zero) == 1 else "have rows"
            said = f"{many} at the end of {escape(folder.vocabulary)} {has} of zeros in {escape(key)}: {named}"
            yield f"{said}; perhaps tokens were inserted before, so that each later token has the row of another token"


def token_embedding(checkpoint: Checkpoint) -> tuple[str, TensorInfo] | None:
    """Return the key and the header of the embedding with most rows; None if there is none, or it cannot be read.

    Only matrices of floats count as embeddings. The embedding cannot be read if it is quantised or not in a local file.
    """
    found = token_embeddings(checkpoint)
    return (found[0], checkpoint[found[0]]) if found and is_readable(checkpoint, found[0]) else None


def token_embeddings(checkpoint: Checkpoint) -> list[str]:
    """Return the keys of all embeddings, those with most rows first."""
    found = {key: info.shape[0] for key, info in checkpoint.items() if is_embedding(key) and _is_matrix(key, info)}
    return sorted(found, key=lambda one: -found[one])


def is_readable(checkpoint: Checkpoint, key: str) -> bool:
    """Return whether single rows of a matrix can be read: it is not quantised, and in a local file."""
    info = checkpoint[key]
    coded = any(key in one.parts.values() for one in checkpoint.codes.tensors)
    if coded or not info.is_plain or info.nbytes % info.shape[0] or info.nbytes // info.shape[0] > _WIDEST:
        return False
    file = checkpoint.file(info)
    return not (file.remote or file.closed)


def _is_matrix(key: str, info: TensorInfo) -> bool:
    return "position" not in key and len(info.shape) == 2 and info.numel > 0 and DTYPES[info.dtype].kind == "float"


def _is_zero(checkpoint: Checkpoint, key: str, info: TensorInfo, row: int) -> bool:
    """Return whether all bytes of a row are 0; false for a row with -0.0, whose bytes are not all 0."""
    size = info.nbytes // info.shape[0]
    begin = (info.storage.offset if info.storage is not None else 0) + info.offset
    data = checkpoint.file(info).read(begin + row * size, size)
    return bytes(data) == bytes(size)


def _of_zeros(checkpoint: Checkpoint, key: str, info: TensorInfo, ordinary: Iterator[int]) -> tuple[list[int], bool]:
    """Return (ids from the beginning of ``ordinary`` up to the first row that is not zero, whether all rows are zeros).

    ``key`` and ``info`` are the key and the header of the embedding.
    """
    zero = list[int]()
    for one in ordinary:
        if not _is_zero(checkpoint, key, info, one):
            return zero, False
        zero.append(one)
    return zero, True


def _ordinary(folder: ModelFolder, tokens: tuple[str, ...]) -> Iterator[int]:
    """Yield the ids of ordinary tokens among the last tokens of a list, from the end."""
    others = {*added_tokens(folder), *named_tokens(folder).values()}
    padding = set(_padding(folder.config))
    for one in range(len(tokens) - 1, max(len(tokens) - _MOST, 0) - 1, -1):
        token = tokens[one]
        if not (one in padding or token in others or SPECIAL.fullmatch(token) or is_placeholder(token)):
            yield one


def _padding(config: Mapping[str, Any]) -> Collection[Any]:
    parts = (config, *(part for part in config.values() if isinstance(part, dict)))
    return [one for part in parts if type(one := part.get(_PADDING)) is int]


LISTS = VOCABULARIES[:3]
"""The files in which a token's id is its row. In sentencepiece models, ids may differ: XLM-R moves them by one."""
MARKS = ("▁", "Ġ", "##")
"""The marks that tokens may begin with. A token with a mark and the same token without it make a pair."""
FEWEST, MOST = 32, 96
"""The smallest and the largest number of pairs that are compared."""
FIRST, TRIED = 20_000, 4_000
"""The largest number of tokens of a list that are searched for a mark, and of tokens with this mark that are tried."""
FURTHEST = 4
"""The largest shift that is tried, in rows."""
CLEAR, LEAST, TIMES, OWN_TIMES = 6.0, 0.1, 2.0, 3.0
"""Pairs are similar if their median cosine is ``CLEAR`` standard errors above the baseline: that of unrelated tokens.

At another shift, pairs are similar only if their median cosine is also ``LEAST`` above the baseline, and its distance
from the baseline is ``TIMES`` the distance at any other shift, and ``OWN_TIMES`` the distance at the rows of the list.
For 92 pairs (``x``, ``##x``) of all-MiniLM-L6-v2, the distance is 20 standard errors at the right rows, and at most 5
at other shifts.
"""
MANY, UNRELATED = 64, 2.5
"""``MANY`` pairs or more are unrelated if their median cosine is below the baseline + ``UNRELATED`` standard errors.

Only pairs count in which both rows have close rows: tokens that do not occur in the training texts keep random rows.
"""
MOST_TRAINED = 192
"""The largest number of pairs for which it is tested whether their rows were trained."""
SPREAD = 1.5
"""An embedding counts as trained if the norms of its rows vary more than this factor times those of random rows."""


class Verdict(NamedTuple):
    """The result for a token list: ``fits`` is true if it fits the embedding. ``off`` and ``other`` are notes, or ''.

    ``off`` says that the list is shifted by some rows, ``other`` that it belongs to another model.
    """

    fits: bool = False
    off: str = ""
    other: str = ""


@notes_of(NoteKind.TOKEN_PAIRS)
def token_pair_notes(checkpoint: Checkpoint, folder: ModelFolder) -> Iterator[str]:
    """Yield a note if the token list of the folder does not fit the rows of the embedding.

    In a trained embedding, similar tokens such as "cat" and "Cat" have similar rows. The note says by how many rows the
    list is shifted, if similar tokens have similar rows after this shift; else that no shift makes the list fit. For
    most models, 192 rows are read, and only in part. If a model has several embeddings, each with a token list of its
    own (``EncoderDecoderModel``), the list must fit one of them. Embeddings that are quantised, float64 or very wide
    are not compared with the list.
    """
    if folder.vocabulary not in LISTS or checkpoint.elsewhere:
        return
    with suppress(CheckpointError, ValueError, OverflowError):  # an infinite number has no finite mean
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


def _has_rows(checkpoint: Checkpoint, key: str) -> bool:
    """Return whether the rows of an embedding can be read, and have a dtype that is compared."""
    from .embedding_rows import can_read

    return is_readable(checkpoint, key) and can_read(checkpoint[key])


def _verdict(checkpoint: Checkpoint, key: str, tokens: Sequence[str], name: str) -> Verdict:
    """Return how well ``tokens`` fit the rows of the embedding ``key``; ``name`` is the name of the tokens' file."""
    info = checkpoint[key]
    every = _pairs(tokens, info.shape[0])
    pairs = _spaced(every, MOST)
    if len(pairs) < FEWEST:
        return Verdict()
    from .embedding_rows import WIDE, Rows  # most checkpoints have no tokens beside them

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
        said = f"the tokens of {escape(name)} are perhaps shifted by {count(abs(shift), 'row')} against {escape(key)}"
        return Verdict(
            off=f"{said}: pairs such as {one} and {two} have rows that are alike (median cosine {means[shift]:.2f}) "
            f"only {apart} the rows that the list gives them ({own:.2f}), so each token has the row of another token"
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
        f"{one} and {two} have rows that are no more alike than any two rows (median cosine {own:.2f}), "
        f"although the embedding seems trained: most of its rows have another row close to them ({near:.2f})"
    )


def _spaced(pairs: Sequence[tuple[int, int]], most: int) -> Sequence[tuple[int, int]]:
    return pairs[:: (len(pairs) - 1) // most + 1] if pairs else pairs


def _pairs(tokens: Sequence[str], rows: int) -> list[tuple[int, int]]:
    """Return the rows of pairs of tokens in the list that differ only in a mark, or only in the case of letters."""
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
    """Return whether the neighbours of both rows of a pair are in the embedding, and no row is a neighbour of both.

    The neighbours are the ``FURTHEST`` rows before and after a row. ``rows`` is the number of rows of the embedding.
    """
    return min(pair) >= FURTHEST and max(pair) < rows - FURTHEST and abs(pair[0] - pair[1]) > 2 * FURTHEST


def _clear_shift(above: Mapping[int, float], error: float) -> int:
    """Return the shift at which pairs are clearly more similar than at all other shifts; 0 if there is none.

    ``above`` maps each shift to the median cosine of the pairs, minus the baseline. ``error`` is the standard error.
    """
    best = max(above, key=lambda one: above[one])
    others = max(abs(value) for shift, value in above.items() if shift != best)
    return best if above[best] > max(CLEAR * error, LEAST, TIMES * others) else 0
