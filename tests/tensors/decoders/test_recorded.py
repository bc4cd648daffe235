"""Quantised weights that libraries stored, with what those libraries decode from them (`make oracle-quantised`)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

RECORDED = sorted((Path(__file__).parent / "recorded").glob("*.safetensors"))
LIBRARIES = {
    "autoawq", "bitsandbytes", "compressed-tensors", "gptqmodel", "mlx", "nvidia-modelopt", "transformers",
}  # fmt: skip
WEIGHT = re.compile(r"model\.layers\.0\.mlp\.(up_proj|experts)\.\w")


def opened(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the metadata of a recorded file."""
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118 - no mapping


@pytest.fixture(params=RECORDED, ids=lambda path: path.stem)
def recorded(request: pytest.FixtureRequest) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    return opened(request.param)


def test_every_library_is_recorded():
    assert {opened(path)[1]["library"].split()[0] for path in RECORDED} == LIBRARIES


def test_a_recording_is_small():
    assert max(path.stat().st_size for path in RECORDED) < 64 * 1024


def test_the_metadata_are_settings_library_and_dtype(recorded):
    tensors, metadata = recorded
    assert set(metadata) == {"quantization_config", "library", "dtype"}
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
