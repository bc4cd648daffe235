"""A part of codes and scales is that of the whole, whatever the part; what is lost is what decoding shows."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.api.inputs.operations import operate
from ckptsurgeon.engine.compute import encoding
from ckptsurgeon.engine.compute.reading import read_part
from ckptsurgeon.tensors.encoders import _extremes
from ckptsurgeon.tensors.encoders._encoder import encoder_of
from ckptsurgeon.tensors.encoders._schemes import SCHEMES
from ckptsurgeon.tensors.info import Encoded, TensorInfo

KEYS = ("model.layers.0.q_proj.weight", "model.layers.0.k_proj.weight")


def model(path: Path, values: torch.Tensor | None = None, dtype: torch.dtype = torch.float32) -> Path:
    """A file with two matrices, the second of larger values, and a norm."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(150, 256, generator=generator) * 0.05 if values is None else values
    state = {KEYS[0]: first.to(dtype), KEYS[1]: (torch.randn(40, 256, generator=generator) * 0.4).to(dtype)}
    save_file({**state, "norm.weight": torch.ones(4, dtype=dtype)}, path)
    return path


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_any_part_is_that_of_the_whole(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    checkpoint = cs.open_checkpoint(model(tmp_path / "m.safetensors", dtype=dtype))
    made = operate([checkpoint], [{"quantize": "model.**", "to": name}])[0].checkpoint
    assert len(made) > 3
    chance = random.Random(0)
    for key in made:
        info = made[key]
        whole = read_part(checkpoint, info, tuple((0, size) for size in info.shape))
        assert whole.shape == info.shape
        for _ in range(10):
            box = tuple(tuple(sorted(chance.sample(range(size + 1), 2))) for size in info.shape)
            part = read_part(checkpoint, info, box)  # type: ignore[arg-type]
            assert part.tobytes() == np.ascontiguousarray(whole[tuple(slice(*span) for span in box)]).tobytes(), (
                key,
                box,
            )
        assert made.tensor(key).contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() == whole.tobytes()


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("name", SCHEMES)
def test_blocks_of_any_size_give_the_same_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are longer than a block, blocks that end within a group of rows: the bytes do not change.

    Of ``fp8-block`` the matrix has four blocks of 128 rows and columns, of which three are cut off.
    """
    shape = (130, 136) if name == "fp8-block" else (10, 256)
    few = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.05
    source = model(tmp_path / "m.safetensors", few)
    first = cs.apply(cs.convert(source, quantize=name), tmp_path / "a.safetensors")
    wanted = {key: one.view(torch.uint8) for key, one in load_file(tmp_path / "a.safetensors").items()}
    for elements, most in ((1 << 10, 1 << 30), (1 << 9, 1), (512 if name == "fp8-block" else 64, 1)):
        monkeypatch.setattr(encoding, "ELEMENTS", elements)
        monkeypatch.setattr(encoding, "MOST", most)
        monkeypatch.setattr(_extremes, "ELEMENTS", 100)
        receipt = cs.apply(cs.convert(source, quantize=name), tmp_path / "b.safetensors", force=True)
        found = {key: one.view(torch.uint8) for key, one in load_file(tmp_path / "b.safetensors").items()}
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
        for one, other in zip(receipt.rounded, first.rounded, strict=True):
            assert (one.key, one.largest) == (other.key, other.largest)
            assert one.error == pytest.approx(other.error, rel=1e-9)


@pytest.mark.parametrize("name", SCHEMES)
def test_the_receipt_says_what_decoding_shows(name: str, tmp_path: Path) -> None:
    source = model(tmp_path / "m.safetensors")
    receipt = cs.apply(cs.convert(source, quantize=name), tmp_path / "q.safetensors")
    cs.apply(cs.convert(tmp_path / "q.safetensors", dequantize=True, dtype="float32"), tmp_path / "d.safetensors")
    before, after = load_file(source), load_file(tmp_path / "d.safetensors")
    assert after.keys() == before.keys()
    assert [one.key for one in receipt.rounded] == [*KEYS[::-1]] or [one.key for one in receipt.rounded] == [*KEYS]
    for one in receipt.rounded:
        difference = after[one.key].double() - before[one.key].double()
        assert one.largest == float(difference.abs().max())
        assert one.error == pytest.approx(float(difference.norm() / before[one.key].double().norm()), rel=1e-9)
        assert 1e-3 < one.error < 0.15
    assert cs.verify(tmp_path / "q.safetensors").compared == len(load_file(tmp_path / "q.safetensors"))


def test_a_changed_code_fails_verification(tmp_path: Path) -> None:
    cs.apply(cs.convert(model(tmp_path / "m.safetensors"), quantize="mxfp4"), tmp_path / "q.safetensors")
    data = bytearray((tmp_path / "q.safetensors").read_bytes())
    data[-5] ^= 0x10
    (tmp_path / "q.safetensors").write_bytes(data)
    assert not cs.verify(tmp_path / "q.safetensors").ok


def test_layers_that_are_joined_share_a_global_scale(tmp_path: Path) -> None:
    """vLLM has one scale for q, k and v."""
    cs.apply(cs.convert(model(tmp_path / "m.safetensors"), quantize="nvfp4"), tmp_path / "q.safetensors")
    found = load_file(tmp_path / "q.safetensors")
    largest = max(float(one.abs().max()) for one in load_file(tmp_path / "m.safetensors").values() if one.ndim == 2)
    scales = {float(found[key.replace("weight", "weight_global_scale")]) for key in KEYS}
    assert scales == {float(torch.tensor(1 / largest) * 2688)}


HOSTILE = {
    "zeros": torch.zeros(4, 128),
    "minus zeros": torch.full((4, 128), -0.0),
    "subnormals": torch.full((4, 128), 1e-44),
    "small": torch.linspace(-1e-37, 1e-37, 512).reshape(4, 128),
    "huge": torch.linspace(-1, 1, 512).reshape(4, 128) * 3e38 / 2,
    "one row": torch.linspace(-1, 1, 128).reshape(1, 128),
}


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("what", HOSTILE)
def test_no_weight_becomes_nan_or_infinite(name: str, what: str, tmp_path: Path) -> None:
    source = model(tmp_path / "m.safetensors", HOSTILE[what])
    cs.apply(cs.convert(source, quantize=name), tmp_path / "q.safetensors")
    cs.apply(cs.convert(tmp_path / "q.safetensors", dequantize=True, dtype="float32"), tmp_path / "d.safetensors")
    before, after = HOSTILE[what].double(), load_file(tmp_path / "d.safetensors")[KEYS[0]].double()
    assert torch.isfinite(after).all()
    assert (after - before).abs().max() <= max(0.26 * float(before.abs().max()), 1e-36)  # tiny values become 0
    if not before.any():
        assert not after.any()


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_value_that_is_no_number_is_an_error_that_names_the_tensor(
    name: str, value: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    values = torch.ones(130, 256)
    values[129, 200] = value
    plan = cs.convert(model(tmp_path / "m.safetensors", values, dtype), quantize=name)
    with pytest.raises(cs.PlanError, match=r"0\.q_proj\.weight.*NaN or infinite"):
        cs.apply(plan, tmp_path / "q.safetensors")
    assert not (tmp_path / "q.safetensors").exists()


def test_what_is_beyond_float32_is_an_error(tmp_path: Path) -> None:
    values = torch.ones(4, 128, dtype=torch.float64)
    values[0, 0] = 1e300
    plan = cs.convert(model(tmp_path / "m.safetensors", values, torch.float64), quantize="int8")
    with pytest.raises(cs.PlanError, match="too large for float32.*ckpt transplant SOUND DAMAGED --include"):
        cs.apply(plan, tmp_path / "q.safetensors")


def test_codes_that_would_stand_for_infinity_are_an_error(tmp_path: Path) -> None:
    """The lowest of 16 codes is 8 scales below 0, and the scale is the largest value over 7.5."""
    plan = cs.convert(model(tmp_path / "m.safetensors", torch.full((4, 128), -3.4e38)), quantize="int4-group128")
    with pytest.raises(cs.PlanError, match="q_proj.weight .* would be decoded to infinity.*In ckpt convert"):
        cs.apply(plan, tmp_path / "q.safetensors")


@pytest.mark.parametrize(("ends", "what"), [((0, 7e4), "bias"), ((-3e6, 3e6), "scale")])
def test_a_bias_beyond_its_dtype_is_not_called_a_scale(ends: tuple[float, float], what: str) -> None:
    info = TensorInfo("float32", (1, 32))
    made = Encoded((info,), "affine", "codes", (1, 32), "float16", (("bits", 4), ("without_zero", 1)), "w")
    with pytest.raises(cs.PlanError, match=f"a {what} of w exceeds the range of float16"):
        encoder_of(made).scales(made, *(np.full((1, 1), end, "<f4") for end in ends), 0.0)


def test_memory_does_not_grow_with_the_tensor() -> None:
    """A block has about a million elements, however many rows or columns a matrix has."""
    from ckptsurgeon.tensors.encoders._schemes import quantised_parts
    from ckptsurgeon.tensors.info import Storage, TensorInfo

    for shape in ((1 << 20, 4096), (128, 1 << 28), (1, 1 << 30), (1 << 30, 32)):
        for scheme in SCHEMES.values():
            if shape[1] % (scheme.steps[1] or 1):
                continue
            info = TensorInfo("bfloat16", shape, Storage("", 0, 0))
            for end, one in quantised_parts(scheme, "w.weight", info).items():
                box = next(iter(encoding.encoding_boxes(one)))
                per = scheme.per if end == scheme.codes[0] else 1
                assert np.prod([end - begin for begin, end in box]) * per <= encoding.MOST


@pytest.mark.parametrize("name", SCHEMES)
def test_operations_do_not_take_codes_for_numbers(name: str, tmp_path: Path) -> None:
    source = model(tmp_path / "m.safetensors")
    quantize = {"quantize": "model.**", "to": name}
    with pytest.raises(cs.PlanError, match="an earlier operation has quantised"):
        cs.rename(source, operations=[quantize, {"transpose": "**.q_proj.weight*"}])
    with pytest.raises(cs.PlanError, match="cannot be quantised"):
        cs.rename(source, operations=[quantize, {"quantize": "**.q_proj.*", "to": name}])
    with pytest.raises(cs.ConfigError, match="to is 'int5', not one of fp8-block"):
        cs.rename(source, operations=[{**quantize, "to": "int5"}])


@pytest.mark.parametrize("bits", [2, 4])
def test_groups_on_one_side_of_zero_lose_no_more_than_a_step_in_the_first_version_of_gptq(bits: int) -> None:
    """It has no zero point 0, so that one code less is left."""
    made = Encoded(
        (TensorInfo("float32", (1, 32)),), "gptq", "codes", (1, 32), "float16",
        (("bits", bits), ("turned", 1), ("plus", 1), ("asymmetric", 1)),
    )  # fmt: skip
    values, encoder = np.linspace(0, 3, 32, dtype="<f4")[None], encoder_of(made)
    scales = encoder.scales(made, np.zeros((1, 1), "<f4"), np.full((1, 1), 3, "<f4"), 0.0)
    step = float(scales["scale"].view("<f2")[0, 0])
    numbers = {role: np.asarray(one.view("<f2") if role == "scale" else one, "<f4") for role, one in scales.items()}
    codes, meant = encoder.codes(made, values, numbers, 0.0)
    assert codes.max() == 2**bits - 1
    assert np.abs(meant - values).max() <= step / 2 + 2e-3
