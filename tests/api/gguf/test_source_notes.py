"""Metadata of a GGUF file that its tensors or its tokens contradict: every verb that reads it says so."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

import ckptsurgeon as cs

from ...helpers.gguf_files import ARRAY, STRING, UINT32, array, gguf, tensor_info, text


def write(blocks: int, eos: int) -> str:
    names = ["token_embd.weight", *(f"blk.{number}.attn_norm.weight" for number in range(2))]
    infos = [tensor_info(name, [8], 0, 32 * number) for number, name in enumerate(names)]
    entries = {
        "general.architecture": (STRING, text("llama")),
        "llama.block_count": (UINT32, struct.pack("<I", blocks)),
        "tokenizer.ggml.tokens": (ARRAY, array(STRING, 1200, b"".join(text(f"t{n}") for n in range(1200)))),
        "tokenizer.ggml.eos_token_id": (UINT32, struct.pack("<I", eos)),
    }
    Path("x.gguf").write_bytes(gguf(infos, entries, bytes(32 * 3)))
    return "x.gguf"


@pytest.mark.costly
@pytest.mark.parametrize(
    ("blocks", "eos", "said"),
    [
        (2, 1199, ""),
        (4, 7, "llama.block_count is 4, but block 2 has no tensors"),
        (1, 7, "llama.block_count is 1, but the blocks go up to 1"),
        (2, 1200, "the file has 1200 tokens, but tokenizer.ggml.eos_token_id is 1200"),
    ],
)
def test_metadata_that_do_not_fit_are_said(blocks: int, eos: int, said: str) -> None:
    path = write(blocks, eos)
    for notes in (cs.inspect(path).notes, cs.convert(path, dtype="bf16").notes, cs.filter(path, include="**").notes):
        assert any(one.startswith(said) for one in notes) if said else not [one for one in notes if "but" in one]
    plain = "x.safetensors"
    cs.apply(cs.convert(path), plain)
    for verb in (
        lambda: cs.average([path, plain]).notes,
        lambda: cs.merge([path, plain], method="linear", weights=[1, 1]).notes,
        lambda: cs.transplant(path, plain).notes,
        lambda: cs.diff(path, plain).notes,
        lambda: cs.fits(path, plain).notes,
    ):
        notes = verb()
        found = [one for one in notes if one.removeprefix("x.gguf: ").startswith(said or "llama.block_count is")]
        assert bool(found) is bool(said), notes
    warned = [one.what for row in cs.check(path).rows for one in row.found if " but " in one.what]
    assert warned[0].startswith(said) if said else not warned
