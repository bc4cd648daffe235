"""Values that a variance, a scale of logits or a decay cannot have: a note by every verb, and a finding of the check."""

from __future__ import annotations

from collections.abc import Callable
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.checkpoint.opening import open_checkpoint

Run = Callable[..., Any]
State = dict[str, torch.Tensor]
ID = "impossible-values"
WORDS = ("variances", "scales", "A_log", "ssm_a")


def batch_norms(steps: int = 5000) -> State:
    draw, found = torch.Generator().manual_seed(0), State()
    for layer in range(4):
        found |= {
            f"layers.{layer}.conv.weight": torch.randn(32, 16, 3, 3, generator=draw) / 9,
            f"layers.{layer}.bn.weight": 1 + torch.randn(32, generator=draw) / 10,
            f"layers.{layer}.bn.running_mean": torch.randn(32, generator=draw),
            f"layers.{layer}.bn.running_var": torch.rand(32, generator=draw) + 0.5,
            f"layers.{layer}.bn.num_batches_tracked": torch.tensor(steps),
        }
    return found


def with_variance(value: float, at: int = 5, dtype: torch.dtype = torch.float32) -> State:
    found = batch_norms()
    found["layers.2.bn.running_var"][at] = value
    return {key: one.to(dtype) if one.is_floating_point() else one for key, one in found.items()}


def with_statistics(mean: float, variance: float, steps: int) -> State:
    found = batch_norms(steps)
    for key, one in found.items():
        one.fill_(mean) if "mean" in key else one.fill_(variance) if "var" in key else None
    return found


def mamba(name: str = "A_log", change: Callable[[torch.Tensor], torch.Tensor] = lambda one: one) -> State:
    draw = torch.Generator().manual_seed(0)
    logs = [torch.log(torch.arange(1, 17).float()).repeat(32, 1) for _ in range(3)]
    trained = [one + 0.3 * torch.randn(32, 16, generator=draw) for one in logs]
    return {f"layers.{layer}.mixer.{name}": change(one) for layer, one in enumerate(trained)}


FAULTY: dict[str, tuple[State, str, str]] = {
    "variance": (with_variance(-0.5), "1 tensor of running variances has negative values", "FAIL"),
    "bfloat16": (with_variance(-0.5, dtype=torch.bfloat16), "1 tensor of running variances has", "FAIL"),
    "float16": (with_variance(-0.5, dtype=torch.float16), "1 tensor of running variances has", "FAIL"),
    "float64": (with_variance(-0.5, dtype=torch.float64), "1 tensor of running variances has", "FAIL"),
    "Keras": ({"bn/moving_variance:0": -torch.rand(8)}, "1 tensor of running variances has negative", "FAIL"),
    "Flax": ({"batch_stats.bn.var": -torch.rand(8)}, "1 tensor of running variances has negative", "FAIL"),
    "lost": (with_statistics(0.5, 0, 5000), "4 tensors of running variances are all 0: batch norms divide by", "WARN"),
    "initial": (with_statistics(0, 1, 5000), "4 tensors of running variances are all 1, and the running", "WARN"),
    "logit scale": (
        {"logit_scale": torch.tensor(100.0)},
        "has values up to 100, which means a scale of 2.7e+43",
        "WARN",
    ),
    "large scale": ({"m.logit_scale_a": torch.tensor([1e5])}, "which means a scale of inf", "WARN"),
    "A": (mamba(change=lambda one: -one.exp()), "3 tensors named A_log have only negative values", "WARN"),
    "A of GGUF": (mamba("ssm_a"), "3 tensors named ssm_a have positive values", "WARN"),
}
HEALTHY = {
    "batch norms": batch_norms(),
    "half precision": with_variance(0.5, dtype=torch.float16),
    "a variance of zero": with_variance(0.0),
    "a variance of minus zero": with_variance(-0.0),
    "a rounding error": with_variance(-1e-9),
    "new": with_statistics(0, 1, 0),
    "a few steps": with_statistics(0, 1, 3),
    "frozen": {key: one for key, one in with_statistics(0, 1, 0).items() if "num_batches" not in key},
    "zeros as means": with_statistics(0, 0.9, 5000),
    "not finite": with_variance(float("nan")),
    "CLIP": {"logit_scale": torch.tensor(log(100))},
    "SigLIP": {"logit_scale": torch.tensor([4.77]), "logit_bias": torch.tensor([-16.5])},
    "Swin v2, which clamps": {"attention.self.logit_scale": torch.full((4, 1, 1), 30.0)},
    "OWL-ViT": {"class_head.logit_scale.weight": torch.full((1, 32), 30.0)},
    "Mamba": mamba(),
    "some slow decays": mamba(change=lambda one: one - 1),
    "GGUF": mamba("ssm_a", lambda one: -one.exp()),
    "one layer": {"A_log": -torch.arange(1.0, 17)},
    "empty": {"bn.running_var": torch.empty(0), "logit_scale": torch.empty(0)},
}


def notes_of(path: str) -> list[str]:
    with open_checkpoint(path) as checkpoint:
        return [note for note in checkpoint.notes if any(word in note for word in WORDS)]


@pytest.mark.parametrize("name", FAULTY)
def test_impossible_values_are_noted_and_found(name: str) -> None:
    state, said, status = FAULTY[name]
    save_file(state, "x.safetensors")
    (note,) = notes_of("x.safetensors")
    row = cs.check("x.safetensors").row(ID)
    assert said in note
    assert (row.status.value, said in row.found[0].what) == (status, True)


@pytest.mark.parametrize("name", HEALTHY)
def test_possible_values_are_not(name: str) -> None:
    save_file(HEALTHY[name], "x.safetensors")
    assert not notes_of("x.safetensors")
    assert not cs.check("x.safetensors").row(ID).found


@pytest.mark.parametrize("verb", ["convert", "average", "filter", "transplant", "diff", "inspect"])
def test_every_verb_warns_of_negative_variances(verb: str, ckpt: Run) -> None:
    save_file(with_variance(-0.5), "x.safetensors")
    save_file(batch_norms(), "whole.safetensors")
    more = {
        "convert": ("--dtype", "fp16"), "average": ("whole.safetensors",), "filter": ("--exclude", "layers.0.**"),
        "transplant": ("whole.safetensors", "--dtype", "keep"), "diff": ("whole.safetensors",), "inspect": (),
    }[verb]  # fmt: skip
    output = () if verb in ("diff", "inspect") else ("-o", "out.safetensors")
    done = ckpt(verb, "x.safetensors", *more, *output)
    assert done.code in (0, 1), done
    text = " ".join((done.out + done.err).split())
    assert "warning:" in text, done
    assert "of running variances has negative values" in text, done


def test_other_formats_have_the_note_too() -> None:
    torch.save(with_variance(-0.5), "x.pth")
    assert len(notes_of("x.pth")) == 1


def test_only_the_check_reads_the_end_of_a_large_tensor() -> None:
    state = {"bn.running_var": torch.rand(1 << 14)}
    state["bn.running_var"][-1] = -1
    save_file(state, "x.safetensors")
    assert not notes_of("x.safetensors")
    assert cs.check("x.safetensors").row(ID).status.value == "FAIL"


@pytest.mark.long
@pytest.mark.parametrize("kind", ["ResNet", "MobileNetV2", "Swinv2", "Clip", "Mamba", "Mamba2"])
def test_new_models_of_transformers_have_none(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32, "num_attention_heads": 2}
    made = {
        "ResNet": lambda: transformers.ResNetModel(
            transformers.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1])
        ),
        "MobileNetV2": lambda: transformers.MobileNetV2Model(transformers.MobileNetV2Config()),
        "Swinv2": lambda: transformers.Swinv2Model(
            transformers.Swinv2Config(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[1, 2])
        ),
        "Clip": lambda: transformers.CLIPModel(
            transformers.CLIPConfig(
                text_config={"vocab_size": 64, **sizes},
                vision_config={"image_size": 32, **sizes},
            )
        ),
        "Mamba": lambda: transformers.MambaModel(
            transformers.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=3)
        ),
        "Mamba2": lambda: transformers.Mamba2Model(
            transformers.Mamba2Config(
                vocab_size=64, hidden_size=32, num_hidden_layers=3, num_heads=8, head_dim=8, n_groups=1
            )
        ),
    }[kind]()
    made.save_pretrained(tmp_path / "m")
    assert load_file(tmp_path / "m" / "model.safetensors")
    assert not notes_of(str(tmp_path / "m"))
    assert not cs.check(tmp_path / "m", skip=["class-tensors"]).row(ID).found
