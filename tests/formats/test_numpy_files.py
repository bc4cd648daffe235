"""numpy's files: arrays are tensors where torch has their type, and what their headers say is held against them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ckptsurgeon as cs

ARRAYS: dict[str, Any] = {
    "enc.w": np.arange(12.0).reshape(3, 4),
    "enc.f": np.asfortranarray(np.arange(6, dtype="f4").reshape(3, 2)),
    "big": np.arange(5, dtype=">i4"),
    "half": np.ones((2, 2, 3), "f2"),
    "flag": np.array([True, False]),
    "z": np.array([1 + 2j], "c8"),
    "count": np.array(3),
    "none": np.zeros((0, 4), "f4"),
}


@pytest.mark.parametrize("key", ARRAYS)
def test_an_array_is_a_tensor(key: str) -> None:
    np.save("one.npy", ARRAYS[key])
    with cs.open_checkpoint("one.npy") as found:
        assert list(found) == ["one"]
        native = ARRAYS[key].astype(ARRAYS[key].dtype.newbyteorder("="))
        assert torch.equal(found.tensor("one"), torch.from_numpy(native))


def test_an_archive_is_a_state_dict() -> None:
    np.savez("all.npz", **ARRAYS)
    with cs.open_checkpoint("all.npz") as found:
        assert found.format == "numpy zip"
        assert set(found) == set(ARRAYS)
        for key, array in ARRAYS.items():
            assert np.array_equal(found.tensor(key).numpy(), array), key


def test_an_archive_can_be_converted() -> None:
    np.savez("all.npz", **ARRAYS)
    cs.apply(cs.convert("all.npz"), "out.safetensors")
    assert cs.verify("out.safetensors").compared == len(ARRAYS)
    found = load_file("out.safetensors")
    assert all(np.array_equal(found[key].numpy(), array) for key, array in ARRAYS.items())


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_complex_numbers_of_the_other_byte_order_are_converted(shape: tuple[int, ...]) -> None:
    array = np.full(shape, 1 + 2j, ">c8")
    np.savez("all.npz", w=array)
    cs.apply(cs.convert("all.npz"), "out.pth")
    assert np.array_equal(torch.load("out.pth")["w"].numpy(), array)


def test_text_objects_and_compressed_arrays_are_only_named() -> None:
    np.savez(
        "odd.npz", w=np.ones(2), text=np.array(["a"]), objects=np.array([{}], dtype=object), rows=np.zeros(2, "i4,f4")
    )
    found = cs.inspect("odd.npz")
    assert list(found.tensors) == ["w"]
    assert {extra.key for extra in found.extras} == {"text", "objects", "rows"}
    np.savez_compressed("small.npz", w=np.ones(2))
    with pytest.raises(cs.FormatError, match="small.npz: the arrays are compressed: w.npy"):
        cs.open_checkpoint("small.npz")
    np.savez("objects.npz", w=np.array([{}], dtype=object))
    with zipfile.ZipFile("objects.npz", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("README", "x" * 99)
    with pytest.raises(cs.FormatError, match="objects.npz has no state dict"):
        cs.open_checkpoint("objects.npz")


def test_an_archive_s_bad_checksum_is_found() -> None:
    np.savez("all.npz", w=np.arange(100.0))
    data = bytearray(Path("all.npz").read_bytes())
    data[-300] ^= 1
    Path("all.npz").write_bytes(bytes(data))
    with cs.open_checkpoint("all.npz") as found, pytest.raises(cs.FormatError, match="checksum"):
        found.tensor("w")


def test_records_that_are_no_arrays_are_only_named() -> None:
    np.savez("all.npz", w=np.ones(2))
    with zipfile.ZipFile("all.npz", "a") as archive:
        archive.writestr("readme.txt", "hello")
    assert [extra.key for extra in cs.inspect("all.npz").extras] == ["readme.txt"]


@pytest.mark.parametrize("names", [("w", "w.npy"), ("w.npy", "w")])
def test_two_records_of_one_key_are_refused(names: tuple[str, str]) -> None:
    np.save("w.npy", np.ones(2))
    with zipfile.ZipFile("all.npz", "w") as archive:
        archive.write("w.npy", "a.npy")
        for name in names:
            archive.write("w.npy", name)
    with pytest.raises(cs.FormatError, match=r"all.npz: the archive has two records for the key w") as caught:
        cs.open_checkpoint("all.npz")
    assert caught.value.rule == "duplicate key"


def test_keys_that_differ_only_in_case_are_refused_with_a_remedy() -> None:
    np.savez("a.npz", w=np.ones(2), W=np.zeros(2))
    with pytest.raises(cs.UnsafeError, match=r"differs from w.npy only in case") as caught:
        cs.open_checkpoint("a.npz")
    assert "or as safetensors" in caught.value.hint
