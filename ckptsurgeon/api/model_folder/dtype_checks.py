"""A note on layers of which some are float16 and some bfloat16."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...planning.merge.layers import layers_of, numbered_lists
from ...util.text import escape
from .layer_holes import is_stack
from .shape_checks import DescribedTensor

__all__ = ["dtype_notes"]

HALF = ("float16", "bfloat16")
PLAIN = (*HALF, "float32")
"""Dtypes of models that are not quantised: scales of quantised weights are often float16 beside bfloat16."""


def dtype_notes(tensors: Sequence[DescribedTensor], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if a tensor is float16 in one layer and bfloat16 in another: a shard is from another copy.

    Modules of one model may differ in dtype (an image encoder, norms), but not one module between layers. There is no
    note for quantised models.
    """
    if config.get("quantization_config") or any(one.dtype not in PLAIN for one in tensors if len(one.shape) > 1):
        return
    dtypes = {one.key: one.dtype for one in tensors if one.dtype in HALF}
    if len(set(dtypes.values())) < len(HALF):
        return
    for one in numbered_lists([described.key for described in tensors]):
        first: dict[str, str] = {}
        for number, rests in layers_of(one, dtypes).items() if is_stack(one.prefix) else ():
            for key, rest in ((one.key(number, rest), rest) for rest in rests):
                other = first.setdefault(rest, key)
                if dtypes[key] != dtypes[other]:
                    differ = f"{escape(other)} is {dtypes[other]}, but {escape(key)} is {dtypes[key]}"
                    yield f"{differ}: some layers may be from another copy, and transformers casts all to one dtype"
                    return
