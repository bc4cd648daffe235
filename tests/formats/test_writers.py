"""What a format cannot hold is refused before a byte is written, and shards stay within their size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.formats import _safetensors_layout as safetensors_layout
from ckptsurgeon.formats.base import limits
from ckptsurgeon.formats.base.format_table import writers
from ckptsurgeon.formats.base.header import OutTensor
from ckptsurgeon.formats.base.sharded_writer import split_shards
from ckptsurgeon.formats.torch.pickle_writer import state_dict_pickle


def tensor(key: str, nbytes: int, alias_of: str = "") -> OutTensor:
    return OutTensor(key, "uint8", (nbytes,), nbytes, alias_of)


def keys_of(shards: list[list[OutTensor]]) -> list[list[str]]:
    return [[t.key for t in shard] for shard in shards]


@pytest.mark.parametrize(
    ("key", "why"), [("__metadata__", "which safetensors reserves. Use to=.pth."), ("a\ud800", r"a\\ud800 is not valid Unicode .*half of a surrogate pair.*to=.pth.")]
)  # fmt: skip
def test_a_key_that_safetensors_cannot_hold_is_an_error_that_names_pth(key: str, why: str) -> None:
    torch.save({key: torch.ones(2), "b": torch.ones(1)}, "x.pth")
    plan = cs.transplant("x.pth", "x.pth")
    with pytest.raises(cs.OutputError, match=why):
        cs.apply(plan, "out.safetensors")
    assert not Path("out.safetensors").exists()
    cs.apply(plan, "out.pth")
    assert key in torch.load("out.pth", weights_only=True)


def test_a_header_that_no_reader_takes_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_layout, "JSON_HEADER_BYTES", 64)
    writer = writers()["safetensors"]
    assert writer.layout([tensor("a", 1)], {}, ()).size == 8 + 56 + 1
    with pytest.raises(cs.OutputError, match="the header would have 72 bytes"):
        writer.layout([tensor("a" * 13, 1)], {}, ())
    assert limits.JSON_HEADER_BYTES == 100_000_000


def test_aliases_take_room_where_each_is_written() -> None:
    tensors = [tensor("a", 40), tensor("b", 40), tensor("a2", 40, "a"), tensor("c", 20)]
    assert keys_of(split_shards(tensors, 100)) == [["a", "a2"], ["b", "c"]]
    assert keys_of(split_shards(tensors, 100, shares=True)) == [["a", "b", "a2", "c"]]
    assert (writers()["safetensors"].shares, writers()["pth"].shares) == (False, True)


def test_a_shard_may_be_exactly_full() -> None:
    assert keys_of(split_shards([tensor("a", 60), tensor("b", 40), tensor("c", 1)], 100)) == [["a", "b"], ["c"]]


def test_numbers_of_elements_beyond_int32_are_pickled_whole() -> None:
    for numel in (2**31 - 1, 2**31, 2**32 - 1, 2**32):
        data = state_dict_pickle([OutTensor("a", "uint8", (numel,), numel)], {"a": "0"})
        raw = numel.to_bytes(4 if numel < 2**31 else 5, "little")
        assert (b"J" + raw if numel < 2**31 else b"\x8a\x05" + raw) in data
