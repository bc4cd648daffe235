"""HDF5 files as they are written: `written.h5` has the bytes of today, and h5py read it (`make oracle-hdf5`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.formats.base.header import OutTensor
from ckptsurgeon.formats.hdf5.superblock import SIGNATURE
from ckptsurgeon.formats.hdf5.writer import HDF5_RECIPE, Hdf5Writer

from ...helpers.hdf5_files import GOLDEN

DTYPES = sorted(Hdf5Writer.dtypes)
RECIPE = ('{"of":', ' "a test"}')


def values(number: int, shape: Sequence[int], dtype: str) -> torch.Tensor:
    """Return numbers that differ from tensor to tensor."""
    count = torch.Size(shape).numel()
    return ((torch.arange(count) * 3 + number) % 100).reshape(shape).to(getattr(torch, dtype))


def tensors() -> dict[str, torch.Tensor]:
    """Return a tensor of each dtype, of unusual shapes and names, and so many in one group that its tree has levels."""
    made = {f"types/{dtype}": values(number, (2, 3), dtype) for number, dtype in enumerate(DTYPES)}
    made |= {
        "scalar": values(1, (), "float32"),
        "empty": values(0, (0, 4), "int8"),
        "deep/er/ж.weight": values(2, (5,), "int16"),
    }
    return made | {f"links/name_{number}": values(number, (), "uint8") for number in range(300)}


def written(made: dict[str, torch.Tensor], recipe: Sequence[str] = RECIPE) -> bytes:
    out = [OutTensor(key, str(one.dtype)[6:], tuple(one.shape), one.nbytes) for key, one in made.items()]
    layout = Hdf5Writer().layout(out, {}, recipe)
    data = bytearray(layout.size)
    for offset, piece in layout.frame({}, recipe):
        data[offset : offset + len(piece)] = piece
    for key, (offset, nbytes) in layout.slots.items():
        data[offset : offset + nbytes] = made[key].reshape(-1).view(torch.uint8).numpy().tobytes()
    assert len(data) == layout.size
    return bytes(data)


def test_the_bytes_are_those_that_h5py_read() -> None:
    assert written(tensors()) == (GOLDEN / "written.h5").read_bytes()
    said = json.loads((GOLDEN / "datasets.json").read_text())["files"]["written.h5"]
    assert {key for key in tensors() if not key.startswith("links/") or key.endswith("9")} == set(said)


@pytest.mark.long
def test_parts_of_keys_between_slashes_are_groups_and_dots_are_kept() -> None:
    torch.save(tensors(), "x.pth")
    cs.apply(cs.convert("x.pth"), "out.h5")
    with cs.open_checkpoint("out.h5") as found:
        assert (found.format, sorted(found)) == ("hdf5", sorted(tensors()))
        for key, tensor in tensors().items():
            assert torch.equal(found.tensor(key), tensor), key
            storage = found[key].storage
            assert storage is not None
            assert not storage.offset % 64 or not storage.nbytes
    assert cs.verify("out.h5").ok
    cs.apply(cs.convert("out.h5"), "back.pth")
    back = torch.load("back.pth", weights_only=True)
    assert all(torch.equal(back[key], one) for key, one in tensors().items())


def test_a_changed_byte_is_seen_in_a_tensor_and_outside_the_tensors() -> None:
    torch.save({"a": torch.arange(100.0), "b": torch.ones(3)}, "x.pth")
    cs.apply(cs.convert("x.pth"), "out.h5")
    whole = Path("out.h5").read_bytes()
    assert whole.startswith(SIGNATURE)
    for at in (len(whole) - 1, whole.index(b"HEAP") + 40 + 15):
        data = bytearray(whole)
        data[at] ^= 1
        Path("out.h5").write_bytes(data)
        assert not cs.verify("out.h5").ok, at


@pytest.mark.parametrize("number", [1, 8, 9, 255, 256, 257, 8 * 32 + 1, 8 * 32 * 3])
def test_groups_of_any_size_are_read_back(number: int) -> None:
    made = {f"w{one}": torch.tensor([one], dtype=torch.int16) for one in range(number)}
    Path("x.h5").write_bytes(written(made, ()))
    with cs.open_checkpoint("x.h5") as found:
        assert list(found) == sorted(made)
        assert all(found.tensor(key).item() == int(key[1:]) for key in found)


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "./a", "a/.", "a\0b", "a\ud800", HDF5_RECIPE])
def test_a_key_that_cannot_be_a_path_is_refused_before_a_byte_is_written(key: str) -> None:
    torch.save({key: torch.ones(2), "b": torch.ones(1)}, "x.pth")
    with pytest.raises(cs.OutputError, match="hdf5 cannot store the key .* it cannot be the path of a dataset"):
        cs.apply(cs.convert("x.pth"), "out.h5")
    assert not Path("out.h5").exists()


def test_a_tensor_with_the_name_of_a_group_is_refused() -> None:
    torch.save({"a/b/c": torch.ones(2), "a/b": torch.ones(1)}, "x.pth")
    with pytest.raises(cs.OutputError, match="hdf5 cannot store both a/b and a/b/c"):
        cs.apply(cs.convert("x.pth"), "out.h5")
