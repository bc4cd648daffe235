"""The difference of two checkpoints, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ...tensors.info import TensorInfo
from ...util.notebook import InNotebooks
from ...util.text import escape

__all__ = ["UNREAD", "Difference", "Numbers", "Pair", "Tolerance"]


@dataclass(frozen=True)
class Tolerance:
    """Values count as equal if they differ by at most ``absolute + relative * |second|``, as in numpy's isclose."""

    relative: float = 0.0
    absolute: float = 0.0


@dataclass(frozen=True)
class Numbers:
    """The distance of two tensors whose bytes differ, over the elements that are finite in both.

    ``differing`` is the number of elements that differ; it is zero if only bits differ (the sign of zeros, other NaN).
    ``relative`` is the L2 norm of the difference divided by the L2 norm of the first tensor, ``cosine`` the cosine of
    the angle between the tensors as vectors. Both are None if a norm is zero, and any figure is None if float64 cannot
    hold it. ``nan`` is the number of elements that are NaN in only one tensor, ``inf`` the number of elements that are
    infinite in only one tensor, or a different infinity in each. ``nan_in`` and ``inf_in`` count the elements that are
    NaN or infinite in the first tensor only, and those in the second tensor only.
    """

    differing: int
    max_abs: float | None
    relative: float | None
    cosine: float | None
    nan: int
    inf: int = 0
    nan_in: tuple[int, int] = (0, 0)
    inf_in: tuple[int, int] = (0, 0)


UNREAD = TensorInfo("uint8", (0,))
"""The header that stands in for a decoded weight if its codes cannot be decoded."""


@dataclass(frozen=True)
class Pair:
    """A tensor that both checkpoints have, and that differs.

    ``numbers`` is set if the values were read and a byte differs. It is None for dtypes that pack several values into a
    byte, for torch's quantised dtypes, and for the codes of a quantised tensor: then ``codes`` is the name of the
    quantisation method. ``encodings`` is set if a quantised weight is compared by its decoded values: it has, for each
    checkpoint, the quantisation method of the weight, or the dtype of the weight if it is stored as plain numbers.
    """

    key: str
    first: TensorInfo
    second: TensorInfo
    numbers: Numbers | None = None
    codes: str = ""
    encodings: tuple[str, str] = ("", "")


@dataclass(frozen=True, repr=False)
class Difference(InNotebooks):
    """The result of comparing two checkpoints.

    ``added`` are keys that only the second checkpoint has, ``removed`` keys that only the first has. ``reshaped``,
    ``retyped``, ``changed`` and ``close`` (equal within the tolerance) are tensors with a key that both have.
    ``identical`` is the number of tensors that are the same: byte for byte if ``values`` is set, otherwise in dtype and
    shape. ``renamed`` maps keys of the first checkpoint to keys of the second whose tensors have the same bytes. If the
    second checkpoint has another tensor under the old key of a renamed tensor, the old key is in ``added``. If the
    first checkpoint has another tensor under the new key, and this tensor is not renamed itself, the new key is in
    ``removed``. ``rules`` are the ``--map`` rules for these renames, to be used with --unwrap if ``unwrap`` is set.
    ``same`` are the keys of the identical tensors. ``not_compared`` maps the keys of tensors whose values cannot be
    read (sparse, quantised) to the reason. ``decoded`` has the quantised weights that were compared by their decoded
    values, under their logical names: weights whose codes or scales differ, and weights that are encoded differently.
    The stored parts of weights that are encoded differently are in none of the other groups. ``left_out`` is the number
    of keys that patterns did not select. ``has_values`` is False if the second checkpoint is a configuration.
    """

    first: str
    second: str
    values: bool
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    reshaped: tuple[Pair, ...] = ()
    retyped: tuple[Pair, ...] = ()
    changed: tuple[Pair, ...] = ()
    close: tuple[Pair, ...] = ()
    identical: int = 0
    renamed: Mapping[str, str] = field(default_factory=dict)
    rules: tuple[str, ...] = ()
    unwrap: bool = False
    not_compared: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    same: tuple[str, ...] = ()
    left_out: int = 0
    decoded: tuple[Pair, ...] = ()
    has_values: bool = True

    def __repr__(self) -> str:
        names = ("removed", "added", "reshaped", "retyped", "changed", "close", "decoded", "renamed", "not_compared")
        found = [f"{len(getattr(self, name))} {name.replace('_', ' ')}" for name in names if getattr(self, name)]
        both = f"{escape(self.first)} and {escape(self.second)}"
        return f"<Difference of {both}: {', '.join([*found, f'{self.identical} identical'])}>"

    @property
    def differs(self) -> bool:
        """True if the two checkpoints differ, or a tensor could not be compared."""
        found = self.added or self.removed or self.reshaped or self.retyped or self.changed or self.renamed
        return bool(found or self.decoded or self.not_compared)

    def to_json(self) -> dict[str, Any]:
        """Return the difference as plain data."""
        return {
            "kind": "ckpt.diff",
            "version": 1,
            "first": self.first,
            "second": self.second,
            "differs": self.differs,
            "values": self.values,
            "added": list(self.added),
            "removed": list(self.removed),
            "reshaped": [
                {"key": p.key, "from": list(p.first.shape), "to": list(p.second.shape)} for p in self.reshaped
            ],
            "retyped": [
                {"key": p.key, "from": p.first.dtype, "to": p.second.dtype, **_numbers(p)} for p in self.retyped
            ],
            "changed": [{"key": p.key, **_numbers(p)} for p in self.changed],
            "close": [{"key": p.key, **_numbers(p)} for p in self.close],
            "decoded": [
                {"key": p.key, "from": p.encodings[0], "to": p.encodings[1], **_numbers(p)} for p in self.decoded
            ],
            "renamed": [{"from": old, "to": new} for old, new in self.renamed.items()],
            "rules": list(self.rules),
            "unwrap": self.unwrap,
            "identical": self.identical,
            "left_out": self.left_out,
            "not_compared": [{"key": key, "why": why} for key, why in self.not_compared.items()],
            "notes": list(self.notes),
        }


def _numbers(pair: Pair) -> dict[str, Any]:
    if pair.codes:
        return {"codes": pair.codes}
    return asdict(pair.numbers) if pair.numbers is not None else {}
