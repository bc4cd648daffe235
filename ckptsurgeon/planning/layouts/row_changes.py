"""Reversible changes of the order of rows in the matrices of an attention: pairs of the rotary embedding, and heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..keys.row_order import HALVES, PAIRS
from .changes import matched, number_of
from .layout import Numbers, Row, Tensors

__all__ = ["HeadsFromThirds", "Paired", "RowsFromThirds", "ThirdsFromHeads"]


@dataclass(frozen=True)
class Paired:
    """A new order of the rows of the queries or keys ``name``, needed because rotary embeddings rotate pairs of rows.

    In the family's own layout, a head has the first rows of all pairs, then the second rows of all pairs. In the other
    layout, the two rows of a pair are side by side. ``number`` is the name of the number of heads.
    """

    name: str
    number: str
    made: str = ""

    def there(self, tensors: Tensors, numbers: Numbers, at: Callable[[str], str]) -> list[Row]:
        """Return the operation on ``name`` that puts the two rows of each pair side by side, as in the other layout."""
        return self._ordered(PAIRS, tensors, numbers, at)

    def back(self, tensors: Tensors, numbers: Numbers, at: Callable[[str], str]) -> list[Row]:
        """Return the operation on ``name`` that puts all first rows of a head's pairs before all second rows."""
        return self._ordered(HALVES, tensors, numbers, at)

    def _ordered(self, order: str, tensors: Tensors, numbers: Numbers, at: Callable[[str], str]) -> list[Row]:
        keys = [f"{at(self.name)}.{leaf}" for leaf in ("weight", "bias")]
        return [{order: key, "heads": number_of(self.number, numbers)} for key in keys if matched(key, tensors)]


@dataclass(frozen=True)
class ThirdsFromHeads:
    """A change of the order of rows in ``name``, a fused tensor of queries, keys and values.

    In the family's own layout, the queries, keys and values of one head follow each other. In the other layout, all
    queries come first, then all keys, then all values. ``groups`` is the name of the number of heads. There are as many
    rows of queries as of keys and of values.
    """

    name: str
    groups: str
    made: str = ""

    def there(self, tensors: Tensors, numbers: Numbers, at: Callable[[str], str]) -> list[Row]:
        """Return the operations on ``name`` that put all queries first, then all keys, then all values."""
        return self._joined({"groups": self.groups}, {}, tensors, numbers, at)

    def back(self, tensors: Tensors, numbers: Numbers, at: Callable[[str], str]) -> list[Row]:
        """Return the operations on ``name`` that put the queries, keys and values of each head together."""
        return self._joined({}, {"groups": self.groups}, tensors, numbers, at)

    def _joined(
        self,
        before: Mapping[str, str],
        after: Mapping[str, str],
        tensors: Tensors,
        numbers: Numbers,
        at: Callable[[str], str],
    ) -> list[Row]:
        name = at(self.name)
        if not matched(name, tensors):
            return []
        parts = [f"{name}_{kind}" for kind in ("queries", "keys", "values")]
        counts = {word: number_of(number, numbers) for word, number in {**before, **after}.items()}
        split, joined = ({word: counts[word] for word in side} for side in (before, after))
        return [{"split": name, "into": parts, **split}, {"concat": parts, "into": name, **joined}]


class HeadsFromThirds(ThirdsFromHeads):
    """A change of the order of rows in ``name``, the reverse of ``ThirdsFromHeads``.

    In the family's own layout, all queries come first, then all keys, then all values. In the other layout, the
    queries, keys and values of one head follow each other.
    """

    def there(self, tensors: Tensors, numbers: Numbers, at: Callable[[str], str]) -> list[Row]:
        """Return the operations on ``name`` that put the queries, keys and values of each head together."""
        return super().back(tensors, numbers, at)

    def back(self, tensors: Tensors, numbers: Numbers, at: Callable[[str], str]) -> list[Row]:
        """Return the operations on ``name`` that put all queries first, then all keys, then all values."""
        return super().there(tensors, numbers, at)


@dataclass(frozen=True)
class RowsFromThirds:
    """A change of the order of rows in ``name``, a fused tensor of queries, keys and values.

    In the family's own layout, all queries come first, then all keys, then all values. In the other layout, each row of
    queries is followed by its row of keys and its row of values.
    """

    name: str
    made: str = ""

    def there(self, tensors: Tensors, numbers: Numbers, at: Callable[[str], str]) -> list[Row]:
        """Return the operations on ``name`` that put a row of keys and a row of values after each row of queries."""
        return self._turned(tensors, at, lambda rows: [3, rows])

    def back(self, tensors: Tensors, numbers: Numbers, at: Callable[[str], str]) -> list[Row]:
        """Return the operations on ``name`` that put all queries first, then all keys, then all values."""
        return self._turned(tensors, at, lambda rows: [rows, 3])

    def _turned(self, tensors: Tensors, at: Callable[[str], str], sizes: Callable[[int], list[int]]) -> list[Row]:
        """Return the operations that divide the rows of ``name`` into two dimensions and swap the two dimensions.

        ``sizes`` returns the sizes of the two dimensions, from a third of the number of rows.
        """
        found: list[Row] = []
        for key in matched(at(self.name), tensors):
            rows, *others = tensors[key].shape
            found.append({"reshape": key, "shape": [*sizes(rows // 3), *others]})
            found.append({"transpose": key, "dims": [0, 1]})
            found.append({"reshape": key, "shape": [rows, *others]})
        return found
