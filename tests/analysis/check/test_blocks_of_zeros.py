"""GGUF: blocks of zeros, such as the row of a padding token, have scales of 0; blocks of other codes lost theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.tensors.dtypes import BLOCK_SCALES, BLOCKS

KEY = "token_embd.weight"
TYPES = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k")


def write(kind: str, *rows: int) -> None:
    """A model with an embedding in which these rows are zeros."""
    table = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)) * 0.02
    table[list(rows)] = 0
    save_file({KEY: table, "blk.0.ffn_up.weight": torch.randn(64, 256)}, "x.safetensors")
    cs.apply(cs.convert("x.safetensors", gguf_type=kind, layout="keep"), "x.gguf", force=True)


def warned() -> list[tuple[str, ...]]:
    return [one.keys for one in cs.check("x.gguf").row("scales").found]


@pytest.mark.costly
@pytest.mark.parametrize("kind", TYPES)
def test_rows_of_zeros_have_scales_of_zero(kind: str) -> None:
    for rows in ((), (0,), (63,), (3, 4, 5)):
        write(kind, *rows)
        assert warned() == []


@pytest.mark.parametrize("kind", TYPES)
def test_a_lost_scale_is_warned_of(kind: str) -> None:
    write(kind, 0)
    with cs.open_checkpoint("x.gguf") as found:
        info = found[KEY]
        assert info.storage is not None
        begin = info.storage.offset + info.offset
    raw = bytearray(Path("x.gguf").read_bytes())
    place, number = BLOCK_SCALES[kind]
    size = BLOCKS[kind][1]
    scale = begin + 5 * 256 // BLOCKS[kind][0] * size + place
    assert np.frombuffer(raw[scale : scale + 2], "<f2")[0] != 0
    raw[scale : scale + 2 * number] = bytes(2 * number)
    Path("x.gguf").write_bytes(raw)
    assert warned() == [(KEY,)]
