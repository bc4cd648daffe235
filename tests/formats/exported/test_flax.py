"""Flax's msgpack files: as Flax wrote them (`make oracle-flax`), and files that break rules."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ckptsurgeon as cs
from ckptsurgeon.formats.base import limits

from ...helpers.flax_files import Raw, array, extension, packed

GOLDEN = Path(__file__).parents[3] / "fixtures" / "golden" / "flax"
ONES = np.ones(6, "<f4").tobytes()
W = array((2, 3), "float32", ONES)


def opened(data: bytes) -> cs.Checkpoint:
    Path("x.msgpack").write_bytes(data)
    return cs.open_checkpoint("x.msgpack")


@pytest.mark.parametrize("name", ["types", "chunks"])
def test_every_array_has_the_values_that_flax_reads(name: str) -> None:
    wanted = json.loads((GOLDEN / "shapes.json").read_text())[name]
    with cs.open_checkpoint(str(GOLDEN / f"{name}.msgpack")) as found, np.load(GOLDEN / f"{name}.npz") as values:
        assert [f"params.{key}" for key in found] == list(wanted)
        for key in found:
            dtype, shape = wanted[f"params.{key}"]
            if dtype == "int4":
                assert found[key].opaque == "its type int4 is not read from Flax"
                continue
            assert (found[key].dtype, list(found[key].shape)) == (dtype, shape)
            stored = found.tensor(key).contiguous().reshape(-1).view(torch.uint8).numpy()
            assert stored.tobytes() == values[f"params.{key}"].tobytes(), key
        assert found.root == "params"


def test_parameters_alone_have_dotted_keys_in_the_order_of_the_file() -> None:
    tree = {"bert": {"layer": {"0": {"kernel": W}, "1": {"kernel": W}}, "norm": {"scale": W}}, "cls": {"bias": W}}
    with opened(packed(tree)) as found:
        assert list(found) == ["bert.layer.0.kernel", "bert.layer.1.kernel", "bert.norm.scale", "cls.bias"]
        assert found.tensor("cls.bias").tolist() == [[1] * 3] * 2
    cs.apply(cs.convert("x.msgpack"), "out.safetensors")
    assert cs.verify("out.safetensors").ok
    assert torch.equal(load_file("out.safetensors")["bert.norm.scale"], torch.ones(2, 3))


def test_a_training_state_has_its_parameters_as_root() -> None:
    state = {"params": {"w": W}, "opt_state": {"0": {"mu": {"w": W}}}, "step": 7, "x": extension(2, b"12")}
    with opened(packed(state)) as found:
        assert (list(found), found.root) == (["w"], "params")
    Path("x.msgpack").write_bytes(packed(state))
    with cs.open_checkpoint("x.msgpack", "opt_state") as found:
        assert list(found) == ["0.mu.w"]


def test_an_array_in_chunks_is_one() -> None:
    chunks = {"0": array((4,), "float32", ONES[:16]), "1": array((2,), "float32", ONES[16:])}
    whole = {"__msgpack_chunked_array__": True, "shape": {"0": 2, "1": 3}, "chunks": chunks}
    with opened(packed({"w": whole})) as found:
        assert found.tensor("w").tolist() == [[1] * 3] * 2


def chunked(shape: object, chunks: object) -> bytes:
    return packed({"w": {"__msgpack_chunked_array__": True, "shape": shape, "chunks": chunks}})


def of(value: object) -> bytes:
    return packed({"w": value})


DEEP = packed(1)
for _ in range(200):
    DEEP = packed({"a": DEEP})
HOSTILE: dict[str, bytes] = {
    "a map alone": b"\x81\xa1w",
    "cut in an array": of(W)[:30],
    "bytes behind": of(W) + b"\0",
    "no array": of(1),
    "2^32 entries": b"\xdf\xff\xff\xff\xff\xa1w" + W,
    "2^32 items": of(Raw(b"\xdd\xff\xff\xff\xff" + b"\1" * 9)),
    "a text of 2^32 bytes": of(Raw(b"\xdb\xff\xff\xff\xff" + b"a" * 9)),
    "an extension of 2^32 bytes": of(Raw(b"\xc9\xff\xff\xff\xff\1" + b"a" * 9)),
    "a byte that means nothing": of(Raw(b"\xc1")),
    "a key that is a number": b"\x82\xa1w" + W + b"\1" + W,
    "a key twice": b"\x82\xa1w" + W + b"\xa1w" + W,
    "a recipe that is a number": packed({"ckptsurgeon.json": 5, "w": W}),
    "a recipe that is a map": packed({"ckptsurgeon.json": {"a": 1}, "w": W}),
    "a recipe of 2^31 bytes": b"\x82" + packed("ckptsurgeon.json") + b"\xdb\x7f\xff\xff\xff{}\xa1w" + W,
    "two recipes": b"\x83" + (packed("ckptsurgeon.json") + packed("{}")) * 2 + b"\xa1w" + W,
    "two paths of one key": packed({"a.b": W, "a": {"b": W}}),
    "a key that is no text": b"\x82\xa1w" + W + b"\xa2\xff\xfe" + W,
    "a key of 100,000 bytes": packed({"w": W, "n" * 100_000: W}),
    "nested too deeply": b"\x82\xa1w" + W + b"\xa1x" + DEEP,
    "an array of two": of(extension(1, packed([[2, 3], "float32"]))),
    "an array that is a map": of(extension(1, packed({"shape": 1}))),
    "an empty extension": of(extension(1, b"")),
    "a shape that is a number": of(extension(1, packed([6, "float32", ONES]))),
    "a negative size": of(array((-2, 3), "float32", ONES)),
    "a size that is a text": of(array(("2", 3), "float32", ONES)),
    "a size that is true": of(array((True, 6), "float32", ONES)),
    "2^62 elements": of(array((1 << 62,), "float32", ONES)),
    "sizes whose product overflows": of(array((1 << 40, 1 << 40), "float32", ONES)),
    "100 dimensions": of(array([1] * 100, "float32", ONES[:4])),
    "a dtype that is a number": of(array((2, 3), 1, ONES)),
    "too few bytes": of(array((2, 3), "float32", ONES[:-1])),
    "too many bytes": of(array((2, 3), "float32", ONES + b"\0")),
    "data that are a text": of(array((2, 3), "float32", "abc")),
    "bytes behind an array": of(extension(1, packed([[2, 3], "float32", ONES]) + b"\0")),
    "a chunk that is missing": chunked({"0": 6}, {"0": array((3,), "float32", ONES[:12]), "2": W}),
    "chunks of two dtypes": chunked({"0": 6}, {"0": array((3,), "float32", ONES[:12]), "1": array((3,), "int32", ONES[:12])}),
    "chunks with fewer elements": chunked({"0": 7}, {"0": W}),
    "chunks without a shape": chunked(None, {"0": W}),
    "no chunks": packed({"v": W, "w": {"__msgpack_chunked_array__": True, "shape": {"0": 0}, "chunks": {}}}),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_breaks_a_rule_is_refused(name: str) -> None:
    with pytest.raises((cs.FormatError, cs.UnsafeError), match=r"x\.msgpack"):
        opened(HOSTILE[name]).close()


def test_many_values_are_refused_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TREE_NODES", 100)
    with pytest.raises(cs.UnsafeError, match="more than 100 values"):
        opened(packed({"w": W, "list": [1] * 200})).close()


def test_a_long_string_beside_the_arrays_is_no_error() -> None:
    with opened(packed({"w": W, "config": "x" * 9000})) as found:
        assert list(found) == ["w"]
