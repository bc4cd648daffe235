"""Codes of quanto: 8 bits are decoded with the scales of activations left out, packed ones are an error that says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from ...helpers.zoo import BY_NAME

RECORDED = Path(__file__).parent / "recorded"
MODULE = "model.layers.0.mlp.up_proj"


def stored(name: str) -> dict[str, torch.Tensor]:
    """The tensors that quanto stores of one weight, which are also written to q.safetensors."""
    found = load_file(RECORDED / f"quanto-{name}.safetensors")
    del found["expected"]
    save_file(found, "q.safetensors")
    return found


@pytest.mark.parametrize("name", ["int8", "int8-bfloat16", "float8", "float8-e5m2"])
def test_scales_of_activations_belong_to_the_weight(name: str) -> None:
    stored(name)
    cs.apply(cs.convert("q.safetensors", dequantize=True, dtype="float32"), "out.safetensors")
    assert [*load_file("out.safetensors")] == [f"{MODULE}.weight"]


def test_a_mean_is_encoded_as_quanto_stores_it() -> None:
    before = stored("int8")
    cs.apply(cs.average(["q.safetensors", "q.safetensors"]), "mean.safetensors")
    after = load_file("mean.safetensors")
    assert after.keys() == before.keys()
    assert all((one.dtype, one.shape) == (before[key].dtype, before[key].shape) for key, one in after.items())
    codes, scales = f"{MODULE}.weight._data", f"{MODULE}.weight._scale"
    difference = (after[codes] * after[scales] - before[codes] * before[scales]).abs()
    assert bool((difference <= after[scales] / 2 * 1.0001).all())


def test_packed_integers_are_an_error_that_says_why(tmp_path: Path) -> None:
    folder = BY_NAME["quanto-int4"].folder(tmp_path / "m")
    with pytest.raises(cs.PlanError, match="integers of 2 or 4 bits, packed by quanto"):
        cs.convert(folder, dequantize=True)
    cs.apply(cs.convert(folder), tmp_path / "copy")
    assert load_file(tmp_path / "copy/model.safetensors").keys() == load_file(folder / "model.safetensors").keys()


def test_the_map_of_quanto_is_not_beside_plain_weights(tmp_path: Path) -> None:
    folder = BY_NAME["quanto"].folder(tmp_path / "m")
    (folder / "quanto_qmap.json").write_text('{"model.layers.0.self_attn.q_proj": {"weights": "qint8"}}')
    cs.apply(cs.convert(folder, dequantize=True), tmp_path / "out")
    assert not (tmp_path / "out/quanto_qmap.json").exists()


@pytest.mark.parametrize(("end", "said"), [("_data", "lacks _data"), ("_scale", "lacks _scale")])
def test_a_missing_part_is_named_by_its_own_name(end: str, said: str) -> None:
    parts = {key.removeprefix(MODULE): one for key, one in stored("int8").items()}
    modules = [f"model.layers.{number}.mlp.up_proj" for number in range(4)]
    state = {f"{module}{key}": one.clone() for module in modules for key, one in parts.items()}
    del state[f"{modules[3]}.weight.{end}"]
    Path("m").mkdir()
    save_file(state, "m/model.safetensors")
    settings = {"model_type": "llama", "quantization_config": {"quant_method": "quanto", "weights": "int8"}}
    Path("m/config.json").write_text(json.dumps(settings))
    (note,) = [one for one in cs.inspect("m").notes if "lacks" in one]
    assert f"1 quantised tensor {said}, which 3 similar tensors have: {modules[3]}" in note
