"""Converts the experts of gpt-oss, which stay mxfp4 with the same values, and checks its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...errors import PlanError
from ...planning.layouts.layout import LayoutChange
from ...planning.llama_cpp.gpt_oss import BOTH, CODED, DOWN, DOWN_THERE, STACKED, joined_experts, split_experts
from ...planning.llama_cpp.names import GPT_OSS
from ...planning.llama_cpp.regrouping import Regrouping
from ...util.text import brief_repr, escape, number_in, shape_text
from ..inputs.operations import operate
from .fields import check_only

__all__ = ["check_gpt_oss", "decoded_experts", "experts_in_file", "experts_of_folder", "rope_note", "with_codes"]

CODES = "mxfp4"
_FIELDS = ("num_local_experts", "hidden_size", "intermediate_size")
_ENTRIES = ("expert_count", "embedding_length", "expert_feed_forward_length")


def check_gpt_oss(config: Mapping[str, Any], layers: int) -> None:
    """Raise PlanError for fields with values that llama.cpp's implementation of gpt-oss does not support.

    ``layers`` is the number of layers.
    """
    check_only(config, "swiglu_alpha", 1.702)
    check_only(config, "swiglu_limit", 7.0)
    check_only(config, "attention_bias", True)
    check_only(config, "tie_word_embeddings", False)
    kinds = ["full_attention" if number % 2 else "sliding_attention" for number in range(layers)]
    check_only(config, "layer_types", kinds)
    if type(config.get("sliding_window")) is not int:
        raise PlanError(
            "config.json has no whole number sliding_window, which llama.cpp needs.",
            hint="Complete config.json.",
        )


def rope_note(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a note if config.json turns off YaRN's rounding of frequencies, which llama.cpp always does; else ()."""
    stated = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(stated, dict) or stated.get("truncate") is not False:
        return ()
    return (
        "llama.cpp rounds the range of frequencies that yarn scales, but config.json turns this off (truncate: false)",
    )


def decoded_experts(checkpoint: Checkpoint) -> Checkpoint | None:
    """Return ``checkpoint`` with decoded experts if it has mxfp4 experts and no other quantised tensors; else None."""
    if not checkpoint.codes or any(
        one.method != CODES or not one.name.endswith((".gate_up_proj", ".down_proj"))
        for one in checkpoint.codes.tensors
    ):
        return None
    return operate([checkpoint], [_decoding()])[0].checkpoint


def _decoding() -> Mapping[str, Any]:
    return {"dequantize": CODED[0]}


def with_codes(change: LayoutChange) -> LayoutChange:
    """Return a change of layout that decodes mxfp4 experts, applies ``change``, and encodes the same values again."""
    rounding = [{"blocks": key, "to": CODES} for key in STACKED]
    return replace(change, operations=(_decoding(), *change.operations, *rounding))


def experts_of_folder(config: Mapping[str, Any], checkpoint: Checkpoint) -> tuple[Regrouping, set[int]]:
    """Return (operations that split the stacked experts of a transformers model, every number of experts of a layer).

    The second result is {8} if each layer has 8 experts. Raises PlanError if the matrices of experts do not have the
    sizes in ``config``.
    """
    sizes = [_number(config.get(name), f"config.json gives {name}") for name in _FIELDS]
    _check_shapes(checkpoint, *sizes[1:])
    found = {info.shape[0] for key, info in checkpoint.items() if _is_down(key) and info.shape}
    return split_experts(*sizes), found


def _check_shapes(checkpoint: Checkpoint, width: int, inner: int) -> None:
    """Raise PlanError for a matrix whose shape is not (experts, in, out): its values would be read in the wrong order.

    Codes that were packed without transposing the matrix decode to (experts, out, in), which has as many values.
    """
    for end, sizes in ((BOTH, (width, 2 * inner)), (DOWN, (inner, width))):
        keys = [key for key in checkpoint if key.endswith(end.rpartition("}")[2])]
        wrong = [key for key in keys if checkpoint[key].shape[1:] != sizes]
        if wrong:
            first = checkpoint[wrong[0]].shape
            raise PlanError(
                f"{escape(wrong[0])} is {shape_text(first)}, but it must be {shape_text((*first[:1], *sizes))}: "
                f"hidden_size is {width} and intermediate_size {inner} in config.json.",
                hint="If this tensor is stored as mxfp4 codes, pack them again: the codes must have the shape "
                "(experts, out, in / 32, 16).",
                details=wrong,
            )


def experts_in_file(checkpoint: Checkpoint) -> Regrouping:
    """Return the operations that stack a GGUF file's experts as in transformers; PlanError if they are quantised."""
    if checkpoint.codes:
        raise PlanError(
            "the weights are quantised in blocks, which cannot be split or joined.",
            hint="Decode the weights with --dequantize.",
        )
    stored = checkpoint.metadata
    sizes = [_number(stored.get(f"{GPT_OSS}.{name}"), f"the metadata give {GPT_OSS}.{name}") for name in _ENTRIES]
    return joined_experts(*sizes)


def _is_down(key: str) -> bool:
    return key.endswith((DOWN.rpartition("}")[2], f"{DOWN_THERE.rpartition('}')[2]}.weight"))


def _number(stated: Any, where: str) -> int:
    number = number_in(stated) if isinstance(stated, str) else stated
    if type(number) is not int or not 0 < number < 1 << 24:
        raise PlanError(
            f"{where} as {brief_repr(stated, 40)}, not a number above 0.",
            hint="Convert without changing the layout: --layout keep.",
        )
    return number
