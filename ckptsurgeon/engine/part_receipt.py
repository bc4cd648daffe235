"""Defines the result of writing one file (part) of an output: checksums, and the data for notes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..planning.plan.receipt import FactorFit, RoundedTensor

if TYPE_CHECKING:
    from ..tensors.ops.casts import CastLosses

__all__ = ["CHANGES", "EVERY", "NO_MAGNITUDE", "ZERO", "ZERO_DORA", "PartReceipt"]

CHANGES = EVERY, ZERO, ZERO_DORA, NO_MAGNITUDE = "every", "zero", "zero DoRA", "no magnitude"
"""The names of four groups of the tensors for which an adapter has factors.

EVERY: all of these tensors. ZERO: tensors that do not change, because a factor or the scale is zero. ZERO_DORA: tensors
with a zero factor or scale, which the magnitudes of DoRA may still change. NO_MAGNITUDE: tensors for which a magnitude
of DoRA is zero.
"""


@dataclass
class PartReceipt:
    """The result of writing one file of an output; ``name`` is its name in the folder, "" if it is the whole output.

    Four fields are {key of a tensor: value}. ``checksums`` has the CRC-32 of the tensor's bytes. ``lost`` counts the
    values that became infinite or zero in a cast. ``unsound`` counts NaN and infinite values that come from the inputs.
    ``negative`` counts variances that became negative.

    ``unsound_copies`` are the keys of copied tensors in which NaN or infinite values were seen; only a part of a large
    tensor is looked at. ``odd_scales`` is {path of a source: {kind of suspicious scale: names of quantised tensors}}.
    ``adapters`` is {path of an adapter: {name of a group in ``CHANGES``: keys of the tensors}}. ``zeros`` is {path of a
    source: {name of its file: the offsets of pages of zeros that were read}}. ``nbytes_read`` is the number of bytes
    that were read from the inputs. ``digest`` is the SHA-256 of all bytes of the file that do not belong to a tensor.
    ``grown`` is {key of a merged tensor: its largest value, divided by the largest value of all inputs}, for tensors
    that became far larger.
    """

    name: str
    checksums: dict[str, int] = field(default_factory=dict)
    lost: dict[str, CastLosses] = field(default_factory=dict)
    unsound: dict[str, int] = field(default_factory=dict)
    unsound_copies: list[str] = field(default_factory=list)
    negative: dict[str, int] = field(default_factory=dict)
    odd_scales: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    adapters: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    zeros: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    nbytes_read: int = 0
    fits: tuple[FactorFit, ...] = ()
    rounded: tuple[RoundedTensor, ...] = ()
    digest: str = ""
    grown: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the receipt as plain data."""
        return {
            "name": self.name,
            "checksums": self.checksums,
            "lost": {key: [one.infinite, one.zero] for key, one in self.lost.items() if one.infinite or one.zero},
            "unsound": self.unsound,
            "unsound_copies": self.unsound_copies,
            "negative": self.negative,
            "odd_scales": self.odd_scales,
            "adapters": self.adapters,
            "zeros": self.zeros,
            "nbytes_read": self.nbytes_read,
            "fits": [[one.key, one.shape, one.rank, one.error] for one in self.fits],
            "rounded": [[one.key, one.shape, one.error, one.largest] for one in self.rounded],
            "digest": self.digest,
            "grown": self.grown,
        }

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> PartReceipt:
        """Return the receipt from the result of ``to_json``, ``row``; raises KeyError, TypeError or ValueError."""
        lost: dict[str, CastLosses] = {}
        if row["lost"]:
            from ..tensors.ops.casts import CastLosses  # imports numpy

            lost = {str(key): CastLosses(int(infinite), int(zero)) for key, (infinite, zero) in row["lost"].items()}
        return PartReceipt(
            str(row["name"]),
            _numbers(row["checksums"]),
            lost,
            _numbers(row["unsound"]),
            [str(key) for key in row["unsound_copies"]],
            _numbers(row["negative"]),
            {str(path): _names(one) for path, one in row["odd_scales"].items()},
            {str(path): _names(one) for path, one in row["adapters"].items()},
            {str(path): _offsets(one) for path, one in row["zeros"].items()},
            int(row["nbytes_read"]),
            tuple(FactorFit(str(key), _shape(dims), int(rank), float(error)) for key, dims, rank, error in row["fits"]),
            tuple(
                RoundedTensor(str(key), _shape(dims), float(error), float(largest))
                for key, dims, error, largest in row["rounded"]
            ),
            str(row["digest"]),
            {str(key): float(times) for key, times in row["grown"].items()},
        )


def _numbers(row: Mapping[str, Any]) -> dict[str, int]:
    return {str(key): int(number) for key, number in row.items()}


def _names(row: Mapping[str, Any]) -> dict[str, list[str]]:
    return {str(kind): [str(name) for name in names] for kind, names in row.items()}


def _offsets(row: Mapping[str, Any]) -> dict[str, list[int]]:
    return {str(name): [int(offset) for offset in offsets] for name, offsets in row.items()}


def _shape(dims: Any) -> tuple[int, ...]:
    return tuple(int(dim) for dim in dims)
