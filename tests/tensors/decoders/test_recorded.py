"""Quantised weights that libraries stored, with what those libraries decode from them.

`make oracle-quantised`, `oracle-quantised_earlier` and `oracle-llmcompressor` record them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.api.inputs.operations import operate
from ckptsurgeon.engine.compute.reading import read_part

RECORDED = sorted((Path(__file__).parent / "recorded").glob("*.safetensors"))
LIBRARIES = {
    "autoawq", "bitsandbytes", "compressed-tensors", "gptqmodel", "llmcompressor", "mlx", "nvidia-modelopt", "optimum-quanto",
    "torchao", "transformers",
}  # fmt: skip
WEIGHT = re.compile(r"model\.layers\.0\.mlp\.(up_proj|experts)\.\w")


def opened(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the metadata of a recorded file."""
    with safe_open(path, "pt") as file:
        keys = list(file.keys())
        if not hasattr(torch, "float8_e8m0fnu") and "F8_E8M0" in {file.get_slice(key).get_dtype() for key in keys}:
            pytest.skip("this torch has no float8_e8m0fnu")
        return {key: file.get_tensor(key) for key in keys}, file.metadata()


def library_of(path: Path) -> str:
    """The library that made a recorded file, without its version."""
    with safe_open(path, "pt") as file:
        return str(file.metadata()["library"].split()[0])


@pytest.fixture(params=RECORDED, ids=lambda path: path.stem)
def recorded(request: pytest.FixtureRequest) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    return opened(request.param)


def test_every_library_is_recorded():
    assert set(map(library_of, RECORDED)) == LIBRARIES


def test_a_recording_is_small():
    assert max(path.stat().st_size for path in RECORDED) < 64 * 1024


def test_the_metadata_are_settings_library_and_dtype(recorded):
    tensors, metadata = recorded
    assert set(metadata) - {"metadata"} == {"quantization_config", "library", "dtype"}
    assert json.loads(metadata["quantization_config"]).keys() & {"quant_method", "bits"}
    assert re.fullmatch(r"[a-z-]+ \d[\w.]*", metadata["library"])
    assert metadata["dtype"] == str(tensors["expected"].dtype).removeprefix("torch.")


def test_the_stored_tensors_have_keys_of_one_module(recorded):
    stored = set(recorded[0]) - {"expected"}
    assert len(stored) > 1
    assert all(WEIGHT.match(key) for key in stored)


def test_the_decoded_weight_has_values_and_zeros(recorded):
    expected = recorded[0]["expected"]
    assert expected.dtype in {torch.float32, torch.bfloat16, torch.float16}
    assert expected.shape[-1] != expected.shape[-2]
    assert torch.isfinite(expected).all()
    assert 0 < int((expected == 0).sum()) < expected.numel()


UNDECODED = {
    "compressed-mxfp6": "fit no encoding that ckpt knows",
    "compressed-int3-channel-padded": "packed with gaps",
    "torchao-mxfp8-swizzled": "in the order of a GPU kernel",
}
"""Recordings that are refused, and why."""
ROUNDED = ("mlx-3bit-float16", "mlx-4bit-bfloat16", "mlx-8bit-bfloat16")
"""MLX computes in the dtype of its scales and rounds the product before it adds: we round the sum alone, once."""


def decoded(path: Path, folder: Path) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """What is decoded from a recording, what its library decodes, and what is stored."""
    tensors, metadata = opened(path)
    expected = tensors.pop("expected")
    save_file(tensors, folder / "model.safetensors", json.loads(metadata.get("metadata", "null")))
    settings = json.loads(metadata["quantization_config"])
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": settings}))
    checkpoint = cs.open_checkpoint(folder)
    made = operate([checkpoint], [{"dequantize": "**"}])[0].checkpoint
    (key,) = (key for key in made if made[key].made is not None)
    info = made[key]
    values = read_part(checkpoint, info, tuple((0, size) for size in info.shape))
    return torch.from_numpy(values.copy()), expected, tensors


@pytest.mark.parametrize(
    "path", [one for one in RECORDED if one.stem not in (*UNDECODED, *ROUNDED)], ids=lambda path: path.stem
)
def test_a_weight_is_decoded_as_its_library_does(path: Path, tmp_path: Path) -> None:
    """Bit for bit, in the dtype that the library computes in."""
    found, expected, _ = decoded(path, tmp_path)
    assert torch.equal(found.to(expected.dtype), expected)


@pytest.mark.parametrize("path", [one for one in RECORDED if one.stem in ROUNDED], ids=lambda path: path.stem)
def test_mlx_in_half_precision_differs_by_its_own_rounding(path: Path, tmp_path: Path) -> None:
    found, expected, stored = decoded(path, tmp_path)
    size = float(next(tensor for key, tensor in stored.items() if key.endswith(".biases")).abs().max())
    assert float((found - expected.float()).abs().max()) <= 2 * torch.finfo(expected.dtype).eps * size


@pytest.mark.parametrize("name", UNDECODED)
def test_what_is_stored_otherwise_is_refused(name: str, tmp_path: Path) -> None:
    path = next(one for one in RECORDED if one.stem == name)
    with pytest.raises(cs.PlanError, match=UNDECODED[name]):
        decoded(path, tmp_path)


def test_codes_that_may_be_packed_in_two_ways_are_refused_if_no_version_is_stated(tmp_path: Path) -> None:
    path = next(one for one in RECORDED if one.stem == "compressed-int3-channel-dense")
    tensors, metadata = opened(path)
    save_file({key: tensor for key, tensor in tensors.items() if key != "expected"}, tmp_path / "model.safetensors")
    settings = {key: value for key, value in json.loads(metadata["quantization_config"]).items() if key != "version"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": settings}))
    with pytest.raises(cs.PlanError, match="may be packed in two ways"):
        cs.convert(tmp_path, dequantize=True)
