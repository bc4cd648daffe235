"""Maps rows of a source's vocabulary to rows of a destination's, and cuts tokens into known pieces."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..errors import ConfigError
from ..planning.plan.rows import OMP, Row, VocabularyRows
from ..util.text import escape, listing
from .vocabulary import Vocabulary

__all__ = ["NEW_TOKENS", "Pieces", "greedy", "map_tokens"]


def greedy(token: str, rows: Mapping[str, int], inside: str, longest: int) -> tuple[int, ...]:
    """Return the rows of the pieces of a token, each piece as long as possible; empty if the token cannot be cut.

    ``rows`` maps each piece to its row, and ``longest`` is the length of the longest piece. ``inside`` is the prefix of
    pieces that do not begin a word, such as ``##``. If the token begins with this prefix, it is cut only into pieces
    with the prefix. Special tokens such as ``[MASK]`` are not cut.
    """
    if token[0] == "[" and token[-1] == "]":
        return ()
    begin = len(inside) if token.startswith(inside) and len(token) > len(inside) else 0
    found: list[int] = []
    while begin < len(token):
        mark = inside if begin else ""
        ends = range(min(len(token), begin + longest), begin, -1)
        end = next((end for end in ends if mark + token[begin:end] in rows), None)
        if end is None:
            return ()
        found.append(rows[mark + token[begin:end]])
        begin = end
    return tuple(found)


# Cuts a token into pieces that a vocabulary has.

_LONGEST = 512
"""Tokens with more characters than this are not cut into pieces, because they are not words."""


class Pieces:
    """The pieces of a vocabulary, with their log-probabilities if the vocabulary has them.

    If there are log-probabilities, a token is cut into the most probable pieces, as by a unigram model (Kudo,
    arXiv:1804.10959). For WordPiece, each piece is as long as possible. Otherwise, a token is cut into as few pieces as
    possible.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._rows = {token: row for row, token in enumerate(vocabulary.tokens) if token}
        self._scores = vocabulary.scores
        self._inside = vocabulary.inside
        self._longest = max(map(len, self._rows), default=0)

    def cut(self, token: str) -> tuple[int, ...]:
        """Return the rows of the pieces of a token; empty if it cannot be cut into known pieces."""
        if not token or len(token) > _LONGEST or (token[0] == "<" and token[-1] == ">"):
            return ()
        if self._inside:
            return greedy(token, self._rows, self._inside, self._longest)
        best: list[tuple[float, tuple[int, ...]] | None] = [(0.0, ()), *(None for _ in token)]
        for end in range(1, len(token) + 1):
            for begin in range(max(0, end - self._longest), end):
                before, row = best[begin], self._rows.get(token[begin:end])
                if before is None or row is None:
                    continue
                score = before[0] + (self._scores[row] if self._scores else -1.0)
                here = best[end]
                if score > (here[0] if here is not None else -math.inf):
                    best[end] = (score, (*before[1], row))
        found = best[-1]
        return found[1] if found is not None else ()


NEW_TOKENS = ("init", "mean", "zero", "subword")
"""The ways to fill the row of a token that the source does not have. Another way, ``omp``, needs a donor."""


def map_tokens(
    source: Vocabulary,
    destination: Vocabulary,
    *,
    spelled: Mapping[str, str] | None = None,
    new: str = "init",
    names: tuple[str, str] | None = None,
) -> VocabularyRows:
    """Return, for each row of ``destination``, the row of ``source`` with the same token, or the way to fill the row.

    ``spelled`` maps tokens of the source to tokens of the destination with another name. ``new`` is the way to fill the
    row of a token that the source lacks: the destination's initial value (``init``), the mean of all rows (``mean``),
    zeros (``zero``), or a sum of rows that a donor decides (``omp``). With ``subword``, the row is the mean of the rows
    of the token's pieces in the source's vocabulary, or the initial value if the token cannot be cut. ``names`` are the
    names of the two lists in messages, by default their file names. Raises ConfigError if ``new`` or ``spelled`` is
    wrong, or if the vocabularies share no token.
    """
    if new not in (*NEW_TOKENS, OMP):
        raise ConfigError(
            f"--new-tokens {new} is unknown.",
            hint=f"Use {', '.join(NEW_TOKENS)}, or, with ckpt resize --tokenizer, omp.",
        )
    rows = {token: row for row, token in enumerate(source.tokens)}
    spelled = dict(spelled or {})
    first, second = names or (source.name, destination.name)
    _check_spelled(spelled, (source, first), (destination, second))
    theirs = {target: rows[token] for token, target in spelled.items()}
    taken = set(spelled)
    pieces = Pieces(source) if new == "subword" else None
    found: list[Row] = []
    for token in destination.tokens:
        row: Row = theirs.get(token, rows.get(token) if token not in taken else None)
        if row is None and pieces is not None:
            cut = pieces.cut(token)
            row = cut[0] if len(cut) == 1 else cut or None
        found.append(row)
    if not any(isinstance(row, int) for row in found):
        shown = listing([repr(token) for token in destination.tokens[:3]], where="")
        raise ConfigError(
            f"the vocabularies {escape(first)} and {escape(second)} have no token in common.",
            hint=f"Give token lists of tokenisers that share tokens: {escape(second)} begins with {escape(shown)}.",
        )
    return VocabularyRows(
        source.name, destination.name, len(source.tokens), tuple(found), "init" if new == "subword" else new
    )


def _check_spelled(
    spelled: Mapping[str, str], source: tuple[Vocabulary, str], destination: tuple[Vocabulary, str]
) -> None:
    """Raise ConfigError for a pair whose first token is not in ``source``, or whose second is not in ``destination``.

    Also raises ConfigError if two tokens are mapped to the same token. ``source`` and ``destination`` are pairs: a
    vocabulary, and its name for messages.
    """
    for token, target in spelled.items():
        for one, (vocabulary, name) in ((token, source), (target, destination)):
            if one not in vocabulary.tokens:
                where = f"--token-map {escape(token)}={escape(target)}"
                raise ConfigError(
                    f"{where}: {escape(name)} has no token {escape(repr(one))}.", hint=_near(one, vocabulary.tokens)
                )
    known: dict[str, str] = {}
    for token, target in spelled.items():
        if (other := known.setdefault(target, token)) != token:
            both = f"{escape(repr(other))} and {escape(repr(token))}"
            raise ConfigError(
                f"--token-map maps both {both} to {escape(repr(target))}.",
                hint="Map one token of the source to each token of the destination.",
            )


def _near(token: str, tokens: Sequence[str]) -> str:
    import difflib

    near = difflib.get_close_matches(token, tokens[:10_000], n=3)
    return f"Did you mean {' or '.join(map(escape, near))}?" if near else ""
