"""What a folder says of quantisation holds for every file of weights in it, whatever that is called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

from ..helpers.hub.server import Hub

NAMES = (
    "model-00001-of-00002.safetensors", "model-00001-of-000163.safetensors", "consolidated.safetensors",
    "consolidated-00001-of-00002.safetensors", "model.fp8.safetensors", "pytorch_model-00001-of-00002.safetensors",
    "diffusion_pytorch_model.fp8.safetensors", "gptq_model-4bit-128g.safetensors",
)  # fmt: skip
CODES = torch.randn(4, 4).to(torch.float8_e4m3fn)
"""Whose scales lie in another shard."""


def folder(path: Path, name: str, config: str = "config.json", section: str = "quantization_config") -> Path:
    path.mkdir()
    save_file({"up_proj.weight": CODES, "norm.weight": torch.ones(4)}, path / name)
    (path / config).write_text(json.dumps({section: {"quant_method": "fp8"}} if section else {"quant_method": "fp8"}))
    return path / name


@pytest.mark.parametrize("name", NAMES)
def test_one_file_of_a_quantised_folder_is_quantised(name: str, tmp_path: Path) -> None:
    file = folder(tmp_path / "m", name)
    assert set(cs.open_checkpoint(file).codes.by_key) == {"up_proj.weight"}
    assert set(cs.open_checkpoint(file).lent(".").codes.by_key) == {"up_proj.weight"}
    with pytest.raises(cs.PlanError, match="quantised"):
        cs.convert(file, dtype="bf16")
    cs.apply(cs.convert(file), tmp_path / "out.safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_not_the_model_of_its_folder_takes_nothing_else_along(name: str, tmp_path: Path) -> None:
    cs.apply(cs.convert(folder(tmp_path / "m", name)), f"{tmp_path}/out/")
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize(("config", "section"), [("params.json", "quantization"), ("hf_quant_config.json", "")])
def test_other_toolkits_say_it_in_other_files(config: str, section: str, tmp_path: Path) -> None:
    file = folder(tmp_path / "m", "consolidated.safetensors", config, section)
    assert set(cs.open_checkpoint(file).codes.by_key) == {"up_proj.weight"}


def test_a_file_beside_a_configuration_that_says_nothing_holds_numbers(tmp_path: Path) -> None:
    file = folder(tmp_path / "m", "model.fp8.safetensors")
    (tmp_path / "m" / "config.json").write_text('{"model_type": "llama"}')
    assert not cs.open_checkpoint(file).codes


def test_a_file_on_the_hub_is_quantised_as_its_repository_says(hub: Hub, tmp_path: Path) -> None:
    file = folder(tmp_path / "m", NAMES[0])
    hub.repository("org/m", {path.name: path.read_bytes() for path in file.parent.iterdir()})
    assert set(cs.open_checkpoint(f"hf://org/m/{NAMES[0]}").codes.by_key) == {"up_proj.weight"}


@pytest.mark.parametrize("entry", ["quantization_config", "_quantization_metadata"])
def test_the_metadata_of_a_file_say_it_too(entry: str, tmp_path: Path) -> None:
    file = tmp_path / "net.safetensors"
    for said, expected in (('{"layers": {"up_proj": {"format": "float8_e4m3fn"}}}', {"up_proj.weight"}), ("[", set())):
        save_file({"up_proj.weight": CODES, "norm.weight": torch.ones(4)}, file, metadata={entry: said})
        assert set(cs.open_checkpoint(file).codes.by_key) == expected
