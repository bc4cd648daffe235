"""Sound files that are taken for more than they are."""

from __future__ import annotations

from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs


def test_a_safetensors_file_with_a_header_of_128_bytes_is_plain_data() -> None:
    """The length is 0x80, which begins a pickle of protocol 2 and later."""
    save_file({"a": torch.ones(2)}, "x.safetensors", {"m": " " * 48})
    assert Path("x.safetensors").read_bytes()[:2] == b"\x80\0"
    assert cs.scan("x.safetensors").ok


def test_a_safetensors_file_that_is_a_pickle_too_is_unknown_code() -> None:
    """Its length is the instruction of a text, texts follow each other through its metadata, and code is its tensor."""
    code = b"cposix\nsystem\n(S'true'\ntR."
    begin, end = (
        '{"__metadata__":{"m":"..',
        f'"}},"a":{{"dtype":"U8","shape":[{len(code)}],"data_offsets":[0,{len(code)}]}}}}',
    )
    texts = "".join("U~" + "x" * 126 for _ in range(60)) + "U;"
    header = begin + texts + "x" * (59 - len(end)) + end
    data = len(header).to_bytes(8, "little") + header.encode() + code
    assert data[:2] == b"U\x1e"
    assert safetensors.deserialize(data)
    Path("x.safetensors").write_bytes(data)
    found = cs.scan("x.safetensors").found
    assert {one.format for one in found} == {"safetensors", "pickle"}
    assert [use.name for one in found for use in one.uses] == ["system"]
