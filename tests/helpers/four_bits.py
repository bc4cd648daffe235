"""Small models of bitsandbytes in 4 bits that can be decoded: their maps are the library's own."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch

from ckptsurgeon.tensors.encoders.bitsandbytes import FP4, NF4, dynamic_map

from .quantised import IN, OUT, Quantised, eight_bits, scales

__all__ = ["FOUR_BITS"]

BLOCK = 64


def _state(kind: str, **more: object) -> torch.Tensor:
    said = {"quant_type": kind, "blocksize": BLOCK, "dtype": "bfloat16", "shape": [OUT, IN], **more}
    return torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)


def _plain(kind: str) -> Callable[[torch.Generator], dict[str, torch.Tensor]]:
    values = NF4 if kind == "nf4" else FP4
    return lambda g: {
        ".weight": eight_bits(g, OUT * IN // 2, 1), ".weight.absmax": scales(g, OUT * IN // BLOCK),
        ".weight.quant_map": torch.from_numpy(values.copy()),
        f".weight.quant_state.bitsandbytes__{kind}": _state(kind),
    }  # fmt: skip


def _nested(kind: str) -> Callable[[torch.Generator], dict[str, torch.Tensor]]:
    return lambda g: {
        **_plain(kind)(g), ".weight.absmax": eight_bits(g, OUT * IN // BLOCK),
        ".weight.nested_absmax": scales(g, 1) / 2, ".weight.nested_quant_map": torch.from_numpy(dynamic_map().copy()),
        f".weight.quant_state.bitsandbytes__{kind}": _state(
            kind, nested_blocksize=256, nested_dtype="float32", nested_offset=0.008
        ),
    }  # fmt: skip


SETTINGS = {"quant_method": "bitsandbytes", "load_in_4bit": True}
FOUR_BITS = {
    f"bnb-{kind}-{ending}": Quantised(f"bnb-{kind}-{ending}", f"bitsandbytes {kind}", store(kind), SETTINGS)
    for kind in ("nf4", "fp4")
    for ending, store in (("sound", _plain), ("nested", _nested))
}
