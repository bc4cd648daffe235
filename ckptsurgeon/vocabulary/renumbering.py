"""Maps token ids of an old vocabulary to ids of a new one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["LostId", "Renumbering"]


@dataclass(frozen=True)
class Renumbering:
    """Maps token ids of an old vocabulary to ids of a new one.

    ``old`` has the old tokens in the order of their ids, and ``new`` maps new tokens to their ids. ``spelled`` maps old
    tokens to new tokens with another name. If ``has_texts`` is False, only the number of tokens in ``old`` and ``new``
    is known, not their texts.
    """

    old: Sequence[str]
    new: Mapping[str, int]
    spelled: Mapping[str, str]
    has_texts: bool = True

    @staticmethod
    def of(old: Sequence[str], new: Sequence[str], spelled: Mapping[str, str] | None = None) -> Renumbering:
        """Return the renumbering from one list of tokens to another."""
        return Renumbering(old, {token: place for place, token in enumerate(new)}, spelled or {})

    @staticmethod
    def first(rows: int, of: int) -> Renumbering:
        """Return the renumbering for a vocabulary of ``of`` rows that is cut to its first ``rows`` rows.

        Ids below ``rows`` do not change. Ids that are beyond the old vocabulary do not change either.
        """
        return Renumbering([""] * of, {str(number): number for number in range(rows)}, {}, has_texts=False)

    def token(self, number: int) -> str:
        """Return the token that has the id ``number`` in the old vocabulary; "" if it is not known."""
        return self.old[number] if self.has_texts and 0 <= number < len(self.old) else ""

    def moved(self, number: int) -> int | None:
        """Return the new id of the token with the old id ``number``; None if the new vocabulary lacks the token."""
        if not self.has_texts:
            return number if number < len(self.new) or number >= len(self.old) else None
        token = self.token(number)
        return self.place_of(token) if token else None

    def place_of(self, token: str) -> int | None:
        """Return the new id of a token; None if the new vocabulary lacks the token."""
        return self.new.get(self.spelled.get(token, token))


@dataclass(frozen=True)
class LostId:
    """An id in a field of a configuration, and its old token: for example, one that the new vocabulary lacks."""

    field: str
    number: int
    token: str
