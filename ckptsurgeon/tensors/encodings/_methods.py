"""Which codes each ``quant_method`` stores, and which codes are taken for codes by the settings beside them alone."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ._encoding import CodedTensor, Codes

__all__ = ["KNOWN", "METHODS", "STORING", "family", "is_known_by_settings", "known_by_settings"]

METHODS: Mapping[str, tuple[str, ...]] = {
    "gptq": ("GPTQ", "Marlin"),
    "awq": ("AWQ",),
    "fp8": ("fp8", "mxfp4"),
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
"""The families of codes that a ``quant_method`` stores; of others nothing is said here. MLX calls a mode so."""
TORCH = "quantised"
"""The family of torch's own quantised tensors, which no such method stores."""
KNOWN = frozenset(family for families in METHODS.values() for family in families) | {TORCH}
"""Families that are codes of no other method than these."""
STORING = ("gptq", "awq", "fp8", "mxfp4", "bitsandbytes", "compressed-tensors")
"""Methods of transformers' that store codes, if they quantise at all; others may quantise when they load."""
TOLD = KNOWN - {"EXL2", "EXL3", "Quanto", "SqueezeLLM", "QTIP", TORCH}
"""Families that loaders know by the settings beside them alone; of the others by their names, or by another file."""
GENERAL = ("fp8", "int8", "mxfp4", "mxfp8", "nvfp4", "BitNet")
"""Of them, those that programs with weights alone know by names of their own."""
SCALES = frozenset({
    ".weight_scale", ".weight_scale_inv", ".weight_scale_2", ".weight_sf", "_scale_inv", "_scale", "_scales",
})  # fmt: skip
"""Names of their scales by which no program knows them."""
OWN = frozenset({".comfy_quant", ".meta.scale", ".meta.scale_q", ".embedding_scale"})
"""Parts by which a program knows codes without settings: ComfyUI's, HQQ's own."""


def family(method: str) -> str:
    """Return what a method is called without its details: GPTQ, fp8, packed."""
    return "packed" if "packed" in method else re.split(r"[, ]", method)[0]


def known_by_settings(codes: Codes) -> list[CodedTensor]:
    """Return the codes that a loader takes for what they are only if settings say so."""
    return list(filter(is_known_by_settings, codes.tensors))


def is_known_by_settings(coded: CodedTensor) -> bool:
    """Whether a loader takes codes for what they are only if settings say so."""
    kind, ends = family(coded.method), coded.parts.keys()
    return kind in TOLD and OWN.isdisjoint(ends) and (kind not in GENERAL or not SCALES.isdisjoint(ends))
