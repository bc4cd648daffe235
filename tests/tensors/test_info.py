"""When two keys are one tensor, and when a tensor's bytes lie in the file as they are."""

from __future__ import annotations

from dataclasses import replace

import torch

import ckptsurgeon as cs
from ckptsurgeon.tensors.info import Storage, TensorInfo, tied_keys
from ckptsurgeon.util.text import natural_key

from ..helpers.torch_files import bytes_of

STORAGE = Storage("", 0, 64)
INFO = TensorInfo("complex64", (4,), STORAGE)


def test_the_same_bytes_read_in_another_way_are_no_alias() -> None:
    others = {
        "same": INFO,
        "conjugate": replace(INFO, conj=True),
        "negative": replace(INFO, neg=True),
        "type": replace(INFO, dtype="float64"),
        "shape": replace(INFO, shape=(2, 2)),
        "offset": replace(INFO, offset=8),
        "stride": replace(INFO, shape=(2,), stride=(2,)),
        "storage": replace(INFO, storage=Storage("", 0, 64)),
        "opaque": replace(INFO, opaque="it is quantised"),
        "opaque too": replace(INFO, opaque="it is quantised"),
    }
    assert tied_keys({"a": INFO, **others}) == {"same": "a"}


def test_a_stride_along_one_element_means_nothing() -> None:
    a = TensorInfo("uint8", (2, 1), STORAGE, stride=(3, 1))
    assert tied_keys({"a": a, "b": replace(a, stride=(3, 7))}) == {"b": "a"}


def test_tensors_without_elements_are_no_aliases() -> None:
    empty = TensorInfo("uint8", (0,), STORAGE)
    assert tied_keys({"a": empty, "b": empty}) == {}


def test_a_negative_view_is_not_plain_even_where_it_is_contiguous() -> None:
    assert INFO.is_plain
    assert not replace(INFO, neg=True).is_plain
    assert not replace(INFO, conj=True).is_plain
    assert not replace(INFO, opaque="x").is_plain


def test_a_tensor_and_its_conjugate_are_written_as_two() -> None:
    a = torch.randn(3, dtype=torch.complex64)
    torch.save({"a": a, "b": a.conj(), "c": a}, "x.pth")
    assert dict(cs.open_checkpoint("x.pth").ties) == {"c": "a"}
    cs.apply(cs.transplant("x.pth", "x.pth"), "out.safetensors")
    found = cs.open_checkpoint("out.safetensors")
    assert bytes_of(found.tensor("b")) == bytes_of(a.conj())
    assert bytes_of(found.tensor("c")) == bytes_of(a)


def test_numbers_in_keys_are_sorted_as_numbers() -> None:
    keys = ["layers.10.w", "layers.2.w", "layers.1.w", "a", "layers.02.w", "layers.x"]
    assert sorted(keys, key=natural_key) == ["a", "layers.1.w", "layers.02.w", "layers.2.w", "layers.10.w", "layers.x"]
