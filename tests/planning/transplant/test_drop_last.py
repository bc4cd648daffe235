"""``--drop-last``: the last layers of a destination, in the order that it declares, start anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.api.transplant import transplant as planning
from ckptsurgeon.destinations._load import target_with

LAYERS = ("layer_1", "layer_2", "rnn", "layer_20")
SHAPES = {"layer_1.w": [2], "layer_2.w": [2], "rnn.w2": [2], "layer_20.w": [3], "other.layer_20": [2]}


@pytest.fixture(autouse=True)
def _files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A destination of four layers, one of whose names begins as another's does."""
    torch.save({key: torch.ones(2) for key in SHAPES}, "src.pth")
    rows = "".join(f"    {key}: {{shape: {shape}, init: zeros}}\n" for key, shape in SHAPES.items())
    Path("dst.yaml").write_text(f"model:\n  tensors:\n{rows}")
    load = target_with
    monkeypatch.setattr(
        planning, "target_with", lambda *args, **options: replace(load(*args, **options), layers=LAYERS)
    )


def anew(**options: Any) -> list[str]:
    made = cs.transplant("src.pth", "dst.yaml", **options)
    return [step.key for step in made.steps if step.kind == "initialised"]


def test_layers_go_from_the_last_and_only_as_a_whole_name() -> None:
    assert anew(drop_last=1) == ["layer_20.w"]
    assert anew(drop_last=2) == ["rnn.w2", "layer_20.w"]
    assert anew(drop_last=3) == ["layer_2.w", "rnn.w2", "layer_20.w"]
    assert anew(drop_last=0, on_mismatch={"layer_20": "init"}) == ["layer_20.w"]


def test_it_comes_before_every_policy_and_after_reinit() -> None:
    made = cs.transplant(
        "src.pth", "dst.yaml", drop_last=2, on_mismatch={"layer_20": "pad"}, reinit=["rnn"], on_missing="error"
    )
    rules = {step.key: step.rule for step in made.steps if step.kind == "initialised"}
    assert rules == {"rnn.w2": "--reinit rnn", "layer_20.w": "--drop-last 2"}


def test_what_is_required_and_dropped_is_an_error_that_says_so() -> None:
    with pytest.raises(cs.PlanError, match=r"rnn\.w2 is initialised by drop_last=2"):
        cs.transplant("src.pth", "dst.yaml", drop_last=2, require=["rnn"])


@pytest.mark.parametrize("number", [4, 5, 1000])
def test_the_first_layer_can_never_go(number: int) -> None:
    with pytest.raises(cs.ConfigError, match=r"dst\.yaml has 4 layers, .*layer_1 always stays. Use 1 to 3\."):
        cs.transplant("src.pth", "dst.yaml", drop_last=number)


@pytest.mark.parametrize(("layers", "hint"), [(LAYERS[:1], "Leave drop_last out"), (LAYERS[:2], r"Use 1\.")])
def test_a_destination_of_few_layers_gets_a_hint_that_works(
    layers: tuple[str, ...], hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        planning, "target_with", lambda *args, **options: replace(target_with(*args, **options), layers=layers)
    )
    with pytest.raises(cs.ConfigError, match=rf"layer_1 always stays\. {hint}"):
        cs.transplant("src.pth", "dst.yaml", drop_last=2)


@pytest.mark.parametrize("number", [-1, True, "1", 1.0])
def test_what_is_no_number_of_layers_is_an_error(number: Any) -> None:
    with pytest.raises(cs.ConfigError, match="is not a valid number of layers|drop_last is .*, not a whole number"):
        cs.transplant("src.pth", "dst.yaml", drop_last=number)


@pytest.mark.parametrize("destination", ["src.pth", "plain.yaml"])
def test_a_destination_without_layers_is_an_error_that_says_what_to_use(
    destination: str, monkeypatch: pytest.MonkeyPatch, ckpt: Any
) -> None:
    monkeypatch.setattr(planning, "target_with", target_with)
    Path("plain.yaml").write_text("model: {like: src.pth}\n")
    done = ckpt("transplant", "src.pth", destination, "--drop-last", "1", "-o", "out.pth")
    said = " ".join(done.err.split())
    assert (done.code, Path("out.pth").exists()) == (2, False)
    assert "does not declare the order of its layers. Select the layers to initialise: --reinit GLOB" in said


def test_a_tied_tensor_goes_with_either_of_its_layers() -> None:
    Path("dst.yaml").write_text(
        "model:\n  tensors:\n    layer_1.w: {shape: [2], init: zeros}\n    layer_2.w: {shape: [2], init: zeros}\n"
        "    layer_20.w: {shape: [2], init: zeros}\n  tied: [[layer_2.w, layer_20.w]]\n"
    )
    assert anew(drop_last=1) == ["layer_2.w", "layer_20.w"]


@pytest.mark.long
def test_the_heads_of_hybrid_asr_come_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "target_with", target_with)
    Path("tokens.txt").write_text("<blank>\na\nb\n")
    small = "d_model: 16, heads: 2, encoder_layers: 2, decoder_layers: 1, n_mels: 20"
    Path("hybrid.yaml").write_text(f"model: {{name: hybrid_asr, tokens: tokens.txt, {small}}}\n")
    spec = cs.load_target("hybrid.yaml")
    assert spec.layers == ("encoder.embed", "encoder.layers.0", "encoder.layers.1", "encoder.norm", "decoder", "ctc")
    torch.save({key: torch.zeros(info.shape) for key, info in spec.tensors.items()}, "hybrid.pth")
    for number, modules in ((1, {"ctc"}), (2, {"ctc", "decoder"}), (4, {"ctc", "decoder", "encoder"})):
        steps = cs.transplant("hybrid.pth", "hybrid.yaml", drop_last=number).steps
        assert {step.key.split(".")[0] for step in steps if step.kind == "initialised"} == modules
    parts = {f"{layer}." for layer in spec.layers}
    left = [key for key in spec.tensors if not any(key.startswith(part) for part in parts)]
    assert all(key.startswith("frontend.") for key in left)
