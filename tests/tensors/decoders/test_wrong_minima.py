"""Blocks of GGUF whose minima are lost, negated or exchanged with scales decode to shifted weights, which are noted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import ckptsurgeon as cs
from ckptsurgeon.tensors.decoders._odd_scales import WITH_MINIMA
from ckptsurgeon.tensors.decoders.gguf import values_of_blocks
from ckptsurgeon.tensors.dtypes import BLOCK_SCALES, BLOCKS, ROUNDED
from ckptsurgeon.tensors.encoders.gguf import _TYPES
from ckptsurgeon.tensors.odd_scales.shifted import OFF_BY_ONE, WRONG_OFFSETS

from ...helpers.gguf_files import STRING, gguf, tensor_info, text

Blocks = np.ndarray[Any, Any]
Change = Callable[[Blocks, int], None]
LAYERS, SHAPE = 6, (128, 256)
ODD = "blk.2.ffn_up.weight"


def weights() -> dict[str, Blocks]:
    draw = np.random.default_rng(0)
    keys = (f"blk.{layer}.{role}.weight" for layer in range(LAYERS) for role in ("ffn_up", "attn_q"))
    return {key: (0.02 * draw.standard_normal(SHAPE)).astype(np.float32) for key in keys}


def lost(blocks: Blocks, at: int) -> None:
    blocks[:, at : at + 2] = 0


def negated(blocks: Blocks, at: int) -> None:
    blocks[:, at + 1] ^= 0x80


def doubled(blocks: Blocks, at: int) -> None:
    wide = np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2") * np.float16(2)
    blocks[:, at : at + 2] = wide.view("u1")


def coded(dtype: str, change: Change | None = None, only: str = "") -> dict[str, Blocks]:
    """Return the blocks of each weight; ``change`` gets those of all weights, or of ``only``, and where minima are."""
    found = {}
    for key, value in weights().items():
        blocks = np.ascontiguousarray(_TYPES[dtype](value.reshape(-1, BLOCKS[dtype][0])))
        if change is not None and only in ("", key):
            change(blocks, BLOCK_SCALES[dtype][0] + 2)
        found[key] = blocks
    return found


def save(dtype: str, blocks: dict[str, Blocks]) -> str:
    infos, data = [], b""
    for key, one in blocks.items():
        infos.append(tensor_info(key, SHAPE[::-1], ROUNDED[dtype], len(data)))
        data += one.tobytes() + bytes(-one.nbytes % 32)
    Path("x.gguf").write_bytes(gguf(infos, {"general.architecture": (STRING, text("llama"))}, data))
    return "x.gguf"


def shifted(notes: Any) -> list[str]:
    return [note for note in notes if OFF_BY_ONE in note or WRONG_OFFSETS in note]


@pytest.mark.costly
@pytest.mark.parametrize("change", [lost, negated, doubled])
@pytest.mark.parametrize("dtype", WITH_MINIMA)
def test_wrong_minima_of_all_weights_are_noted(dtype: str, change: Change) -> None:
    path = save(dtype, coded(dtype, change))
    assert len(shifted(cs.inspect(path).notes)) == 1
    assert len(shifted(cs.convert(path).notes)) == 1
    row = cs.check(path).row("weight-size")
    assert shifted(one.what for one in row.found)


@pytest.mark.costly
@pytest.mark.parametrize("dtype", WITH_MINIMA)
def test_lost_minima_of_one_weight_are_noted(dtype: str) -> None:
    (said,) = shifted(cs.inspect(save(dtype, coded(dtype, lost, ODD))).notes)
    assert said.partition(": perhaps the zero points or biases are wrong: ")[2].startswith(ODD)


@pytest.mark.costly
@pytest.mark.parametrize("dtype", [*WITH_MINIMA, "q4_0", "q5_0", "q8_0", "q3_k", "q6_k"])
def test_sound_blocks_have_no_note(dtype: str) -> None:
    path = save(dtype, coded(dtype))
    assert not shifted(cs.inspect(path).notes)
    assert not shifted(one.what for row in cs.check(path).rows for one in row.found)


@pytest.mark.costly
@pytest.mark.parametrize("dtype", WITH_MINIMA)
def test_weights_that_were_decoded_without_minima_are_noted(dtype: str) -> None:
    values = {
        key: values_of_blocks(blocks, dtype).reshape(SHAPE).astype(np.float16)
        for key, blocks in coded(dtype, lost).items()
    }
    save_file(values, "x.safetensors")
    assert (
        sum("perhaps they were decoded with wrong zero points" in note for note in cs.inspect("x.safetensors").notes)
        == 1
    )
