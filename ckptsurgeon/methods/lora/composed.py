"""LoHa and LoKr: adapters whose changes are products of two matrices W1 and W2, element by element or of Kronecker.

W1 and W2 are themselves tensors, or products of two factors. Only names and shapes are handled here; those of an OFT
are in ``rotated``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from ...errors import ConfigError, FormatError
from ...tensors.info import TensorInfo
from ...util.text import escape, listing, shape_text
from .config import damaged, number_of
from .rotated import ROTATED, ROTATION, fits_rotation, neumann_terms, oft_fields
from .tucker import PRODUCT, TUCKER, plain_kind, plain_shapes

__all__ = [
    "COMPOSED",
    "HADAMARD",
    "MERGED",
    "SIDES",
    "TYPES",
    "ComposedShape",
    "composed_parts",
    "composed_shape",
    "factors_of",
    "fits_whole",
    "lora_fields",
]

COMPOSED = ("hada_", "lokr_")
"""The beginnings of the roles of the tensors of LoHa and LoKr."""

MERGED = (*COMPOSED, ROTATED)
"""The beginnings of the roles of the tensors of all adapters that ``lora merge`` takes besides LoRA."""

HADAMARD = "hadamard"

SIDES: Mapping[str, tuple[int, int]] = {
    HADAMARD: (2, 2), "kronecker 1 1": (1, 1), "kronecker 1 2": (1, 2), "kronecker 2 1": (2, 1), "kronecker 2 2": (2, 2)
}  # fmt: skip
"""{kind of change: the numbers of tensors that W1 and W2 are made from}"""

CORES = ("hada_t1", "hada_t2", "lokr_t2")
"""The roles of the cores of Tucker decompositions."""

TYPES = {"LOHA": HADAMARD, "LOKR": "kronecker", "OFT": ROTATION}
"""{peft_type of a LoHa, LoKr or OFT: the first word of its kind}"""

FIELDS = (
    "r", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "modules_to_save", "base_model_name_or_path", "revision", "task_type", "inference_mode", "auto_mapping",
)  # fmt: skip
"""The fields of PEFT's configuration that mean the same for LoHa, LoKr and LoRA."""


@dataclass(frozen=True)
class ComposedShape:
    """The shape of the change of a module, (``rows``, ``columns``), and the largest rank that it can have."""

    rows: int
    columns: int
    rank: int


def composed_shape(kind: str, shapes: Sequence[Sequence[int]]) -> ComposedShape | None:
    """Return the shape of the change that tensors of these shapes make up; None if they do not fit each other.

    ``kind`` is one of ``SIDES``, or a plain product of two matrices.
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
    """Return the shape of a product of one or two matrices; None if they are no matrices or do not fit."""
    if not shapes or any(len(shape) != 2 or not all(shape) for shape in shapes):
        return None
    if any(one[1] != other[0] for one, other in pairwise(shapes)):
        return None
    return ComposedShape(shapes[0][0], shapes[-1][1], min(size for shape in shapes for size in shape))


def factors_of(kind: str) -> int | None:
    """Return how many tensors the change of a LoHa, LoKr, OFT or Tucker decomposition has; None for any other kind."""
    if kind in SIDES or kind in TUCKER:
        return sum(SIDES[kind] if kind in SIDES else TUCKER[kind][1])
    return 1 if neumann_terms(kind) is not None else None


def fits_whole(kind: str, shape: Sequence[int], inputs: Sequence[Sequence[int]]) -> bool:
    """Return whether a change made from tensors of shapes ``inputs`` fits a weight of ``shape``.

    ``kind`` is that of a LoHa, LoKr, OFT or Tucker decomposition. The kernel dimensions of a convolution count as
    columns, in the weight and in the tensors.
    """
    if len(shape) < 2:
        return False
    rows, columns = shape[0], prod(shape[1:])
    if neumann_terms(kind) is None:
        found = composed_shape(plain_kind(kind), plain_shapes(kind, inputs))
        return found is not None and (found.rows, found.columns) == (rows, columns)
    return len(inputs) == 1 and fits_rotation(columns, inputs[0])


def composed_parts(
    keys: Mapping[str, str], tensors: Mapping[str, TensorInfo], name: str, *, kernels: bool = False
) -> tuple[str, list[str], int]:
    """Return the kind of a module's change, the keys of its tensors in order, and the rank of its factors.

    ``keys`` maps ``hada_w1_a`` and the like to the keys of the adapter ``name``. The rank is 0 if no matrix is
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
        given = ", ".join(f"{escape(key)} {shape_text(shape)}" for key, shape in zip(own, shapes, strict=True))
        conv = any(len(shape) > 2 for shape in shapes) and not kernels
        raise FormatError(
            f"a module of {escape(name)} is a convolution, and only linear layers can be converted: {given}."
            if conv
            else f"the factors of a module of {escape(name)} do not fit each other: {given}.",
            hint="Leave it out with --exclude, or merge the adapter with the toolkit that made it."
            if not conv
            else "Leave it out with --exclude, or merge the adapter with ckpt lora merge.",
            rule="rank",
        )
    return kind, own, ranks.pop()[0] if ranks else 0


def _rank(shape: Sequence[int], *, is_tucker: bool) -> Sequence[int]:
    """Return a sequence with the rank of a factor: (out, rank) or, in a Tucker decomposition, (rank, out)."""
    return shape[:1] if is_tucker else shape[-1:]


def _kind_and_roles(keys: Mapping[str, str], name: str) -> tuple[str, list[str]]:
    """Return the kind of a module's change, and the roles of its tensors in order."""
    method = "hada" if any(role.startswith("hada_") for role in keys) else "lokr"
    sides = [
        [f"{method}_{side}"] if f"{method}_{side}" in keys else [f"{method}_{side}_a", f"{method}_{side}_b"]
        for side in ("w1", "w2")
    ]
    cores = [core for core in CORES if core in keys]
    if cores:
        sides = [[f"{method}_t{at}", *side] if f"{method}_t{at}" in CORES else side for at, side in enumerate(sides, 1)]
    roles = [*sides[0], *sides[1]]
    lacking = [role for role in roles if role not in keys]
    more = [key for role, key in keys.items() if role not in (*roles, "alpha", "magnitude")]
    if lacking or more or (method == "hada" and len(roles) not in (4, 6)):
        have = next(key for role, key in keys.items() if "_w" in role)
        what = f"lacks {' and '.join(lacking)}" if lacking else f"also has {listing(more)}"
        raise FormatError(f"the module with {escape(have)} in {escape(name)} {what}.", rule="half an adapter")
    if method == "hada":
        return f"{HADAMARD} tucker" if cores else HADAMARD, roles
    return f"kronecker {len(sides[0])} {'tucker' if cores else len(sides[1])}", roles


def lora_fields(data: object, name: str) -> object:
    """Return the configuration of a LoHa, LoKr or OFT as that of a LoRA with the same scales; any other as it is.

    PEFT has the field ``alpha`` where LoRA has ``lora_alpha``; an OFT has no scale. ``name`` is the name of the file in
    messages. Raises ConfigError if a field is missing or invalid, or for a constrained OFT.
    """
    if not isinstance(data, Mapping) or data.get("peft_type") not in TYPES:
        return data
    if data["peft_type"] == "OFT":
        return oft_fields(data, name)
    if "alpha" not in data:
        raise ConfigError(
            f"{escape(name)}: the field alpha is missing.",
            hint='Add "alpha": 8 if the adapter was trained with 8, which is PEFT\'s default.',
        )
    try:
        number_of("alpha", data["alpha"])
    except ValueError as error:
        raise damaged(name, str(error)) from error
    kept = {field: data[field] for field in FIELDS if field in data}
    return {**kept, "peft_type": "LORA", "lora_alpha": data["alpha"]}
