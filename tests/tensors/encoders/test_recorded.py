"""Weights that libraries rounded to codes: ours are the same, bit for bit (`make oracle-quantised`)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.api.inputs.operations import operate
from ckptsurgeon.checkpoint.checkpoint import Checkpoint
from ckptsurgeon.engine.compute.reading import read_part
from ckptsurgeon.tensors.decoders._decoder import Request, StatedSettings
from ckptsurgeon.tensors.encoders._encode import encode
from ckptsurgeon.tensors.encoders._like import UnencodableError, encoded_like
from ckptsurgeon.tensors.encoders._losses import RoundingLoss
from ckptsurgeon.tensors.info import Encoded, Reshaped, TensorInfo
from ckptsurgeon.tensors.ops.regions import Array, Box

RECORDED = sorted((Path(__file__).parent / "recorded").glob("*.safetensors"))
LIKE = [path for path in RECORDED if path.stem.startswith("like-")]
SCHEMES = [path for path in RECORDED if path not in LIKE]
MODULE = "model.layers.0.mlp.up_proj"


def opened(path: Path) -> tuple[dict[str, torch.Tensor], torch.Tensor, dict[str, str]]:
    """What the library stored, the weight that it rounded, and the settings."""
    with safe_open(path, "pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    return tensors, tensors.pop("values"), json.loads(metadata["quantization_config"])


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def whole(info: TensorInfo) -> Box:
    return tuple((0, size) for size in info.shape)


def request(checkpoint: Checkpoint, name: str) -> Request:
    """What is known of a quantised tensor, by the key of its weight."""
    coded = next(one for one in checkpoint.codes.tensors if one.name == name)
    parts = {end: checkpoint[key] for end, key in coded.parts.items()}

    def stored(end: str) -> bytes:
        return raw(checkpoint.tensor(coded.parts[end])) if end in coded.parts else b""

    return Request(coded, parts, StatedSettings(checkpoint.quantisation), stored)


def test_every_scheme_and_encoding_is_recorded() -> None:
    assert {path.stem for path in SCHEMES} == {"fp8-channel", "int8", "int4-group128", "mxfp4", "nvfp4"}
    assert len(LIKE) == 43
    assert max(path.stat().st_size for path in RECORDED) < 32 * 1024


@pytest.mark.parametrize("path", SCHEMES, ids=lambda path: path.stem)
def test_a_weight_is_rounded_as_its_library_does(path: Path, tmp_path: Path) -> None:
    stored, values, settings = opened(path)
    save_file({f"{MODULE}.weight": values}, tmp_path / "plain.safetensors")
    plan = cs.convert(tmp_path / "plain.safetensors", quantize=path.stem)
    cs.apply(plan, tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")
    assert {key: (one.dtype, one.shape) for key, one in found.items()} == {
        key: (one.dtype, one.shape) for key, one in stored.items()
    }
    assert {key: raw(one) for key, one in found.items()} == {key: raw(one) for key, one in stored.items()}
    written = cs.open_checkpoint(tmp_path / "out.safetensors").quantisation
    assert written["config_groups"] == settings["config_groups"]


@pytest.mark.parametrize("path", LIKE, ids=lambda path: path.stem)
def test_a_weight_is_rounded_as_one_like_it_was(path: Path, tmp_path: Path) -> None:
    """Under the settings that a quantised tensor has, the library's own codes come out again."""
    stored, values, settings = opened(path)
    save_file({**stored, "values": values}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": settings}))
    checkpoint = cs.open_checkpoint(tmp_path)
    asked = request(checkpoint, f"{MODULE}.weight")
    made = encoded_like(checkpoint["values"], asked)
    for end, info in made.items():
        key = asked.coded.parts[end]
        assert (info.dtype, info.shape) == (checkpoint[key].dtype, checkpoint[key].shape)
        part = read_part(checkpoint, info, whole(info))
        if (end, path.stem) == (".absmax", "like-nf4-nested"):
            assert_nearest_scales(part, stored, key, values)
        else:
            assert part.tobytes() == raw(stored[key]), end
    assert {asked.coded.parts[end] for end in made} == set(stored)


def assert_nearest_scales(found: Array, stored: dict[str, torch.Tensor], key: str, values: torch.Tensor) -> None:
    """bitsandbytes' function for a CPU looks in a table of 65,536 places, and may take the neighbour of the nearest."""
    theirs, table = stored[key].numpy(), stored[key.replace("absmax", "nested_quant_map")].numpy()
    (state,) = (json.loads(bytes(one.numpy())) for name, one in stored.items() if "quant_state" in name)
    blocks = torch.nn.functional.pad(values.float().reshape(-1), (0, -values.numel() % state["blocksize"]))
    largest = blocks.reshape(-1, state["blocksize"]).abs().amax(1).double() - state["nested_offset"]
    outer = stored[key.replace("absmax", "nested_absmax")].double().repeat_interleave(256)[: len(largest)]
    distances = [np.abs(table[codes] - (largest / outer).numpy()) for codes in (found, theirs)]
    assert 0 < np.count_nonzero(found != theirs) <= len(found) // 100
    assert (distances[0] <= distances[1]).all()


def test_the_values_may_come_from_a_function(tmp_path: Path) -> None:
    """Another verb computes the weight block by block, and has no file with it."""
    path = next(one for one in LIKE if one.stem == "like-int4-group-asymmetric")
    stored, values, settings = opened(path)
    save_file(stored, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    asked = request(cs.open_checkpoint(tmp_path), f"{MODULE}.weight")
    array = values.numpy()

    def read(info: TensorInfo, box: Box) -> Array:
        part: Array = array[tuple(slice(*span) for span in box)]
        return part

    for end, info in encoded_like(TensorInfo("float32", (20, 96)), asked).items():
        assert np.ascontiguousarray(encode(read, info, whole(info))).tobytes() == raw(stored[asked.coded.parts[end]])


def test_weights_are_rounded_in_the_order_of_columns_that_a_library_stored(tmp_path: Path) -> None:
    """GPTQ with ``desc_act``: the codes of a GPTQ library, decoded and rounded again, are at most a step apart."""
    path = Path(__file__).parents[1] / "decoders" / "recorded" / "gptq-4bit-act-order.safetensors"
    with safe_open(path, "pt") as file:
        stored, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    values = stored.pop("expected")
    save_file({**stored, "values": values}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps({"quantization_config": json.loads(metadata["quantization_config"])})
    )
    checkpoint = cs.open_checkpoint(tmp_path)
    asked = request(checkpoint, checkpoint.codes.tensors[0].name)
    made = encoded_like(checkpoint["values"], asked)
    parts = {end: torch.from_numpy(read_part(checkpoint, info, whole(info)).copy()) for end, info in made.items()}
    order, steps = parts[".g_idx"].long(), parts[".scales"].float()
    assert not torch.equal(order, order.sort().values)
    assert parts[".g_idx"].numpy().tobytes() == raw(stored[asked.coded.parts[".g_idx"]])
    save_file({f"layer{end}": one for end, one in parts.items()}, tmp_path / "model.safetensors")
    cs.apply(cs.convert(tmp_path, dequantize=True, dtype="float32"), tmp_path / "out.safetensors")
    (again,) = load_file(tmp_path / "out.safetensors").values()
    assert ((again - values.float()).abs() <= 0.51 * steps[order].T + 1e-3).all()


@pytest.mark.parametrize("name", ["mlx-1bit", "mlx-nvfp4"])
def test_other_encodings_are_refused(name: str, tmp_path: Path) -> None:
    path = Path(__file__).parents[1] / "decoders" / "recorded" / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    expected = tensors.pop("expected")
    save_file(tensors, tmp_path / "model.safetensors")
    settings = json.loads(metadata["quantization_config"])
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    checkpoint = cs.open_checkpoint(tmp_path)
    asked = request(checkpoint, checkpoint.codes.tensors[0].name)
    with pytest.raises(UnencodableError, match="the layout that this tensor has|to 1 bit"):
        encoded_like(TensorInfo("float32", tuple(expected.shape)), asked)
    with pytest.raises(UnencodableError, match="has the shape"):
        encoded_like(TensorInfo("float32", (3, 3)), asked)


@pytest.mark.parametrize(
    "path",
    [
        one
        for one in LIKE
        if any(word in one.stem for word in ("float8", "fp8", "fp4", "nf4")) and "nested" not in one.stem
    ],
    ids=lambda path: path.stem,
)
def test_what_small_floats_stand_for_is_rounded_to_itself(path: Path, tmp_path: Path) -> None:
    """An edit that changes nothing changes nothing. Integers shrink: their largest code is not the end of the range."""
    stored, _, settings = opened(path)
    save_file(stored, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    checkpoint = cs.open_checkpoint(tmp_path)
    asked = request(checkpoint, f"{MODULE}.weight")
    weight = operate([checkpoint], [{"dequantize": "**"}])[0].checkpoint[f"{MODULE}.weight"]
    parts = [one.made.of if isinstance(one.made, Reshaped) else one for one in encoded_like(weight, asked).values()]
    (codes,) = (one for one in parts if isinstance(one.made, Encoded) and one.made.role == "codes")
    losses: list[RoundingLoss] = []
    encode(lambda one, box: read_part(checkpoint, one, box), codes, whole(codes), measured=losses.append)
    assert sum(losses, RoundingLoss()).of > 0
    assert sum(losses, RoundingLoss()).relative < 1e-6


@pytest.mark.parametrize("name", ["gpt-oss-mxfp4", "gpt-oss-mxfp4-down"])
def test_experts_of_gpt_oss_are_rounded_to_themselves(name: str, tmp_path: Path) -> None:
    """The weights that transformers decodes are stored as codes that stand for the same weights."""
    folder = Path(__file__).parents[1] / "decoders" / "recorded"
    with safe_open(folder / f"{name}.safetensors", "pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    expected = tensors.pop("expected").float()
    settings = {"quantization_config": json.loads(metadata["quantization_config"])}
    for one, more in (("a", {"values": expected}), ("b", {})):
        (tmp_path / one).mkdir()
        (tmp_path / one / "config.json").write_text(json.dumps(settings))
        save_file({**tensors, **more}, tmp_path / one / "model.safetensors")
    checkpoint = cs.open_checkpoint(tmp_path / "a")
    asked = request(checkpoint, checkpoint.codes.tensors[0].name)
    made = {asked.coded.parts[end]: one for end, one in encoded_like(checkpoint["values"], asked).items()}
    again = {key: torch.from_numpy(read_part(checkpoint, one, whole(one)).copy()) for key, one in made.items()}
    assert {key: (one.dtype, one.shape) for key, one in again.items()} == {
        key: (one.dtype, one.shape) for key, one in tensors.items()
    }
    save_file(again, tmp_path / "b" / "model.safetensors")
    decoded = operate([cs.open_checkpoint(tmp_path / "b")], [{"dequantize": "**"}])[0].checkpoint
    assert torch.equal(decoded.tensor(asked.coded.name), expected)


def test_experts_of_gpt_oss_get_the_least_power_of_two_that_cuts_no_value_off(tmp_path: Path) -> None:
    values = torch.randn(2, 96, 20, generator=torch.Generator().manual_seed(0))
    stem, codes = "model.layers.0.mlp.experts.down_proj", torch.zeros(2, 20, 3, 16, dtype=torch.uint8)
    state = {f"{stem}_blocks": codes, f"{stem}_scales": torch.full((2, 20, 3), 120, dtype=torch.uint8)}
    save_file({**state, "values": values}, tmp_path / "m.safetensors")
    checkpoint = cs.open_checkpoint(tmp_path / "m.safetensors")
    asked = request(checkpoint, checkpoint.codes.tensors[0].name)
    made = encoded_like(checkpoint["values"], asked)
    groups = values.transpose(1, 2).reshape(2, 20, 3, 32)
    exponents = torch.ceil(torch.log2(groups.abs().amax(-1) / 6)) + 127
    scales = read_part(checkpoint, made["_scales"], whole(made["_scales"]))
    assert np.array_equal(scales, exponents.numpy())
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
    found = torch.from_numpy(read_part(checkpoint, made["_blocks"], whole(made["_blocks"])).copy())
    pairs = table[torch.stack([found & 15, found >> 4], -1).int()].reshape(groups.shape)
    wanted = groups / 2 ** (exponents[..., None] - 127)
    nearest = (wanted[..., None] - table).abs().amin(-1)
    assert torch.equal((wanted - pairs).abs(), nearest)
