"""torch's own quantised tensors become what torch's ``dequantize`` makes of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ckptsurgeon as cs
from ckptsurgeon.checkpoint.checkpoint import Checkpoint
from ckptsurgeon.engine.compute.reading import read_part
from ckptsurgeon.errors import PlanError
from ckptsurgeon.tensors.decoders._decoder import Request, StatedSettings, UndecodableError, decoded_weight
from ckptsurgeon.tensors.info import Storage, TensorInfo
from ckptsurgeon.tensors.quantised.encoding import QuantisedTensor


def quantised() -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of every dtype and scheme, with an odd number of columns."""
    made = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 35, generator=made)
    for dtype in (torch.qint8, torch.quint8, torch.qint32):
        name = str(dtype).removeprefix("torch.")
        yield f"{name}.tensor", torch.quantize_per_tensor(weight, 0.0312, 3, dtype)
        for axis, size in enumerate(weight.shape):
            scale = torch.rand(size, generator=made, dtype=torch.float64) / 20 + 0.01
            yield f"{name}.axis{axis}", torch.quantize_per_channel(weight, scale, torch.arange(size), axis, dtype)
    for dtype in (torch.quint8, torch.quint4x2, torch.quint2x4):
        scale, zero = torch.rand(6, generator=made) / 5 + 0.01, 3 * torch.rand(6, generator=made)
        name = str(dtype).removeprefix("torch.")
        yield f"{name}.floats", torch.quantize_per_channel(weight, scale, zero, 0, dtype)
    yield "transposed", torch.quantize_per_tensor(weight, 0.0312, 3, torch.qint8).t()
    yield "bias", torch.quantize_per_tensor(weight[0], 0.0312, 3, torch.qint8)
    yield "scalar", torch.quantize_per_tensor(weight[0, 0], 0.0312, 3, torch.qint8)


with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)  # deprecated in torch 2.13
    STATE = dict(quantised())


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.save({**STATE, "norm": torch.ones(6)}, tmp_path / "q.pth")
    return tmp_path / "q.pth"


def test_every_scheme_becomes_what_torch_makes_of_it(saved: Path) -> None:
    out = saved.with_suffix(".safetensors")
    cs.apply(cs.convert(saved, dtype="float32", dequantize=True), out)
    found = load_file(out)
    assert found.keys() == {*STATE, "norm"}
    for key, tensor in STATE.items():
        assert torch.equal(found[key], tensor.dequantize()), key
    assert cs.verify(out).ok


@pytest.mark.parametrize("key", ["qint8.axis0", "qint8.axis1", "quint4x2.floats", "quint2x4.floats", "transposed"])
def test_any_part_is_that_of_the_whole(key: str, saved: Path) -> None:
    with cs.open_checkpoint(saved) as source:
        info = described(source, key)
        whole = read_part(source, info, tuple((0, size) for size in info.shape))
        for rows in ((0, 1), (1, 4), (3, info.shape[0])):
            for columns in ((0, 1), (1, info.shape[1]), (2, 5)):
                part = read_part(source, info, (rows, columns))
                assert np.array_equal(part, whole[slice(*rows), slice(*columns)])


def described(source: Checkpoint, key: str) -> TensorInfo:
    coded = source.codes.by_key[key]
    return decoded_weight(Request(coded, {"": source[key]}, StatedSettings({})))


@pytest.mark.parametrize("key", STATE)
def test_they_are_read_as_torch_reads_them(key: str, saved: Path) -> None:
    with cs.open_checkpoint(saved) as source:
        found = source.tensor(key)
        assert source[key].nbytes == -(
            -STATE[key].numel() * {"quint4x2": 4, "quint2x4": 2, "qint32": 32}.get(source[key].dtype, 8) // 8
        )
    assert (found.dtype, found.qscheme()) == (STATE[key].dtype, STATE[key].qscheme())
    assert torch.equal(found.dequantize(), STATE[key].dequantize())


@pytest.mark.parametrize(
    ("params", "why"),
    [
        ((), "the scale is not known"),
        (("torch.per_tensor_affine", "1", 0), "not a valid number"),
        (("torch.per_tensor_affine", 1.0, 1 << 40), "not a valid number"),
        (("torch.per_channel_affine", [1.0], [0], 0), "not tensors"),
        (("torch.per_channel_affine", [1.0], [0], 2), "a dimension that the tensor does not have"),
        (("torch.per_tensor_affine", 1.0, 0, 0), "the scheme 'per_tensor_affine' has 3 parameters"),
        (("torch.per_channel_symmetric", 1.0, 0), "scheme 'per_channel_symmetric' is unknown"),
    ],
)
def test_what_no_scale_can_be_is_refused(params: tuple[Any, ...], why: str) -> None:
    info = TensorInfo("qint8", (2, 3), Storage("", 0, 6), opaque="it is quantised", parts=(params,))
    coded = QuantisedTensor("w", "quantised by torch", "w", {"": "w"}, 6, (2, 3))
    with pytest.raises(UndecodableError, match=why):
        decoded_weight(Request(coded, {"": info}, StatedSettings({})))
    with pytest.raises(UndecodableError):
        decoded_weight(Request(coded, {"": replace(info, storage=None)}, StatedSettings({})))


def test_one_of_small_codes_that_is_in_memory_is_refused_by_name() -> None:
    with pytest.raises(PlanError, match="quint4x2.floats .* cannot be decoded"):
        cs.convert(STATE, dtype="float32", dequantize=True)


class Rescaled:
    """A tensor that is pickled as torch pickles a quantised one, but with another scale."""

    def __init__(self, tensor: torch.Tensor, scale: float) -> None:
        self.tensor, self.scale = tensor, scale

    def __reduce__(self) -> Any:
        build, given = self.tensor.__reduce_ex__(2)  # type: ignore[misc]
        return build, tuple((one[0], self.scale, *one[2:]) if at == 4 else one for at, one in enumerate(given))


@pytest.mark.costly
@pytest.mark.parametrize("scale", [1 << 1500, -(1 << 1500), 1e200], ids=["large", "low", "float"])
def test_a_scale_beyond_floats_is_reported_by_every_verb(
    scale: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ckpt: Callable[..., Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"w": STATE["qint8.tensor"]}, "q.pth")
    torch.save({"w": Rescaled(STATE["qint8.tensor"], scale)}, "bad.pth")
    done = [
        ckpt("check", "bad.pth"),
        ckpt("inspect", "bad.pth", "--stats"),
        ckpt("diff", "q.pth", "bad.pth", "--values"),
        ckpt("convert", "bad.pth", "--dequantize", "-o", "x.pth"),
    ]
    assert not [one.err for one in done if "bug in ckpt" in one.err]
    assert [one.code for one in done] == [1, 1, 1, 3] or scale == 1e200
