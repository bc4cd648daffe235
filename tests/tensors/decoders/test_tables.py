"""Products of 8-bit floats and scales that are looked up are those that are computed, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.engine.compute import one_block
from ckptsurgeon.engine.compute.column_bands import OpenFiles
from ckptsurgeon.engine.compute.reading import read_part
from ckptsurgeon.tensors.composition import decoded
from ckptsurgeon.tensors.decoders import _decoder, _tables
from ckptsurgeon.tensors.info import Decoded, TensorInfo
from ckptsurgeon.tensors.ops.casts import cast, count_special
from ckptsurgeon.tensors.ops.regions import Array, Box

SHAPES = [((256, 384), (128, 128)), ((200, 300), (128, 128)), ((96, 4096), (1, 4096)), ((3, 64, 512), (1, 64, 512)),
          ((2, 130, 1000), (1, 128, 128)), ((300, 700), (300, 700)), ((4, 96, 2304), (1, 1, 2304)),
          ((3, 40, 256), (3, 1, 256)), ((4, 96, 256), (4, 32, 128)), ((4, 1200), (4, 4)), ((600, 6), (1, 6))]  # fmt: skip


def made_of(shape: Sequence[int], steps: Sequence[int], codes: str = "float8_e4m3fn") -> TensorInfo:
    groups = tuple(-(-size // step) for size, step in zip(shape, steps, strict=True))
    parts = (("codes", TensorInfo(codes, tuple(shape))), ("scale", TensorInfo("float32", groups)))
    facts = tuple((f"step{dim}", float(step)) for dim, step in enumerate(steps))
    return decoded(tuple(shape), Decoded(parts, "scaled", facts))


class Stored:
    """Codes of all values but NaN, and scales, from a seed."""

    def __init__(self, info: TensorInfo, seed: int, *, most: float = 2.0, nan: bool = False) -> None:
        draw = np.random.default_rng(seed)
        assert isinstance(info.made, Decoded)
        codes, scale = info.made.of
        values = draw.integers(0, 256, codes.shape, "u1")
        if not nan:
            values[(values & 0x7F) > (0x7E if codes.dtype == "float8_e4m3fn" else 0x7B)] = 0
        self._arrays = {id(codes): values, id(scale): (draw.random(scale.shape) * most + 0.01).astype("<f4")}

    def read(self, info: TensorInfo, box: Box) -> Array:
        return self._arrays[id(info)][tuple(slice(*span) for span in box)]


def boxes_of(shape: Sequence[int], seed: int) -> list[Box]:
    draw = np.random.default_rng(seed)
    found: list[Box] = [tuple((0, size) for size in shape)]
    for _ in range(12):
        ends = [sorted(draw.choice(size + 1, 2, replace=False).tolist()) for size in shape]
        found.append(tuple((begin, end) for begin, end in ends))
    return found


@pytest.mark.parametrize("codes", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize(("shape", "steps"), SHAPES)
def test_what_is_looked_up_is_what_is_computed(
    shape: tuple[int, ...], steps: tuple[int, ...], dtype: str, codes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_tables, "FEWER", 0)
    monkeypatch.setattr(_tables, "ELEMENTS", 1 << 12)
    info = made_of(shape, steps, codes)
    stored = Stored(info, seed=len(shape), nan=True)
    looked = 0
    for box in boxes_of(shape, seed=steps[-1]):
        found = _decoder.decode_rounded(stored.read, info, box, dtype)
        with monkeypatch.context() as slowly:
            slowly.setattr(_decoder, "may_be_looked_up", lambda *_: False)
            values, lost = cast(_decoder.decode(stored.read, info, box), "float32", dtype)
        if found is None:
            assert dtype == "float16"  # it may not hold every product
            continue
        looked += 1
        made, are_finite = found
        assert made.dtype == values.dtype
        assert made.tobytes() == values.tobytes()
        assert not are_finite or not any(count_special(made, dtype))
        assert not lost.infinite
        assert not lost.zero
    assert looked or dtype == "float16"


def test_products_that_a_dtype_cannot_hold_are_computed() -> None:
    info = made_of((64, 4096), (64, 4096))
    box = ((0, 64), (0, 4096))
    assert _decoder.decode_rounded(Stored(info, 0, most=0.5).read, info, box, "float16") is not None
    assert _decoder.decode_rounded(Stored(info, 0, most=1e6).read, info, box, "float16") is None
    assert _decoder.decode_rounded(Stored(info, 0, most=1e38).read, info, box, "float32") is None


@pytest.mark.costly
@pytest.mark.parametrize(("most", "infinite"), [(0.5, False), (1000.0, True)])
def test_large_blocks_of_what_cannot_be_looked_up_are_computed_in_parts(
    most: float, infinite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = torch.Generator().manual_seed(0)
    codes = (50 * torch.randn(64, 4096, generator=draw)).to(torch.float8_e4m3fn)
    scale = most * torch.rand(1, 32, generator=draw) + 0.01
    save_file({"net.weight": codes, "net.weight_scale_inv": scale}, "fp8.safetensors")
    parts: list[Box] = []

    def read(source: OpenFiles, info: TensorInfo, box: Box) -> Array:
        parts.append(box)
        return read_part(source, info, box)

    monkeypatch.setattr(one_block, "read_part", read)
    monkeypatch.setattr(one_block, "BLOCK_BYTES", 1 << 16)
    receipt = cs.apply(cs.convert("fp8.safetensors", dequantize=True, dtype="fp16"), "out.safetensors")
    wanted = (codes.float() * scale.repeat_interleave(128, 1)).half()
    assert load_file("out.safetensors")["net.weight"].equal(wanted)
    lost = int(wanted.isinf().sum())
    assert bool(lost) == infinite
    assert (f"{lost} values of net.weight became infinite or NaN" in receipt.notes) == bool(lost)
    assert any("make weights larger than 10,000" in note for note in receipt.notes) == bool(lost)
    decoded_parts = [box for box in parts if box[0] != (0, 64) and box[1] == (0, 4096)]
    assert len(decoded_parts) == (16 if infinite else 0)


def test_few_elements_are_not_looked_up() -> None:
    info = made_of((64, 4096), (1, 4096))
    stored = Stored(info, 0)
    assert _decoder.decode_rounded(stored.read, info, ((0, 64), (0, 4096)), "bfloat16") is not None
    assert _decoder.decode_rounded(stored.read, info, ((0, 64), (0, 2000)), "bfloat16") is None


@pytest.mark.parametrize("change", ["zero", "times", "int8"])
def test_other_codes_are_not_looked_up(change: str) -> None:
    info = made_of((64, 4096), (64, 4096), "int8" if change == "int8" else "float8_e4m3fn")
    made = info.made
    assert isinstance(made, Decoded)
    parts = (*made.parts, ("zero", made.of[1])) if change == "zero" else made.parts
    facts = (*made.facts, ("times", 2.0)) if change == "times" else made.facts
    boxes = {"codes": ((0, 64), (0, 4096)), "scale": ((0, 1), (0, 1))}
    assert not _tables.may_be_looked_up(Decoded(parts, "scaled", facts), boxes)


def test_a_scale_that_is_not_finite_is_an_error() -> None:
    from ckptsurgeon.errors import FormatError

    info = made_of((64, 4096), (64, 4096))
    stored = Stored(info, 0, most=float("inf"))
    with pytest.raises(FormatError, match="is NaN or infinite"):
        _decoder.decode(stored.read, info, ((0, 64), (0, 4096)))
