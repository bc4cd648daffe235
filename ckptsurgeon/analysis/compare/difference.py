"""What differs between two checkpoints, tensor by tensor, whatever their formats, shards and wrappers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...planning.keys.choosing import chosen_keys
from ...tensors.encodings._agreement import Decoded, disagreements
from ...tensors.info import TensorInfo
from ...util.notebook import InNotebooks
from ...util.text import escape, natural_key
from .outline import Outline, outline_of

__all__ = ["Difference", "Numbers", "Pair", "Tolerance", "compare", "compare_outlines"]

Progress = Callable[[int, int], None]
Given = Iterable[str] | None


@dataclass(frozen=True)
class Tolerance:
    """Two values are equal when they differ by at most ``absolute + relative * |second|``, as in numpy's isclose."""

    relative: float = 0.0
    absolute: float = 0.0


@dataclass(frozen=True)
class Numbers:
    """How far two tensors whose bytes differ are apart: of ``differing`` elements, over those that are finite in both.

    ``differing`` is zero where the values are equal in other bits (zeros of another sign, other NaN). ``relative`` is
    the L2 norm of the difference over that of the first, ``cosine`` the angle between the two; None where a norm is
    zero, as ``max_abs`` and they are where they are beyond float64. ``nan`` counts elements that are NaN in one of
    them only, ``inf`` those that are an infinity in one of them only, the other being a number or another infinity.
    """

    differing: int
    max_abs: float | None
    relative: float | None
    cosine: float | None
    nan: int
    inf: int = 0


@dataclass(frozen=True)
class Pair:
    """A tensor that both have, with what is different.

    ``numbers`` is set where its values were read and differ in a byte, unless its type is packed and has no figures,
    or they are the codes of a quantised tensor: then ``codes`` says of which method.
    """

    key: str
    first: TensorInfo
    second: TensorInfo
    numbers: Numbers | None = None
    codes: str = ""


@dataclass(frozen=True, repr=False)
class Difference(InNotebooks):
    """Two checkpoints held against each other.

    ``added`` are only in the second, ``removed`` only in the first. ``reshaped``, ``retyped``, ``changed`` and
    ``close`` (equal within the tolerance) are in both. ``identical`` counts the tensors that are the same: byte for
    byte where ``values`` is set, in dtype and shape where it is not. ``renamed`` maps keys of the first to keys of
    the second that hold the same bytes, and ``rules`` are the ``--map`` rules that rename them, once the first's
    wrappers are off where ``unwrap`` is set. ``same`` are the keys of what is identical, ``not_compared`` those whose
    values cannot be read (sparse, quantised), with why. ``left_out`` counts the keys that nobody asked to compare.
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

    def __repr__(self) -> str:
        names = ("removed", "added", "reshaped", "retyped", "changed", "close", "renamed", "not_compared")
        found = [f"{len(getattr(self, name))} {name.replace('_', ' ')}" for name in names if getattr(self, name)]
        both = f"{escape(self.first)} and {escape(self.second)}"
        return f"<Difference of {both}: {', '.join([*found, f'{self.identical} identical'])}>"

    @property
    def differs(self) -> bool:
        """Whether the two are anything but known to be the same; what could not be compared is not known to be."""
        found = self.added or self.removed or self.reshaped or self.retyped or self.changed or self.renamed
        return bool(found or self.not_compared)

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


def compare_outlines(
    first: Outline, second: Outline, *, values: bool = False, include: Given = (), exclude: Given = ()
) -> Difference:
    """Compare two checkpoints by their headers; ``values`` says that their values are compared next.

    ``include`` and ``exclude`` say of which keys of either. Raises PatternError for a pattern that matches none.
    """
    every = dict.fromkeys((*first.tensors, *second.tensors))
    chosen = chosen_keys(list(every), include, exclude, whose="checkpoint")
    if len(chosen.keys) < len(every):
        first, second = first.only(frozenset(chosen.keys)), second.only(frozenset(chosen.keys))
    here, there = first.tensors, second.tensors
    removed, same = list[str](), list[str]()
    reshaped, retyped = list[Pair](), list[Pair]()
    for key, info in here.items():
        other = there.get(key)
        if other is None:
            removed.append(key)
        elif info.shape != other.shape:
            reshaped.append(Pair(key, info, other))
        elif info.dtype == other.dtype:
            same.append(key)
        else:
            retyped.append(Pair(key, info, other))
    added = [key for key in there if key not in here]
    notes = (*first.notes, *second.notes, *chosen.notes, *_decoded(first, second))
    return Difference(
        first.path, second.path, values, _sorted(added), _sorted(removed), tuple(reshaped), tuple(retyped),
        identical=len(same), notes=notes, same=tuple(same),
        left_out=len(every) - len(chosen.keys),
    )  # fmt: skip


def _decoded(first: Outline, second: Outline) -> list[str]:
    """Say by which settings the same codes stand for other numbers in the second."""
    both = first.tensors.keys() & second.tensors.keys()
    here, there = ([Decoded.of(*said) for key, said in one.coded.items() if key in both] for one in (first, second))
    found = disagreements(here, first.quantisation, second.quantisation)
    found += [(name, b, a) for name, a, b in disagreements(there, second.quantisation, first.quantisation)]
    return [
        f"the same codes stand for other numbers: {name} is {escape(a)} in {escape(first.path)}, {escape(b)} in "
        f"{escape(second.path)}"
        for name, a, b in dict.fromkeys(found)
    ]


def compare(
    first: Checkpoint,
    second: Checkpoint,
    *,
    values: bool = False,
    tolerance: Tolerance | None = None,
    renames: bool = False,
    include: Given = (),
    exclude: Given = (),
    progress: Progress | None = None,
) -> Difference:
    """Compare two open checkpoints, or those of their tensors that patterns choose.

    From headers only, unless ``values`` asks for every byte of what both have, ``renames`` for those of what only one
    has and the other could. Bytes that both files share are not read. Raises SourceError where a file cannot be read,
    FormatError where a record that is read was stored with a CRC-32 and fails it; safetensors stores none.
    PatternError for a pattern that matches nothing.
    """
    outlines = outline_of(first), outline_of(second)
    found = compare_outlines(*outlines, values=values, include=include, exclude=exclude)
    if values:
        from .values import with_values

        both = {*found.same, *(pair.key for pair in found.retyped)}
        same_shape = [key for key in first if key in both]
        found = with_values(found, first, second, same_shape, tolerance=tolerance or Tolerance(), progress=progress)
    if renames and found.added and found.removed:
        from .renames import with_renames

        found = with_renames(found, first, second)
    return found


def _sorted(keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(keys, key=natural_key))
