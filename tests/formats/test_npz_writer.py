"""numpy's archives as they are written: numpy reads them, and what numpy cannot hold is refused."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.formats._npy import DTYPES_OF_NPY, npy_header

from ..conftest import Result

TENSORS = {
    "enc.w": torch.arange(12.0).reshape(3, 4),
    "half": torch.ones(2, 2, 3, dtype=torch.float16),
    "flag": torch.tensor([True, False]),
    "z": torch.tensor([1 + 2j], dtype=torch.complex64),
    "count": torch.tensor(3),
    "none": torch.zeros(0, 4),
}


@pytest.mark.parametrize("dtype", sorted(DTYPES_OF_NPY))
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 5), (100_000,), (4, 0, 7), (1,) * 20])
def test_the_header_of_an_array_has_the_bytes_that_numpy_writes(dtype: str, shape: tuple[int, ...]) -> None:
    file, array = io.BytesIO(), np.zeros(shape, dtype)
    np.save(file, array)
    assert npy_header(dtype, shape) == file.getvalue()[: len(file.getvalue()) - array.nbytes]


def test_numpy_reads_the_values_and_the_recipe() -> None:
    torch.save(TENSORS, "x.pth")
    cs.apply(cs.convert("x.pth"), "out.npz")
    with np.load("out.npz") as found:
        assert found.files == [*TENSORS, "ckptsurgeon.json"]
        for key, tensor in TENSORS.items():
            assert np.array_equal(found[key], tensor.numpy()), key
            assert found[key].dtype == tensor.numpy().dtype
        assert json.loads(found["ckptsurgeon.json"])["tensors"]
    with zipfile.ZipFile("out.npz") as archive:
        assert archive.testzip() is None  # the checksum of each record, of the array's header and values together
    with cs.open_checkpoint("out.npz") as ours:
        assert list(ours) == list(TENSORS)
        assert all((info.offset + info.storage.offset) % 64 == 0 for info in map(ours.get, ours) if info.storage)
    assert cs.verify("out.npz").ok


def test_a_changed_byte_is_seen_in_an_array_and_outside_the_arrays() -> None:
    torch.save(TENSORS, "x.pth")
    cs.apply(cs.convert("x.pth"), "out.npz")
    whole = Path("out.npz").read_bytes()
    for at in (whole.index(TENSORS["enc.w"].numpy().tobytes()) + 5, whole.index(b"FB") + 8):
        data = bytearray(whole)
        data[at] ^= 1
        Path("out.npz").write_bytes(data)
        assert not cs.verify("out.npz").ok, at


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        (
            {"a": torch.ones(2, dtype=torch.bfloat16)},
            'npz does not support bfloat16, the dtype of a. Use to="safetensors".',
        ),
        ({"a.W": torch.ones(1), "a.w": torch.ones(1)}, "npz cannot store both a.W and a.w: they differ only in case"),
        ({"/a": torch.ones(1)}, "npz cannot store the key /a: it cannot be the name of a file in a zip archive"),
        ({"a/../b": torch.ones(1)}, "npz cannot store the key a/../b: it cannot be the name"),
    ],
)
def test_what_the_archive_cannot_hold_is_refused_before_a_byte_is_written(
    tensors: dict[str, torch.Tensor], why: str
) -> None:
    save_file(tensors, "x.safetensors")
    with pytest.raises(cs.CheckpointError) as caught:
        cs.apply(cs.convert("x.safetensors"), "out.npz")
    assert why in str(caught.value)
    assert not Path("out.npz").exists()


def test_a_folder_of_npz_is_an_error_that_says_how_to_write_one_file(ckpt: Callable[..., Result]) -> None:
    save_file({"a": torch.ones(1)}, "x.safetensors")
    done = ckpt("convert", "x.safetensors", "--to", "npz", "-o", "out/")
    assert done.code == 2
    assert "npz can only be written as one file" in done.err
    assert "NAME.npz" in done.err
