"""The columns of a page's table: headers and values of the tensors, and differences of two checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...tensors.composition import leaves
from ...tensors.info import TensorInfo
from ..compare.changes import Changes, ChangeSums
from ..compare.results import UNREAD, Difference, Numbers, Pair

if TYPE_CHECKING:
    from ..inspection import Inspection
    from ..stats import Stats

__all__ = [
    "STATES",
    "Places",
    "Table",
    "changes_of",
    "difference_of",
    "exact",
    "figure",
    "figures_of",
    "file_of",
    "kind_of",
    "rows_of_both",
]

# Headers. Data by column is small and fast to read: a few megabytes for a hundred thousand tensors.

Places = Mapping[str, int]
"""Maps each key to the index of its row."""


class Table:
    """The table of a page, stored by column: a row for each tensor, in the order of ``tensors``.

    A header (dtype, shape, size) that several tensors share is stored once. Keys are front-coded, as described in
    ``front_coded``. ``parameters`` is a function that returns the number of parameters of a tensor.
    """

    def __init__(
        self,
        tensors: Mapping[str, TensorInfo],
        parameters: Callable[[str, TensorInfo], int] = lambda key, info: info.parameters,
    ) -> None:
        self.places: Places = {key: row for row, key in enumerate(tensors)}
        self._kinds: dict[tuple[object, ...], int] = {}
        self._files: dict[str, int] = {}
        self._shared, self._rest = front_coded(list(tensors))
        self._kind = [self.kind(info, parameters(key, info)) for key, info in tensors.items()]
        self._file = [self._files.setdefault(file_of(info), len(self._files)) for info in tensors.values()]

    def kind(self, info: TensorInfo, parameters: int | None = None) -> int:
        """Return the index of a tensor's header in the table's list of distinct headers (dtype, shape, size).

        A new header is added to the list. ``parameters`` is the tensor's number of parameters; by default,
        ``info.parameters``.
        """
        kind = kind_of(info, info.parameters if parameters is None else parameters)
        return self._kinds.setdefault(kind, len(self._kinds))

    def to_json(self, ties: Mapping[str, str]) -> dict[str, Any]:
        """Return the columns as plain data; ``ties`` maps a tied key to the first key of the same tensor."""
        places = self.places
        return {
            "kinds": list(self._kinds),
            "files": list(self._files),
            "shared": self._shared,
            "rest": self._rest,
            "kind": self._kind,
            "file": self._file if len(self._files) > 1 else [],
            "ties": [[places[key], places[owner]] for key, owner in ties.items() if {key, owner} <= places.keys()],
        }


def kind_of(info: TensorInfo, parameters: int) -> tuple[object, ...]:
    """Return a tensor's dtype, shape, size in bytes, ``parameters``, and why it cannot be read ('' if it can)."""
    return info.dtype, info.shape, info.nbytes, parameters, info.opaque


def file_of(info: TensorInfo) -> str:
    """Return the names of the files that contain a tensor's bytes, separated by commas."""
    return ", ".join(dict.fromkeys(one.storage.file for one in leaves(info) if one.storage))


def front_coded(keys: Sequence[str]) -> tuple[list[int], list[str]]:
    """Return two lists: the length of the prefix that each key shares with the previous key, and the rest of each key.

    Lengths are in UTF-16 code units, as in JavaScript.
    """
    shared, rest, before = list[int](), list[str](), ""
    for key in keys:
        common = _common(before, key)
        shared.append(_units(key[:common]))
        rest.append(key[common:])
        before = key
    return shared, rest


def _common(first: str, second: str) -> int:
    """Return the length of the common prefix of two strings; by binary search, because keys can be long."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[:middle] == second[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _units(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2


# Statistics.

DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""The digits that encode the heights of a histogram's bins; the last digit is the greatest height."""

COUNTS = ("zeros", "nan", "inf")


def figures_of(
    stats: Mapping[str, Stats | None], histograms: Mapping[str, Sequence[int]], places: Places
) -> dict[str, Any]:
    """Return the columns of statistics: for each statistic, such as the mean, a list with a value for each row.

    ``places`` maps each key to its row. The value is None, or '' in the column of histograms, for a tensor without
    statistics.
    """
    found = [stats.get(key) for key in places]
    numbers: dict[str, list[float | None]] = {
        name: [None if one is None else figure(getattr(one, name)) for one in found] for name in ("mean", "std")
    }
    numbers |= {name: [None if one is None else exact(getattr(one, name)) for one in found] for name in ("min", "max")}
    counts = {name: [one and getattr(one, name) for one in found] for name in COUNTS}
    return {**numbers, **counts, "histogram": [_heights(histograms.get(key, ())) for key in places]}


def figure(value: float | None) -> float | None:
    """Return a number rounded to six significant digits, as a page shows it; None if it is not finite."""
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None


def exact(value: float | None) -> float | None:
    """Return a number rounded to nine significant digits, which distinguish any two float32 numbers.

    An integer below 2**53 keeps all its digits. Returns None for None, and for numbers that are not finite.
    """
    if value is None or not math.isfinite(value):
        return None
    return int(value) if value == int(value) and abs(value) < 1 << 53 else float(f"{value:.9g}")


def _heights(counts: Sequence[int]) -> str:
    """Return the heights of a histogram's bins as a string with one of ``DIGITS`` for each bin.

    Heights are relative to the largest bin. A bin that is not empty has at least the height 1.
    """
    top = max(counts, default=0)
    last = len(DIGITS) - 1
    return "".join(DIGITS[-(-number * last // top)] for number in counts) if top else ""


# Changes of several models from a base; the table has a row for each tensor of the base.


def changes_of(found: Changes, coded: Mapping[str, str], places: Places) -> dict[str, Any]:
    """Return the changes of models from their base, for all rows together and for each row, as plain data.

    For each model: the relative change, and the share of values that it changed. For each pair: the cosine, the share
    of values that moved in the same direction, and the share of values that both changed. ``coded`` maps the names of
    quantised weights to the keys of their codes, whose rows have the changes of the weights. ``places`` maps each key
    to its row.
    """
    pairs = list(found.total.pairs)
    rows = [(places.get(coded.get(one.key, one.key)), one.sums) for one in found.tensors]
    return {
        "base": found.base,
        "models": list(found.models),
        "pairs": [list(pair) for pair in pairs],
        "total": _sums(found.total, len(found.models), pairs),
        "rows": [[row, *_sums(sums, len(found.models), pairs)] for row, sums in rows if row is not None],
    }


def _sums(sums: ChangeSums, models: int, pairs: Sequence[tuple[int, int]]) -> list[Any]:
    """Return ``sums`` as a list: two lists with an entry per model, three lists with an entry per pair, and two counts.

    The lists are: relative changes, shares of values changed; cosines, shares moved in the same direction, shares
    changed by both. The first count is the number of values that are not finite in the base or in a model. The second
    is a list with an entry per model: how many of these values differ between the model and the base.
    """
    changes = [sums.models.get(index) for index in range(models)]
    agreements = [sums.pairs.get(pair) for pair in pairs]
    return [
        [one and figure(one.relative) for one in changes],
        [one and figure(one.changed / max(1, one.values)) for one in changes],
        [one and figure(one.cosine) for one in agreements],
        [one and figure(one.share_of_same_sign) for one in agreements],
        [one and figure(one.both / max(1, one.values)) for one in agreements],
        sums.not_finite,
        [one and one.not_finite for one in changes],
    ]


# Differences of two checkpoints; the table has rows for the tensors of both.

STATES = ("same", "close", "changed", "decoded", "retyped", "reshaped", "renamed", "added", "removed", "not compared")


def rows_of_both(found: Difference, first: Inspection, second: Inspection) -> dict[str, TensorInfo]:
    """Return {key: tensor} for the rows of a page that compares two checkpoints.

    They are all tensors of the second checkpoint, and the tensors of the first that the second does not have under any
    name. A quantised weight that was compared after dequantising has one row, under its logical name, in place of its
    parts.
    """
    coded = [tensor for one in (first, second) for tensor in one.codes.tensors]
    names = {one.name for one in coded}
    pairs = (*_decoded(found), *(pair for pair in (*found.reshaped, *found.retyped) if pair.key in names))
    weights = {pair.key: pair.second for pair in pairs}
    weights |= dict.fromkeys(found.not_compared.keys() & names, UNREAD)
    parts = {key for one in coded if one.name in weights for key in one.keys}
    kept = set(second.tensors) | (set(first.tensors) - found.renamed.keys())
    rows = {key: info for key, info in {**first.tensors, **second.tensors}.items() if key in kept - parts}
    return {**rows, **weights}


def _decoded(found: Difference) -> list[Pair]:
    """Return the pairs of weights that differ and that were dequantised for the comparison."""
    return [*found.decoded, *(pair for pair in found.close if any(pair.encodings))]


def difference_of(found: Difference, table: Table) -> dict[str, Any]:
    """Return the state of each row, such as "changed", and details of the rows that differ, as plain data.

    A renamed tensor is in the row of its new name; ``was`` has its old name. ``kind`` has its header in the first
    checkpoint, if shape or dtype differ. ``encodings`` has the two storage formats of a weight that is quantised in at
    least one checkpoint. ``numbers`` has the measures of the difference. Parts of quantised tensors that have no row
    are left out.
    """
    states = _states(found)
    old = {new: key for key, new in found.renamed.items()}
    return {
        "states": list(STATES),
        "state": [STATES.index(states.get(key, "same")) for key in table.places],
        "values": found.values,
        "was": [[table.places[new], key] for new, key in old.items()],
        "kind": [[table.places[pair.key], table.kind(pair.first)] for pair in (*found.reshaped, *found.retyped)],
        "encodings": [[table.places[pair.key], *pair.encodings] for pair in _decoded(found)],
        "numbers": [
            [table.places[pair.key], *_figures(pair.numbers)]
            for pair in _pairs(found)
            if pair.numbers and pair.key in table.places
        ],
        "why": [[table.places[key], why] for key, why in found.not_compared.items() if key in table.places],
        "rules": list(found.rules),
    }


def _pairs(found: Difference) -> Iterable[Pair]:
    """Return all pairs of tensors whose difference was measured, one pair for each key.

    If a dequantised weight and its codes have the same key, the pair of the dequantised weight is returned.
    """
    measured = (*found.changed, *found.close, *found.retyped, *found.reshaped, *found.decoded)
    return {pair.key: pair for pair in measured}.values()


def _states(found: Difference) -> dict[str, str]:
    named = {
        "changed": [pair.key for pair in found.changed],
        "close": [pair.key for pair in found.close],
        "decoded": [pair.key for pair in found.decoded],
        "retyped": [pair.key for pair in found.retyped],
        "reshaped": [pair.key for pair in found.reshaped],
        "renamed": found.renamed.values(),
        "added": found.added,
        "removed": found.removed,
        "not compared": found.not_compared,
    }
    return {key: state for state, keys in named.items() for key in keys}


def _figures(numbers: Numbers) -> list[float | int | None]:
    """Return the fields of ``numbers`` as a list: differing, max_abs, relative, cosine, nan, inf, nan_in, inf_in."""
    distances = (figure(numbers.max_abs), figure(numbers.relative), exact(numbers.cosine))
    return [numbers.differing, *distances, numbers.nan, numbers.inf, *numbers.nan_in, *numbers.inf_in]
