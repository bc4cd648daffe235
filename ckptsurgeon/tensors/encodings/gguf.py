"""Recognises the types of GGUF that store codes and scales together in one tensor, in blocks along its rows.

https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-common.h
"""

from __future__ import annotations

from ..dtypes import BLOCKS
from ..quantised.encoding import Encoding, LogicalTensor, Parts
from ..quantised.settings import QuantisationSettings

__all__ = ["ENCODINGS"]


def _logical(parts: Parts, quantisation: QuantisationSettings) -> LogicalTensor | None:
    info = next(iter(parts.values()))
    numbers, nbytes = BLOCKS[info.dtype]
    return LogicalTensor.of(f"GGUF {info.dtype}", (*info.shape[:-1], info.shape[-1] // nbytes * numbers))


ENCODINGS = (Encoding("", frozenset(BLOCKS), (), _logical, named=""),)
