"""Which rows of a source's vocabulary make each row of a destination's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import ConfigError
from ..planning.plan.rows import Row, Rows
from ..util.text import escape, listing
from .pieces import Pieces
from .vocabulary import Vocabulary

__all__ = ["NEW_TOKENS", "map_tokens"]

NEW_TOKENS = ("init", "mean", "zero", "subword")
"""What the row of a token becomes that the source does not have."""


def map_tokens(
    source: Vocabulary, destination: Vocabulary, *, spelled: Mapping[str, str] | None = None, new: str = "init"
) -> Rows:
    """Return the rows of ``destination`` as rows of ``source``; a token that both have keeps its row.

    ``spelled`` maps tokens of the source to those of the destination that play their part. New tokens get the
    destination's initial value, the mean of all rows, zero, or (``subword``) the mean of the rows of the pieces into
    which the source's vocabulary cuts them, and the initial value where it cannot. Raises ConfigError.
    """
    if new not in NEW_TOKENS:
        raise ConfigError(f"--new-tokens {new} is unknown.", hint=f"Use {', '.join(NEW_TOKENS)}.")
    rows = {token: row for row, token in enumerate(source.tokens)}
    spelled = dict(spelled or {})
    _check_spelled(spelled, source, destination)
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
            f"{source.name} and {destination.name} have no token in common.",
            hint=f"{destination.name} begins with {escape(shown)}. Are they of one kind?",
        )
    return Rows(source.name, destination.name, len(source.tokens), tuple(found), "init" if new == "subword" else new)


def _check_spelled(spelled: Mapping[str, str], source: Vocabulary, destination: Vocabulary) -> None:
    for token, target in spelled.items():
        for one, vocabulary in ((token, source), (target, destination)):
            if one not in vocabulary.tokens:
                where = f"--token-map {escape(token)}={escape(target)}"
                raise ConfigError(
                    f"{where}: {vocabulary.name} has no token {escape(repr(one))}.", hint=_near(one, vocabulary.tokens)
                )
    if len(set(spelled.values())) < len(spelled):
        raise ConfigError("--token-map gives one token of the destination two rows.")


def _near(token: str, tokens: Sequence[str]) -> str:
    import difflib

    near = difflib.get_close_matches(token, tokens[:10_000], n=3)
    return f"Did you mean {' or '.join(map(escape, near))}?" if near else ""
