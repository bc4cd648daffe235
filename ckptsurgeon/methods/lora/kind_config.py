"""Converts PEFT's configuration of a LoHa, LoKr or OFT to the configuration of a LoRA with the same scales."""

from __future__ import annotations

from collections.abc import Mapping

from ...errors import ConfigError
from ...util.text import escape
from .composed import HADAMARD
from .config import MERGE_WITH_PEFT, damaged, number_of
from .rotated import MOST_TERMS, ROTATION

__all__ = ["TYPES", "lora_fields"]

TYPES = {"LOHA": HADAMARD, "LOKR": "kronecker", "OFT": ROTATION}
"""{peft_type of a LoHa, LoKr or OFT: the first word of its kind}"""

FIELDS = (
    "r", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "modules_to_save", "base_model_name_or_path", "revision", "task_type", "inference_mode", "auto_mapping",
)  # fmt: skip
"""The fields of PEFT's configuration that mean the same for LoHa, LoKr and LoRA."""

OFT_FIELDS = (
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save",
    "base_model_name_or_path", "revision", "task_type", "inference_mode", "auto_mapping", "use_cayley_neumann",
    "num_cayley_neumann_terms",
)  # fmt: skip
"""The fields of PEFT's configuration of an OFT that are kept; fields that a LoRA also has mean the same there."""


def lora_fields(data: object, name: str) -> object:
    """Return the configuration of a LoHa, LoKr or OFT as the configuration of a LoRA with the same scales.

    Any other configuration is returned unchanged.

    PEFT's field ``alpha`` becomes LoRA's ``lora_alpha``; an OFT has no scale. ``name`` is the name of the file in
    messages. Raises ConfigError if a field is missing or invalid, or for a constrained OFT.
    """
    if not isinstance(data, Mapping) or str(data.get("peft_type")) not in TYPES:
        return data
    if data["peft_type"] == "OFT":
        return _oft_fields(data, name)
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


def _oft_fields(data: Mapping[str, object], name: str) -> Mapping[str, object]:
    """Return the configuration of an OFT as the configuration of a LoRA with the scale 1.

    ``name`` is the name of its file. Raises ConfigError if a field is missing or invalid, or for a constrained OFT
    (COFT).
    """
    if data.get("coft"):
        raise ConfigError(
            f"{escape(name)} sets coft, so ckpt cannot use the adapter: PEFT limits its rotations in each run.",
            hint=MERGE_WITH_PEFT,
        )
    series, terms = data.get("use_cayley_neumann"), data.get("num_cayley_neumann_terms")
    if not isinstance(series, bool):
        raise ConfigError(
            f"{escape(name)}: the field use_cayley_neumann must be true or false.",
            hint="Use the configuration that was saved with the adapter (PEFT 0.16 or newer).",
        )
    if series and not (isinstance(terms, int) and not isinstance(terms, bool) and 0 < terms <= MOST_TERMS):
        raise damaged(name, f"num_cayley_neumann_terms must be a whole number from 1 to {MOST_TERMS}")
    kept = {field: data[field] for field in OFT_FIELDS if field in data}
    bias = "lora_only" if data.get("bias") == "oft_only" else data.get("bias")
    return {**kept, "peft_type": "LORA", "r": 1, "lora_alpha": 1, "bias": bias}
