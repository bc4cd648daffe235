"""LoHa and LoKr: adapters whose change is the element-wise (LoHa) or Kronecker (LoKr) product of matrices W1 and W2.

Each of W1 and W2 is a stored tensor, or the product of two stored factors. This module handles only names and shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ...errors import FormatError
from ...tensors.info import TensorInfo
from ...util.text import escape, listing, shape_text
from .tucker import PRODUCT, plain_kind, plain_shapes

__all__ = ["COMPOSED", "CORES", "HADAMARD", "SIDES", "ComposedShape", "composed_parts", "composed_shape"]

COMPOSED = ("hada_", "lokr_")
"""The roles of the tensors of LoHa and LoKr begin with one of these; a role is for example ``hada_w1_a``."""

HADAMARD = "hadamard"

SIDES: Mapping[str, tuple[int, int]] = {
    HADAMARD: (2, 2), "kronecker 1 1": (1, 1), "kronecker 1 2": (1, 2), "kronecker 2 1": (2, 1), "kronecker 2 2": (2, 2)
}  # fmt: skip
"""{kind of change: (number of tensors from which W1 is made, number for W2)}"""

CORES = ("hada_t1", "hada_t2", "lokr_t2")
"""The roles of the cores of Tucker decompositions."""


@dataclass(frozen=True)
class ComposedShape:
    """The shape of the change of a module, (``rows``, ``columns``), and the largest rank that it can have."""

    rows: int
    columns: int
    rank: int


def composed_shape(kind: str, shapes: Sequence[Sequence[int]]) -> ComposedShape | None:
    """Return the shape of the change that is made of tensors with these shapes; None if they do not fit each other.

    ``kind`` is the kind of the change: one of ``SIDES``, or ``PRODUCT``, the product of two matrices.
    """
    if kind == PRODUCT:
        return _side(shapes) if len(shapes) == 2 else None
    at = SIDES[kind][0]
    first, second = _side(shapes[:at]), _side(shapes[at:])
    if first is None or second is None or len(shapes) != sum(SIDES[kind]):
        return None
    rank = first.rank * second.rank
    if kind != HADAMARD:
        return ComposedShape(first.rows * second.rows, first.columns * second.columns, rank)
    if (first.rows, first.columns) != (second.rows, second.columns):
        return None
    return ComposedShape(first.rows, first.columns, min(rank, first.rows, first.columns))


def _side(shapes: Sequence[Sequence[int]]) -> ComposedShape | None:
    """Return the shape of the product of one or two matrices.

    Returns None if they are not matrices, or do not fit each other.
    """
    if not shapes or any(len(shape) != 2 or not all(shape) for shape in shapes):
        return None
    if any(one[1] != other[0] for one, other in pairwise(shapes)):
        return None
    return ComposedShape(shapes[0][0], shapes[-1][1], min(size for shape in shapes for size in shape))


def composed_parts(
    keys: Mapping[str, str], tensors: Mapping[str, TensorInfo], name: str, *, kernels: bool = False
) -> tuple[str, list[str], int]:
    """Return the kind of a module's change, the keys of its tensors in order, and the rank of its factors.

    ``keys`` maps roles such as ``hada_w1_a`` to the keys of the adapter ``name``. The rank is 0 if no matrix is
    factorised. If ``kernels``, the module may be a convolution, also with a Tucker decomposition. Raises FormatError if
    a tensor is missing or does not fit the others.
    """
    kind, roles = _kind_and_roles(keys, name)
    own = [keys[role] for role in roles]
    shapes = [tensors[key].shape for key in own]
    cores = {f"{role[:5]}w{role[6]}_a" for role in roles if role in CORES}  # hada_t1: hada_w1_a
    ranks = {_rank(tensors[keys[role]].shape, is_tucker=role in cores) for role in roles if role.endswith("_a")}
    plain = plain_shapes(kind, shapes) if kernels else shapes
    if composed_shape(plain_kind(kind), plain) is None or len(ranks) > 1:
        raise _misfit(name, dict(zip(own, shapes, strict=True)), kernels=kernels)
    return kind, own, ranks.pop()[0] if ranks else 0


def _misfit(name: str, shapes: Mapping[str, Sequence[int]], *, kernels: bool) -> FormatError:
    """Return the error for a module whose tensors, with these shapes by key, do not fit each other.

    If ``kernels`` is false, a convolution gets a different error.
    """
    given = ", ".join(f"{escape(key)} {shape_text(shape)}" for key, shape in shapes.items())
    if not kernels and any(len(shape) > 2 for shape in shapes.values()):
        return FormatError(
            f"a module of {escape(name)} is a convolution, and only linear layers can be converted: {given}.",
            hint="Leave the module out with --exclude, or merge the adapter with ckpt lora merge.",
            rule="rank",
        )
    return FormatError(
        f"the factors of a module of {escape(name)} do not fit each other: {given}.",
        hint="Save the adapter again."
        if kernels
        else "Leave the module out with --exclude, or merge the adapter with the toolkit that made it.",
        rule="rank",
    )


def _rank(shape: Sequence[int], *, is_tucker: bool) -> Sequence[int]:
    """Return (rank,) for the shape of a factor: (out, rank) or, in a Tucker decomposition, (rank, out)."""
    return shape[:1] if is_tucker else shape[-1:]


def _kind_and_roles(keys: Mapping[str, str], name: str) -> tuple[str, list[str]]:
    """Return the kind of a module's change, and the roles of its tensors in order.

    Raises FormatError if a tensor is missing, or does not belong to this kind.
    """
    method = "hada" if any(role.startswith("hada_") for role in keys) else "lokr"
    cores = [core for core in CORES if core in keys]
    sides = [_side_roles(f"{method}_w{at}", f"{method}_t{at}", keys, has_core=bool(cores)) for at in (1, 2)]
    roles = [*sides[0], *sides[1]]
    lacking = [role for role in roles if role not in keys]
    more = [key for role, key in keys.items() if role not in (*roles, "alpha", "magnitude")]
    if lacking or more or (method == "hada" and len(roles) not in (4, 6)):
        have = next((key for role, key in keys.items() if "_w" in role), next(iter(keys.values())))
        what = f"lacks {' and '.join(lacking)}" if lacking else f"also has {listing(more)}"
        raise FormatError(
            f"{escape(name)} has an incomplete adapter module: it has {escape(have)}, but {what}.",
            rule="half an adapter",
        )
    if method == "hada":
        return f"{HADAMARD} tucker" if cores else HADAMARD, roles
    return f"kronecker {len(sides[0])} {'tucker' if cores else len(sides[1])}", roles


def _side_roles(matrix: str, core: str, keys: Mapping[str, str], *, has_core: bool) -> list[str]:
    """Return the roles of the tensors of W1 or W2: ``matrix`` itself, or its ``core`` (if any) and two factors."""
    if has_core and core in CORES:
        return [core, f"{matrix}_a", f"{matrix}_b"]
    return [matrix] if matrix in keys else [f"{matrix}_a", f"{matrix}_b"]
