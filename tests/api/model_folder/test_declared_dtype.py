"""A ``dtype`` in config.json that is not that of the weights: noted, unless the model may be right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.analysis.check.report import Status

BFLOAT, FLOAT, HALF = torch.bfloat16, torch.float32, torch.float16
NOTE = "config.json says float32 (torch_dtype), but all weights are bfloat16: transformers casts them to float32"


def model(of: torch.dtype, others: dict[str, torch.Tensor] | None = None, **config: Any) -> Path:
    """Write a folder with two layers of the dtype ``of``, and with others."""
    folder = Path("m")
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    state = {f"model.layers.{i}.mlp.up_proj.weight": torch.randn(64, 64).to(of) for i in range(2)}
    save_file({**state, **(others or {})}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return folder


def said(folder: Path) -> list[str]:
    return [note for note in cs.inspect(folder).notes if "transformers casts them" in note]


def test_another_dtype_is_noted_once_by_inspect_and_fits_and_check() -> None:
    folder = model(BFLOAT, torch_dtype="float32")
    save_file(load_file(folder / "model.safetensors"), "other.safetensors")
    assert said(folder) == [NOTE]
    notes = cs.fits(folder, "other.safetensors").notes
    assert sum(NOTE in note for note in notes) == 1
    (found,) = next(one for one in cs.check(folder).rows if one.id == "configuration").found
    assert (found.status, found.what) == (Status.WARN, NOTE)
    assert "ckpt convert --dtype" in found.todo


@pytest.mark.parametrize(
    ("dtype", "config"),
    [(FLOAT, "bfloat16"), (FLOAT, "float16"), (HALF, "bfloat16"), (torch.float64, "float32"), (HALF, "torch.float32")],
)
def test_so_is_any_other_pair_and_the_newer_name(dtype: torch.dtype, config: str) -> None:
    name = config.removeprefix("torch.")
    (note,) = said(model(dtype, dtype=config, torch_dtype="auto"))
    assert note.startswith(f"config.json says {name} (dtype), but all weights are {str(dtype).removeprefix('torch.')}:")


def test_a_few_small_tensors_of_the_stated_dtype_change_nothing() -> None:
    (note,) = said(model(BFLOAT, {"model.norm.weight": torch.ones(8)}, torch_dtype="float32"))
    assert "but nearly all weights are bfloat16" in note


def test_pickled_weights_are_compared_too() -> None:
    folder = model(BFLOAT, torch_dtype="float32")
    (folder / "model.safetensors").unlink()
    torch.save({"model.layers.0.mlp.up_proj.weight": torch.ones(8, 8).bfloat16()}, folder / "pytorch_model.bin")
    assert said(folder) == [NOTE]


def test_shards_are_compared_too() -> None:
    norms = {f"model.layers.{i}.norm.weight": torch.ones(8).bfloat16() for i in range(2)}
    folder = model(BFLOAT, norms, torch_dtype="float32")
    cs.apply(cs.convert(folder), "sharded", max_shard_size="9KB")
    assert len(list(Path("sharded").glob("*.safetensors"))) == 2
    assert said(Path("sharded")) == [NOTE]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"torch_dtype": "bfloat16"},
        {"torch_dtype": None},
        {"torch_dtype": "auto"},
        {"torch_dtype": {"": "float32"}},
        {"torch_dtype": "bfloat16", "text_config": {"torch_dtype": "float32"}},  # transformers takes the outer one
        {"text_config": {"torch_dtype": "float32"}, "vision_config": {"torch_dtype": "float32"}},
        {"torch_dtype": "float32", "quantization_config": {"quant_method": "other"}},
        {"torch_dtype": "float32", "model_type": None, "_class_name": "UNet"},
    ],
)
def test_a_model_that_may_be_right_is_not(config: dict[str, Any]) -> None:
    folder = model(BFLOAT, **config)
    if config.get("model_type", "") is None:
        (folder / "config.json").write_text(json.dumps({"torch_dtype": "float32", "_class_name": "UNet"}))
    assert not said(folder)


def test_nor_are_mixed_dtypes_eight_bits_or_an_adapter() -> None:
    norms = {f"model.layers.{i}.mlp.gate.weight": torch.ones(8, 64) for i in range(2)}
    assert not said(model(BFLOAT, norms, torch_dtype="float32"))  # the routers are float32, a fifth of the bytes
    assert not said(model(torch.float8_e4m3fn, torch_dtype="bfloat16"))
    folder = model(FLOAT, torch_dtype="bfloat16")  # the configuration of the base
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    assert not said(folder)


def test_nor_are_the_codes_of_a_quantised_model() -> None:
    scales = {f"model.layers.{i}.mlp.up_proj.weight_scale": torch.ones(64, 1, dtype=FLOAT) for i in range(2)}
    settings = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    assert not said(model(torch.float8_e4m3fn, scales, torch_dtype="bfloat16", quantization_config=settings))


def test_an_output_with_another_dtype_states_it() -> None:
    folder = model(BFLOAT, torch_dtype="bfloat16")
    cs.apply(cs.convert(folder, dtype="float32"), "out")
    assert json.loads(Path("out/config.json").read_text())["torch_dtype"] == "float32"
    assert not said(Path("out"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"dtype": "float32"}, "config.json says float32: from_pretrained casts them to float32"),
        (
            {},
            "config.json has no field dtype: from_pretrained casts them to one dtype, which depends on the version of "
            "transformers",
        ),
    ],
)
def test_weights_of_two_dtypes_are_noted(fields: dict[str, Any], said: str) -> None:
    folder = model(BFLOAT, {"model.norm.weight": torch.ones(64, dtype=FLOAT)}, **fields)
    assert f"the weights are bfloat16 and float32, but {said}" in cs.average([folder, folder]).notes
