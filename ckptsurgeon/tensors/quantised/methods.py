"""Lists the encodings that each ``quant_method`` stores, and those that loaders recognise only by the settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from .encoding import EXPERT_SCALES, QuantisedTensor, QuantisedTensors

__all__ = [
    "IN_OTHER_SHARD",
    "KNOWN",
    "METHODS",
    "STORING",
    "UNKNOWN",
    "family",
    "is_known_by_settings",
    "is_packed_in_floats",
    "is_stored_by",
    "known_by_settings",
]

METHODS: Mapping[str, tuple[str, ...]] = {
    "gptq": ("GPTQ", "Marlin"),
    "awq": ("AWQ",),
    "fp8": ("fp8", "mxfp4", "mxfp8"),
    "fbgemm_fp8": ("fp8",),
    "mxfp4": ("mxfp4", "MLX"),
    "nvfp4": ("nvfp4", "MLX"),
    "bitsandbytes": ("bitsandbytes",),
    "compressed-tensors": ("fp8", "int8", "packed", "nvfp4", "mxfp4", "mxfp8", "sparse"),
    "modelopt": ("fp8", "int8", "packed", "BitNet", "nvfp4", "mxfp4", "mxfp8"),
    "quark": ("fp8", "int8", "packed", "BitNet", "mxfp4", "mxfp8"),
    "gemma": ("int8", "packed", "BitNet"),
    "aqlm": ("AQLM",),
    "bitnet": ("BitNet", "packed"),
    "eetq": ("EETQ",),
    "exl2": ("EXL2",),
    "exl3": ("EXL3",),
    "higgs": ("HIGGS",),
    "hqq": ("HQQ",),
    "marlin": ("Marlin",),
    "qqq": ("Marlin",),
    "quanto": ("Quanto",),
    "quip": ("QuIP#", "QTIP"),
    "qtip": ("QTIP",),
    "spqr": ("SpQR",),
    "squeezellm": ("SqueezeLLM",),
    "torchao": ("torchao",),
    "vptq": ("VPTQ",),
}
"""The families of encodings that each ``quant_method`` stores. In MLX this field may be the name of a mode."""
TORCH = "quantised"
"""The family of torch's own quantised tensors, which no ``quant_method`` stores."""
KNOWN = frozenset(family for families in METHODS.values() for family in families) | {TORCH}
"""All families in ``METHODS``, and ``TORCH``."""
UNKNOWN = "an unknown encoding"
IN_OTHER_SHARD = "codes whose scales are in another shard"
"""``QuantisedTensor.method`` begins with one of these texts if no known encoding fits, or if no scales were read."""
STORING = ("gptq", "awq", "fp8", "mxfp4", "bitsandbytes", "compressed-tensors")
"""Methods of transformers that always store quantised weights; others may quantise plain weights while loading."""
TOLD = KNOWN - {"EXL2", "EXL3", "Quanto", "SqueezeLLM", "QTIP", TORCH}
"""Families that loaders recognise only by settings; loaders recognise other families by keys, or by another file."""
GENERAL = ("fp8", "int8", "mxfp4", "mxfp8", "nvfp4", "BitNet")
"""Families in ``TOLD`` that loaders recognise only by settings if a scale has an ending in ``SCALES``."""
SCALES = frozenset({
    ".weight_scale", ".weight_scale_inv", ".weight_scale_2", ".weight_sf", "_scale_inv", "_scale", "_scales",
    *EXPERT_SCALES,
})  # fmt: skip
"""If scales have one of these endings, programs need settings to recognise the codes; other endings are enough."""
OWN = frozenset({".comfy_quant", ".meta.scale", ".meta.scale_q", ".embedding_scale"})
"""Endings that show a program (ComfyUI, HQQ) without settings that there are codes."""


BLOCKS = ("_blocks", ".blocks")
"""Endings of gpt-oss's mxfp4 codes."""
WITHOUT_BLOCKS = ("fp8", "fbgemm_fp8", "compressed-tensors")
"""Methods whose mxfp4 codes never have an ending in ``BLOCKS``."""


def is_stored_by(method: str, coded: QuantisedTensor) -> bool:
    """Return whether a method in ``METHODS`` stores tensors in the encoding of ``coded``, with its endings of keys."""
    return family(coded.method) in METHODS[method] and not (
        method in WITHOUT_BLOCKS and any(end in coded.parts for end in BLOCKS)
    )


@lru_cache(1024)
def family(method: str) -> str:
    """Return the short name of an encoding: "GPTQ" for "GPTQ, 4 bits", and "packed" for all packed integers.

    The short name of a name that begins with ``UNKNOWN`` or ``IN_OTHER_SHARD`` is this beginning.
    """
    if method.startswith((UNKNOWN, IN_OTHER_SHARD)):
        return UNKNOWN if method.startswith(UNKNOWN) else IN_OTHER_SHARD
    first = re.split(r"[, ]", method)[0]
    return "packed" if "packed" in method and first != "torchao" else first


def is_packed_in_floats(key: str, codes: QuantisedTensors) -> bool:
    """Return whether a tensor contains codes of bitsandbytes: those of 4 bits may be stored in floats, in one column.

    With the setting ``bnb_4bit_quant_storage``, a float packs codes of 4 bits: it is not a number, and may look like
    NaN. ``codes`` are the quantised tensors of the checkpoint.
    """
    one = codes.by_key.get(key)
    return one is not None and one.codes == key and family(one.method) == "bitsandbytes"


def known_by_settings(codes: QuantisedTensors) -> list[QuantisedTensor]:
    """Return the quantised tensors that a loader recognises only by the ``quantization_config``."""
    return list(filter(is_known_by_settings, codes.tensors))


def is_known_by_settings(coded: QuantisedTensor) -> bool:
    """Return whether a loader recognises a quantised tensor only by the ``quantization_config``."""
    kind, ends = family(coded.method), coded.parts.keys()
    return kind in TOLD and OWN.isdisjoint(ends) and (kind not in GENERAL or not SCALES.isdisjoint(ends))
