"""Copies with noise compute the same together, learn different things, and are the same for the same seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ckptsurgeon as cs
from ckptsurgeon.planning.resizing.axes import Axis
from ckptsurgeon.planning.resizing.repeat import NO_NOISE, Noise

from .test_another_type import Saved
from .test_resize import outputs, source, transformers

__all__ = ["source"]

KEY = "model.layers.{}.mlp.down_proj.weight"
COPIED: dict[str, Any] = {"set": {"intermediate_size": 192}, "new_channels": "copy"}


def made(folder: Path, output: Path, **arguments: Any) -> dict[str, torch.Tensor]:
    cs.apply(cs.resize(folder, **arguments), output)
    assert cs.verify(output).ok
    found: dict[str, torch.Tensor] = load_file(output / "model.safetensors")
    return found


@pytest.mark.long
def test_copies_differ_and_their_sum_stays(source: Saved, tmp_path: Path) -> None:
    plain = made(source("llama"), tmp_path / "plain", **COPIED)
    noisy = made(source("llama"), tmp_path / "noisy", **COPIED, noise=0.2, seed=1)
    for layer in range(2):
        one, other = plain[KEY.format(layer)], noisy[KEY.format(layer)]
        assert torch.equal(one[:, :96], one[:, 96:])
        assert not torch.equal(other[:, :96], other[:, 96:])
        assert ((other / one - 1).abs() <= 0.2 + 1e-6).all()
        torch.testing.assert_close(other[:, :96] + other[:, 96:], one[:, :96] + one[:, 96:])
    assert not torch.equal(noisy[KEY.format(0)] / plain[KEY.format(0)], noisy[KEY.format(1)] / plain[KEY.format(1)])
    same = {key for key in plain if torch.equal(plain[key], noisy[key])}
    assert plain.keys() - same == {KEY.format(0), KEY.format(1)}


def test_the_seed_determines_the_noise_and_is_in_the_recipe(source: Saved, tmp_path: Path) -> None:
    first = made(source("llama"), tmp_path / "first", **COPIED, noise=0.2, seed=1)
    other = made(source("llama"), tmp_path / "other", **COPIED, noise=0.2, seed=2)
    assert not torch.equal(first[KEY.format(0)], other[KEY.format(0)])
    recipe = json.loads(cs.open_checkpoint(tmp_path / "other").recipe or "")
    assert (recipe["arguments"]["noise"], recipe["seed"]) == (0.2, 2)
    again = made(source("llama"), tmp_path / "again", **COPIED, noise=0.2, seed=2)
    assert all(torch.equal(value, again[key]) for key, value in other.items())


@pytest.mark.long
def test_copies_of_channels_learn_different_things(source: Saved, tmp_path: Path) -> None:
    for noise, differ in ((0.0, False), (0.2, True)):
        output = tmp_path / ("noisy" if differ else "plain")
        made(source("llama"), output, **COPIED, noise=noise)
        model = transformers.LlamaForCausalLM.from_pretrained(output)
        ids = torch.arange(20).reshape(2, 10)
        model(input_ids=ids, labels=ids).loss.backward()
        learnt = model.model.layers[0].mlp.up_proj.weight.grad
        assert torch.allclose(learnt[:96], learnt[96:], rtol=1e-3, atol=1e-9) is not differ


@pytest.mark.long
def test_heads_and_widths_that_are_no_whole_number_of_pairs(source: Saved, tmp_path: Path) -> None:
    before = outputs(source("llama"), "llama")
    for number, fields in enumerate(({"num_attention_heads": 16}, {"hidden_size": 192})):
        made(source("llama"), tmp_path / str(number), set=fields, noise=0.3)
        after = outputs(tmp_path / str(number), "llama")
        assert (before - after).abs().max() / before.abs().max() < 1e-5


@pytest.mark.parametrize(
    ("key", "is_noisy"),
    [("m.conv.parametrizations.weight.original1", False), ("m.conv.weight_v", False), ("m.fc.weight", True)],
)
def test_a_weight_that_is_normalised_gets_no_noise(key: str, is_noisy: bool) -> None:
    axis = Axis(key, 1, 4, 8, "in", "conv")
    assert bool(Noise(0.1, 1).rows(axis, {"indices": "0..3,0..3", "block": 1})) is is_noisy
    assert not NO_NOISE.rows(axis, {"indices": "0..3,0..3", "block": 1})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"set": {"num_key_value_heads": 4}, "noise": 0.1}, "but this command makes no copies"),
        ({"set": {"intermediate_size": 192}, "noise": 0.1}, "but this command makes no copies"),
        ({"set": {"hidden_size": 96}, "noise": 0.1}, "but this command makes no copies"),
        ({**COPIED, "noise": 1.5}, "is not a number from 0 to 1"),
        ({**COPIED, "noise": float("nan")}, "is not a number from 0 to 1"),
        ({"model_type": "mixtral", "set": {"num_local_experts": 2}, "noise": 0.1}, "changes only the model type"),
    ],
)
def test_noise_where_there_are_no_copies_is_an_error(arguments: dict[str, Any], said: str, source: Saved) -> None:
    with pytest.raises(cs.ConfigError) as raised:
        cs.resize(source("llama"), **arguments)
    assert said in str(raised.value)
