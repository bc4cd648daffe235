"""The kinds of adapters besides LoRA that can be merged (LoHa, LoKr, Tucker decompositions, OFT), without values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from ...errors import ConfigError
from ...util.text import escape
from .composed import COMPOSED, HADAMARD, SIDES, composed_shape
from .config import damaged, number_of
from .rotated import ROTATED, ROTATION, fits_rotation, neumann_terms, oft_fields
from .tucker import TUCKER, plain_kind, plain_shapes

__all__ = ["MERGED", "TYPES", "factors_of", "fits_kind", "lora_fields"]

MERGED = (*COMPOSED, ROTATED)
"""The beginnings of the roles of the tensors of all adapters that ``lora merge`` takes besides LoRA."""

TYPES = {"LOHA": HADAMARD, "LOKR": "kronecker", "OFT": ROTATION}
"""{peft_type of a LoHa, LoKr or OFT: the first word of its kind}"""

FIELDS = (
    "r", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "modules_to_save", "base_model_name_or_path", "revision", "task_type", "inference_mode", "auto_mapping",
)  # fmt: skip
"""The fields of PEFT's configuration that mean the same for LoHa, LoKr and LoRA."""


def factors_of(kind: str) -> int | None:
    """Return how many tensors the change of a LoHa, LoKr, OFT or Tucker decomposition has; None for any other kind."""
    if kind in SIDES or kind in TUCKER:
        return sum(SIDES[kind] if kind in SIDES else TUCKER[kind][1])
    return 1 if neumann_terms(kind) is not None else None


def fits_kind(kind: str, shape: Sequence[int], inputs: Sequence[Sequence[int]]) -> bool:
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


def lora_fields(data: object, name: str) -> object:
    """Return the configuration of a LoHa, LoKr or OFT as that of a LoRA with the same scales; any other as it is.

    PEFT has the field ``alpha`` where LoRA has ``lora_alpha``; an OFT has no scale. ``name`` is the name of the file in
    messages. Raises ConfigError if a field is missing or invalid, or for a constrained OFT.
    """
    if not isinstance(data, Mapping) or str(data.get("peft_type")) not in TYPES:
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
