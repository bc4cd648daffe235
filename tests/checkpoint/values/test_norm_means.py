"""Norms around 0 are noted: those of a file in the wrong order, and those that lack the 1 that is added to them."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.checkpoint.opening import open_checkpoint
from ckptsurgeon.checkpoint.values.norms import WITHOUT_ONE

from ...helpers.gguf_files import STRING, gguf, tensor_info, text

AROUND = "values around 0, but in other layers such norms have about equal values"
ATTENTION, OUTPUT = "encoder.layer.{}.attention.output.LayerNorm.weight", "encoder.layer.{}.output.LayerNorm.weight"


def said(state: Mapping[str, torch.Tensor]) -> list[str]:
    save_file({key: one.contiguous() for key, one in state.items()}, "m.safetensors")
    with open_checkpoint("m.safetensors") as checkpoint:
        return [note for note in checkpoint.notes if AROUND in note]


def like(means: list[float], spread: float = 0.1, role: str = OUTPUT) -> dict[str, torch.Tensor]:
    """A norm in as many layers as there are means."""
    draw = torch.Generator().manual_seed(0)
    return {role.format(at): mean + spread * torch.randn(192, generator=draw) for at, mean in enumerate(means)}


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_norms_of_half_the_layers_with_values_of_matrices_are_noted(minilm: Path, dtype: torch.dtype) -> None:
    state = {
        key: one.to(dtype) for key, one in load_file(minilm / "model.safetensors").items() if one.is_floating_point()
    }
    assert not said(state)
    matrix = state["encoder.layer.3.output.dense.weight"].flatten()
    keys = [OUTPUT.format(3), *(role.format(at) for at in (4, 5) for role in (ATTENTION, OUTPUT))]
    for at, key in enumerate(keys):
        state[key] = matrix[384 * at : 384 * (at + 1)].clone()
    (note,) = said(state)
    assert note.startswith("5 norms have values around 0")
    assert all(key in note for key in keys)
    found = [one for row in cs.check("m.safetensors").rows for one in row.found if AROUND in one.what]
    assert [set(one.keys) for one in found] == [set(keys)]


@pytest.mark.parametrize(
    "state",
    [
        like([0, 0, 0.05, 0.1, 0.2, 0.3], 0.01),
        like([0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5], 0.01),
        like([0.7, 0.7, 0.2, 0.1, 0, 0], 0.1),
        like([1, 0, 0, 0, 0, 0, 0]),
        like([-0.6, -0.5, -0.5, 0.02, 0.5, 0.5, 0.6]),
        {key: one.double() * 1e-300 for key, one in like([1, 1, 0, 0, 1, 1]).items()},
        like([0, 0, 1, 1], role="layer.{}.norm3.weight")
        | {f"layer.{at}.norm3.running_mean": torch.zeros(192) for at in range(4)},
    ],
    ids=["grows", "grows slowly", "falls", "one of many", "crosses 0", "tiny", "batch norms"],
)
def test_other_norms_are_not(state: dict[str, torch.Tensor]) -> None:
    assert not said(state)


@pytest.mark.parametrize(("kind", "is_said"), [("bert", True), ("gemma2", False), ("nemotron", False)])
def test_models_that_add_1_to_the_weights_of_norms_have_no_note(kind: str, is_said: bool) -> None:
    Path("m").mkdir()
    norms = like([0.5, 0.5, 0.5, 0.01, 0.5, 0.5])
    matrices = {key.replace("LayerNorm", "dense"): torch.randn(64, 64) / 8 for key in norms}
    save_file(norms | matrices, "m/model.safetensors", {"format": "pt"})
    Path("m/config.json").write_text(json.dumps({"model_type": kind}))
    assert any(AROUND in note for note in cs.inspect("m").notes) is is_said
    assert any(AROUND in one.what for one in cs.check("m").row("value-family").found) is is_said


def test_verify_says_it_of_a_source_whose_average_hides_it() -> None:
    save_file(like([0.5, 0.5, 0.01, 0.01, 0.5, 0.5]), "odd.safetensors")
    save_file(like([0.5] * 6), "sound.safetensors")
    cs.apply(cs.average(["odd.safetensors", "sound.safetensors", "sound.safetensors"]), "mean.safetensors")
    assert not [note for note in cs.inspect("mean.safetensors").notes if AROUND in note]
    assert [Path(one.name).name for one in cs.verify("mean.safetensors").notes if AROUND in one.why] == [
        "odd.safetensors"
    ]
    cs.apply(cs.rename("odd.safetensors", map="encoder=e"), "copy.safetensors")
    assert [Path(one.name).name for one in cs.verify("copy.safetensors").notes if AROUND in one.why] == [
        "copy.safetensors"
    ]


def test_a_sound_norm_with_a_huge_weight_is_not() -> None:
    state = like([1] * 6)
    state[OUTPUT.format(4)][7] = 500
    assert not said(state)


def _gguf_of(norms: Mapping[str, torch.Tensor], architecture: str) -> None:
    data = b"".join(one.numpy().tobytes() for one in norms.values())
    infos = [tensor_info(key, [256], 0, 1024 * at) for at, key in enumerate(norms)]
    Path("m.gguf").write_bytes(gguf(infos, {"general.architecture": (STRING, text(architecture))}, data))


def _norms_of_gguf(mean: float, spread: float = 0.2) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        f"blk.{layer}.{role}.weight": mean + spread * torch.randn(256, generator=draw)
        for layer in range(4)
        for role in ("attn_norm", "ffn_norm")
    }


def _without_one(path: str) -> list[str]:
    with open_checkpoint(path) as checkpoint:
        return [note for note in checkpoint.notes if WITHOUT_ONE in note]


@pytest.mark.parametrize("architecture", ["gemma", "gemma2", "gemma3", "llama", "qwen3"])
@pytest.mark.parametrize("mean", [-0.4, 0, 0.1])
def test_norms_of_a_gguf_that_lack_the_1_are_noted(architecture: str, mean: float) -> None:
    _gguf_of(_norms_of_gguf(mean), architecture)
    (note,) = _without_one("m.gguf")
    assert note.startswith("8 of 8 norms have many negative weights, although llama.cpp multiplies by these weights")
    warned = [one.what for row in cs.check("m.gguf").rows for one in row.found if row.id == "weight-size"]
    assert warned == [note]


@pytest.mark.parametrize(
    ("architecture", "mean", "spread"),
    [("gemma", 0.6, 0.2), ("gemma", 1, 0.2), ("gemma3", 8, 4), ("bert", 0, 0.2), ("llama", 0, 2)],
)
def test_other_norms_of_a_gguf_are_not(architecture: str, mean: float, spread: float) -> None:
    _gguf_of(_norms_of_gguf(mean, spread), architecture)
    assert not _without_one("m.gguf")


def test_a_gguf_with_some_negative_norms_is_not() -> None:
    """The first norms of Llama are near 0."""
    norms = _norms_of_gguf(0.5)
    norms["blk.0.attn_norm.weight"] = norms["blk.0.attn_norm.weight"] - 0.5
    _gguf_of(norms, "llama")
    assert not _without_one("m.gguf")


@pytest.mark.parametrize(
    ("kind", "mean", "number"),
    [("llama", 0, 1), ("qwen3", -0.3, 1), ("llama", 0.5, 0), ("gemma", 0, 0), ("qwen3_next", 0, 0), ("", 0, 0)],
)
def test_a_folder_whose_class_does_not_add_1_is_noted(kind: str, mean: float, number: int) -> None:
    Path("folder").mkdir()
    save_file(_norms_of_gguf(mean), "folder/model.safetensors")
    Path("folder/config.json").write_text(json.dumps({"model_type": kind} if kind else {}))
    assert len(_without_one("folder")) == number


def test_norms_that_are_not_finite_are_left_out() -> None:
    norms = _norms_of_gguf(0)
    for one in norms.values():
        one[0] = struct.unpack("<f", b"\0\0\xc0\x7f")[0]
    _gguf_of(norms, "llama")
    assert not _without_one("m.gguf")
