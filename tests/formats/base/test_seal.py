"""The seal is the last entry of a recipe, whatever somebody's metadata is called."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.formats.base.header import UNSEALED, seal, seal_of

DIGEST = "a" * 64
RECIPE = '{"kind":"ckpt.recipe","metadata":{"seal":"%s"},"tensors":{},"seal":"%s"}'


def test_an_earlier_entry_of_that_name_is_not_the_seal() -> None:
    for earlier in ("b" * 64, UNSEALED):
        text = RECIPE % (earlier, UNSEALED)
        assert seal_of(text) == UNSEALED
        for pieces in ([text], [text[:60], text[60:]]):
            sealed = "".join(seal(pieces, DIGEST))
            assert sealed == RECIPE % (earlier, DIGEST)
            assert seal_of(sealed) == DIGEST
    assert seal_of("{}") == ""


@pytest.mark.parametrize("value", ["b" * 64, UNSEALED])
@pytest.mark.parametrize("output", ["out.safetensors", "out.pth", "out"])
def test_an_output_whose_input_had_a_seal_in_its_metadata_is_sound(value: str, output: str) -> None:
    save_file({"a": torch.ones(2)}, "x.safetensors", {"seal": value})
    cs.apply(cs.transplant("x.safetensors", "x.safetensors"), output)
    assert not cs.verify(output).failed
    if Path(output).is_file():
        data = bytearray(Path(output).read_bytes())
        data[data.rfind(b"seal") - 20] ^= 1
        Path(output).write_bytes(bytes(data))
        assert cs.verify(output).failed
