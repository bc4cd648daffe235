"""Flax's msgpack files as they are written: each array has the bytes that Flax wrote (`make oracle-flax`)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.formats.base import limits
from ckptsurgeon.formats.base.header import OutTensor
from ckptsurgeon.formats.exported import _flax_writer
from ckptsurgeon.formats.exported._flax_writer import FlaxWriter

GOLDEN = Path(__file__).parents[3] / "fixtures" / "golden" / "flax"


def test_each_array_has_the_bytes_that_flax_writes() -> None:
    path = GOLDEN / "types.msgpack"
    with cs.open_checkpoint(str(path)) as found:
        keys = [key for key in found if key.startswith("dense.") and not found[key].opaque and key != "dense.scalar"]
        assert len(keys) == 19
        out = [OutTensor(key[6:], found[key].dtype, found[key].shape, found[key].nbytes) for key in keys]
        layout = FlaxWriter().layout(out, {}, ())
        data = bytearray(layout.size)
        for offset, piece in layout.frame({}, ()):
            data[offset : offset + len(piece)] = piece
        for tensor in out:
            begin, nbytes = layout.slots[tensor.key]
            raw = found.tensor(f"dense.{tensor.key}").contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            data[begin : begin + nbytes] = raw
    golden, begin = path.read_bytes(), 3  # a map of 16 to 65,535 entries begins with three bytes
    for tensor in out:
        end = sum(layout.slots[tensor.key])
        assert bytes(data[begin:end]) in golden, tensor.key  # its name, its header and its values
        begin = end
    assert begin == len(data)


def test_parts_of_keys_are_nested_dicts_and_come_back() -> None:
    tensors = {
        "params.b.0.w": torch.ones(2, 3),
        "params.a": torch.arange(5),
        "step": torch.tensor(7),
        "b.x": torch.ones(0),
    }
    save_file(tensors, "x.safetensors")
    cs.apply(cs.convert("x.safetensors"), "out.msgpack")
    assert Path("out.msgpack").read_bytes()[:18] == b"\x84\xb0ckptsurgeon.json"
    with cs.open_checkpoint("out.msgpack") as found:
        assert (sorted(found), found.format, found.root) == (sorted(tensors), "flax", "")
        assert all(torch.equal(found.tensor(key), one) for key, one in tensors.items())
    assert cs.verify("out.msgpack").ok


def test_a_changed_byte_is_seen_in_an_array_and_outside_the_arrays() -> None:
    save_file({"a.w": torch.ones(100), "b": torch.ones(3)}, "x.safetensors")
    cs.apply(cs.convert("x.safetensors"), "out.msgpack")
    whole = Path("out.msgpack").read_bytes()
    for at in (len(whole) - 1, whole.rindex(b"\xa1b\xc7") + 1):
        data = bytearray(whole)
        data[at] ^= 1
        Path("out.msgpack").write_bytes(data)
        assert not cs.verify("out.msgpack").ok, at


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        (("x.a", "x.a.b.c"), r"both x\.a and x\.a\.b\.c: x\.a would be both a tensor and a group of tensors"),
        (("x.a.b.c", "x.a"), r"both x\.a and x\.a\.b\.c: x\.a would be both a tensor and a group of tensors"),
        ((".".join("a" * 65),), "has more than 64 parts between"),
    ],
)
def test_keys_that_cannot_be_nested_are_refused_before_a_byte_is_written(keys: tuple[str, ...], why: str) -> None:
    torch.save({key: torch.ones(1) for key in keys}, "x.pth")
    with pytest.raises(cs.OutputError, match=why):
        cs.apply(cs.convert("x.pth"), "out.msgpack")
    assert not Path("out.msgpack").exists()


def test_as_many_values_as_are_read_can_be_written_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({f"a.b{n}.w": torch.ones(1, 2) for n in range(5)}, "x.safetensors")
    plan = cs.convert("x.safetensors")
    values = 1 + 2 + 2 + 5 * (2 + 8)
    monkeypatch.setattr(limits, "TREE_NODES", values)
    cs.apply(plan, "out.msgpack")
    cs.open_checkpoint("out.msgpack").close()
    monkeypatch.setattr(limits, "TREE_NODES", values - 1)
    with pytest.raises(cs.OutputError, match=f"the file would have {values} msgpack values"):
        cs.apply(plan, "other.msgpack")
    with pytest.raises(cs.UnsafeError):
        cs.open_checkpoint("out.msgpack")


def test_an_array_that_msgpack_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_flax_writer, "_LARGEST", 399)
    save_file({"w": torch.ones(100)}, "x.safetensors")
    with pytest.raises(cs.OutputError, match="w has 400 bytes: msgpack stores at most 399 for an array"):
        cs.apply(cs.convert("x.safetensors"), "out.msgpack")


@pytest.mark.parametrize("number", [0x7F, 0x80, 0xFF, 0x100, 0xFFFF, 0x10000, 0xFFFFFFFF, 0x100000000])
def test_numbers_take_as_few_bytes_as_in_flax(number: int) -> None:
    wide = [n for n in (0x7F, 0xFF, 0xFFFF, 0xFFFFFFFF) if number > n]
    raw = _flax_writer._integer(number)
    assert len(raw) == (1, 2, 3, 5, 9)[len(wide)]
    assert int.from_bytes(raw[len(raw) > 1 :], "big") == number
