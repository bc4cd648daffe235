"""The check of the size of all weights together: inverse scales that no other layer contradicts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

Change = Callable[[torch.Tensor], torch.Tensor]
ID = "weight-size"


def inverse(one: torch.Tensor) -> torch.Tensor:
    return 254 - one if one.dtype == torch.uint8 else (1 / one.float()).to(one.dtype)


def squared(one: torch.Tensor) -> torch.Tensor:
    return one * 2 - 127 if one.dtype == torch.uint8 else (one.float() ** 2).to(one.dtype)


def warned(path: Path) -> str:
    return both_warned(path)[0]


def both_warned(path: Path) -> list[str]:
    """What the check of weights says, and that of scales."""
    report = cs.check(path, skip=["model-card", "class-tensors"])
    return [row.found[0].what if row.found else "" for row in (report.row(ID), report.row("scales"))]


def changed(folder: Path, ends: tuple[str, ...], change: Change) -> Path:
    """The same model with other scales in all layers."""
    path = folder / "model.safetensors"
    state = load_file(path)
    assert any(key.endswith(ends) for key in state)
    save_file({key: change(one) if key.endswith(ends) else one for key, one in state.items()}, path, {"format": "pt"})
    return folder


@pytest.fixture
def model(minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first layers of the real network, with its configuration, and a part of its embedding."""
    monkeypatch.chdir(tmp_path)
    return first_layers(minilm, 4096)


@pytest.fixture
def with_whole_embedding(minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of its values more than two thirds are in the embedding."""
    monkeypatch.chdir(tmp_path)
    return first_layers(minilm, 30_522)


def first_layers(minilm: Path, tokens: int) -> Path:
    state = load_file(minilm / "model.safetensors")
    kept = {key: one for key, one in state.items() if ".layer." not in key or ".layer.0." in key or ".layer.1." in key}
    kept = {key: one[:tokens].clone() if "word_embeddings" in key else one for key, one in kept.items()}
    Path("plain").mkdir()
    save_file(kept, "plain/model.safetensors", {"format": "pt"})
    config = json.loads((minilm / "config.json").read_text())
    Path("plain/config.json").write_text(json.dumps({**config, "num_hidden_layers": 2, "vocab_size": tokens}))
    return Path("plain")


@pytest.mark.costly
@pytest.mark.parametrize(("times", "is_found"), [(0.01, True), (0.1, False), (10.0, False)])
def test_the_embedding_of_a_real_model_is_compared_with_its_matrices(times: float, is_found: bool, model: Path) -> None:
    said = warned(changed(model, ("word_embeddings.weight",), lambda one: one * times))
    assert bool(said) is is_found
    assert ("times smaller than those of the other matrices" in said) is is_found


SCHEMES = {"mxfp4": "_scale", "int4-group128": "_scale", "int8": "_scale", "fp8-channel": "_scale"}


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("scheme", SCHEMES)
def test_inverse_scales_of_all_layers_are_found(scheme: str, model: Path) -> None:
    cs.apply(cs.convert(model, quantize=scheme), "coded")
    assert both_warned(Path("coded")) == ["", ""]
    weights, scales = both_warned(changed(Path("coded"), ("weight_scale",), inverse))
    by_scales = scheme in ("int8", "fp8-channel")  # these make weights above 10,000
    assert bool(scales) is by_scales
    assert ("times as large as inputs" in weights) is not by_scales


@pytest.mark.costly
@pytest.mark.parametrize("scheme", SCHEMES)
def test_squared_scales_of_all_layers_are_found(scheme: str, model: Path) -> None:
    cs.apply(cs.convert(model, quantize=scheme), "coded")
    assert "times as large as inputs" in warned(changed(Path("coded"), ("weight_scale",), squared))


def nf4(state: dict[str, torch.Tensor], change: Change) -> dict[str, torch.Tensor]:
    """The matrices of the layers as bitsandbytes stores nf4."""
    from ckptsurgeon.tensors.bitsandbytes_values import VALUES

    found, table = {}, torch.tensor(VALUES["nf4"])
    for key, one in state.items():
        if ".layer." not in key or one.dim() != 2:
            found[key] = one
            continue
        blocks = one.reshape(-1, 64)
        absmax = blocks.abs().amax(1)
        codes = ((blocks / absmax[:, None])[..., None] - table).abs().argmin(-1).reshape(-1, 2).to(torch.uint8)
        said = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": list(one.shape)}
        found[key] = (codes[:, :1] * 16 + codes[:, 1:]).contiguous()
        found[f"{key}.absmax"], found[f"{key}.quant_map"] = change(absmax), table.clone()
        raw = json.dumps(said).encode()
        found[f"{key}.quant_state.bitsandbytes__nf4"] = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    return found


def llm_int8(state: dict[str, torch.Tensor], change: Change) -> dict[str, torch.Tensor]:
    """The matrices of the layers as bitsandbytes stores int8."""
    found = {}
    for key, one in state.items():
        if ".layer." not in key or one.dim() != 2:
            found[key] = one
            continue
        largest = one.abs().amax(1)
        found[key] = (one / largest[:, None] * 127).round().to(torch.int8)
        found[f"{key.removesuffix('weight')}SCB"] = change(largest)
    return found


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("encode", [nf4, llm_int8])
def test_inverse_scales_of_bitsandbytes_are_found_beside_the_embedding(
    encode: Callable[[dict[str, torch.Tensor], Change], dict[str, torch.Tensor]], with_whole_embedding: Path
) -> None:
    path = with_whole_embedding / "model.safetensors"
    state = load_file(path)
    for change, wanted in ((torch.clone, False), (inverse, True)):
        save_file(encode(state, change), path, {"format": "pt"})
        assert bool(warned(with_whole_embedding)) is wanted


@pytest.mark.long
def test_inverse_scales_of_gguf_are_found(model: Path) -> None:
    import numpy as np

    state = {key: one for key, one in load_file(model / "model.safetensors").items() if ".layer." in key}
    save_file({key: one for key, one in state.items() if one.dim() == 2}, "some.safetensors")
    cs.apply(cs.convert("some.safetensors", gguf_type="q8_0"), "some.gguf")
    assert not warned(Path("some.gguf"))
    raw = bytearray(Path("some.gguf").read_bytes())
    with cs.open_checkpoint("some.gguf") as opened:
        places = [(one.storage.offset + one.offset, one.nbytes) for one in opened.values() if one.storage]
    for begin, size in places:
        blocks = np.frombuffer(raw, np.uint8, size, begin).reshape(-1, 34)
        blocks[:, :2] = (1 / blocks[:, :2].copy().view("<f2").astype(np.float32)).astype("<f2").view(np.uint8)
    Path("some.gguf").write_bytes(raw)
    assert warned(Path("some.gguf"))


@pytest.mark.costly
@pytest.mark.parametrize(("factor", "wanted"), [(1.0, False), (1000.0, True), (0.001, True)])
def test_plain_weights_that_were_all_multiplied_are_found(factor: float, wanted: bool, model: Path) -> None:
    assert bool(warned(changed(model, ("dense.weight", "query.weight"), lambda one: one * factor))) is wanted


def test_a_few_large_weights_are_no_matter_of_all() -> None:
    state = {f"layers.{layer}.proj.weight": torch.randn(64, 64) / 8 for layer in range(6)}
    state["layers.3.proj.weight"] *= 1e3
    assert not cs.check(state).row(ID).found
