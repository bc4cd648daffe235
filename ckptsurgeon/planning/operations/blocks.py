"""Rounds matrices to types of GGUF: one type for all, or a mixture with a better type for some.

A mixture has a better type for the matrices whose rounding changes the outputs most, as in llama.cpp
(https://github.com/ggml-org/llama.cpp/blob/master/src/llama-quant.cpp, ``llama_tensor_get_type``, for networks without
experts).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from ...errors import PlanError
from ...tensors.composition import blocked
from ...tensors.dtypes import BLOCKS, DTYPES, OF_SHORT_ROWS
from ...tensors.info import TensorInfo
from ...util.text import count, listing, number_in
from .operation import MIXTURES, Operation

__all__ = ["in_blocks"]

_LAYER = re.compile(r"(?:model\.layers|blk)\.(\d+)\.")
_FINER = re.compile(
    r"(?:[\w.]*\.)?(?:v_proj|attn_v|down_proj|mlp\.c_proj|ffn_down|ffn_down_exps|ffn_down_shexp)(?:\.weight)?"
)
"""Matches names of two kinds of matrices in a layer: the projection of values, and the last feed-forward matrix."""
_FUSED = re.compile(r"(?:self_attn\.qkv_proj|attn_qkv)\.weight")
_OUTPUTS = ("lm_head.weight", "output.weight", "model.embed_tokens.weight", "token_embd.weight")
"""The keys of the output layer, and of the embedding that takes its place if the two are tied."""


def in_blocks(
    operation: Operation, keys: Sequence[str], tensors: Mapping[str, TensorInfo]
) -> tuple[dict[str, TensorInfo], list[str]]:
    """Return the matrices in ``keys``, rounded to the GGUF type or mixture of an operation, and notes.

    GGUF stores the values of a row in blocks. If the row length of a matrix is not a multiple of the type's block size,
    the matrix is rounded to another type, which ``OF_SHORT_ROWS`` names. If there is no other type, or its blocks do
    not fit either, the matrix is left out. There are notes on both cases. Raises PlanError if no matrix can be rounded.
    """
    chosen = [key for key in keys if _is_matrix(tensors[key])]
    wanted = _types(operation.fields["to"], chosen, tensors)
    types = {key: _type_for(wanted[key], tensors[key].shape[-1]) for key in chosen}
    if not any(types.values()):
        raise _nothing_fits(operation, keys, tensors)
    notes = []
    for to, other in sorted({(wanted[key], of) for key, of in types.items() if of != wanted[key]}):
        odd = [key for key, of in types.items() if (wanted[key], of) == (to, other)]
        how = f"rounded to {other}, not {to}" if other else f"not rounded to {to}"
        notes.append(
            f"{count(len(odd), 'tensor is', 'tensors are')} {how}, as the row length is not a multiple of "
            f"{BLOCKS[to if other else OF_SHORT_ROWS.get(to, to)][0]}: {listing(odd)}"
        )
    return {key: blocked(tensors[key], of, key) for key, of in types.items() if of}, notes


def _is_matrix(info: TensorInfo) -> bool:
    dtype = DTYPES[info.dtype]
    return len(info.shape) > 1 and not info.opaque and dtype.kind == "float" and dtype.bits >= 16 and info.numel > 0


def _types(to: str, chosen: Sequence[str], keys: Collection[str]) -> dict[str, str]:
    """Return the type that each of the matrices ``chosen`` should be rounded to.

    ``to`` is the type or mixture that the user asked for, ``keys`` are all keys of the model.
    """
    if to not in MIXTURES:
        return dict.fromkeys(chosen, to)
    most, fused, finer = MIXTURES[to]
    output = next((key for key in _OUTPUTS if key in keys), "")
    layers = sorted({number for key in keys if (number := _layer(key)) is not None})
    better = {layer for at, layer in enumerate(layers) if _is_better(at, len(layers))}
    found = {}
    for key in chosen:
        part = _LAYER.match(key)
        name = key[part.end() :] if part is not None else ""
        is_finer = key == output or (_layer(key) in better and _FINER.fullmatch(name))
        found[key] = finer if is_finer else fused if _FUSED.fullmatch(name) else most
    return found


def _layer(key: str) -> int | None:
    found = _LAYER.match(key)
    return None if found is None else number_in(found[1])


def _is_better(at: int, layers: int) -> bool:
    """Return whether the layer with the index ``at`` gets the better type of a mixture.

    The first and the last eighth of the layers get it, and every third layer between them.
    """
    return at < layers // 8 or at >= 7 * layers // 8 or (at - layers // 8) % 3 == 2


def _type_for(to: str, row: int) -> str:
    """Return the GGUF type for rows of ``row`` values if the user asked for ``to``; "" if there is none."""
    return next((of for of in (to, OF_SHORT_ROWS.get(to, to)) if row % BLOCKS[of][0] == 0), "")


def _nothing_fits(operation: Operation, keys: Sequence[str], tensors: Mapping[str, TensorInfo]) -> PlanError:
    if any(DTYPES[tensors[key].dtype].block for key in keys):
        return PlanError(
            f"{operation}: no matching tensor is a floating-point matrix; some are quantised already.",
            hint="Decode the quantised tensors first: --dequantize.",
        )
    return PlanError(
        f"{operation}: no matching tensor is a floating-point matrix whose row length is a multiple of 32.",
        hint="Leave the type out.",
    )
