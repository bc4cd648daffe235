"""OFT: adapters that rotate the inputs of a layer, so that its weight W becomes W R' (arXiv 2306.07280).

R has square blocks on its diagonal. Each is the rotation (I + Q)^-1 (I - Q) of a skew-symmetric matrix Q (Cayley), or
the first terms of its series, I + 2 Q + 2 Q^2 + ... (with -Q for Q). The adapter stores the elements of each Q above
its diagonal. Only names and shapes are handled here; PEFT's names are known (``peft/tuners/oft/layer.py``, 0.21).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt

from ...errors import ConfigError
from ...util.text import escape
from .config import MERGE_WITH_PEFT, damaged

__all__ = ["ROTATED", "ROTATION", "block_size", "fits_rotation", "neumann_terms", "oft_fields", "rotation_kind"]

ROTATED = "oft_R"
"""The role of the tensor of an OFT."""

ROTATION = "rotation"
"""The kind of an OFT; if the rotation is a truncated series, the number of its terms follows ("rotation 5")."""

FIELDS = (
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save",
    "base_model_name_or_path", "revision", "task_type", "inference_mode", "auto_mapping", "use_cayley_neumann",
    "num_cayley_neumann_terms",
)  # fmt: skip
"""The fields of PEFT's configuration of an OFT that are kept; those that LoRA has, too, mean the same."""

MOST_TERMS = 64
"""The largest number of terms of a rotation's series; PEFT's default is 5."""


def rotation_kind(terms: int) -> str:
    """Return the kind of an OFT whose rotation is a series with so many terms; 0 is for the exact rotation."""
    return f"{ROTATION} {terms}" if terms else ROTATION


def neumann_terms(kind: str) -> int | None:
    """Return the number of terms of the series of an OFT's rotation, 0 if it is exact; None for any other kind."""
    return next((terms for terms in range(MOST_TERMS + 1) if kind == rotation_kind(terms)), None)


def block_size(elements: int) -> int:
    """Return the side n of a square matrix that has so many elements above its diagonal, n (n - 1) / 2; 0 if none.

    A matrix of one element has none above its diagonal, and rotates nothing.
    """
    if elements < 1:
        return 0
    side = (1 + isqrt(1 + 8 * elements)) // 2
    return side if side * (side - 1) // 2 == elements else 0


def fits_rotation(columns: int, shape: Sequence[int]) -> bool:
    """Return whether the tensor of an OFT with this shape, (blocks, elements), rotates ``columns`` inputs.

    One block may be shared by all.
    """
    if len(shape) != 2:
        return False
    blocks, side = shape[0], block_size(shape[1])
    return side > 0 and columns % side == 0 and blocks in (1, columns // side) and columns > 0


def oft_fields(data: Mapping[str, object], name: str) -> Mapping[str, object]:
    """Return the configuration of an OFT as that of a LoRA with the scale 1; ``name`` is the name of its file.

    Raises ConfigError if a field is missing or invalid, or for a constrained OFT (COFT).
    """
    if data.get("coft"):
        raise ConfigError(
            f"{escape(name)} sets coft, so ckpt cannot use the adapter: its rotations are limited when it is used.",
            hint=MERGE_WITH_PEFT,
        )
    series, terms = data.get("use_cayley_neumann"), data.get("num_cayley_neumann_terms")
    if not isinstance(series, bool):
        raise ConfigError(
            f"{escape(name)}: the field use_cayley_neumann must be true or false.",
            hint="Use the adapter_config.json that was saved with the adapter (PEFT 0.16 or newer).",
        )
    if series and not (isinstance(terms, int) and not isinstance(terms, bool) and 0 < terms <= MOST_TERMS):
        raise damaged(name, f"num_cayley_neumann_terms must be a whole number from 1 to {MOST_TERMS}")
    kept = {field: data[field] for field in FIELDS if field in data}
    bias = "lora_only" if data.get("bias") == "oft_only" else data.get("bias")
    return {**kept, "peft_type": "LORA", "r": 1, "lora_alpha": 1, "bias": bias}
