"""The bundled ``deepspeech``: Coqui STT's network; what it computes is held against Coqui's own in test_coqui.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.trainer.models.deepspeech import LAYERS, MODEL

SMALL = {**MODEL.fields, "alphabet": "a\nb\n", "n_hidden": 16, "n_input": 5, "n_context": 2}


def target(fields: str) -> cs.TargetSpec:
    Path("alphabet.txt").write_text("# comment\n \na\n\\#\n\n'\n")
    Path("dst.yaml").write_text(f"model: {{name: deepspeech, {fields}}}\n")
    return cs.load_target("dst.yaml")


def test_its_sizes_are_those_of_coqui_s_releases() -> None:
    spec = target("alphabet: alphabet.txt")
    assert {key: info.shape for key, info in spec.tensors.items() if "layer_1" in key or "lstm" in key} == {
        "layer_1.weight": (2048, 494),
        "layer_1.bias": (2048,),
        "lstm.weight_ih_l0": (8192, 2048),
        "lstm.weight_hh_l0": (8192, 2048),
        "lstm.bias_ih_l0": (8192,),
        "lstm.bias_hh_l0": (8192,),
    }
    assert spec.tensors["layer_6.weight"].shape == (5, 2048)
    assert (spec.layers, spec.files) == (LAYERS, ("alphabet.txt",))
    assert spec.vocabulary == {"layer_6.weight": 0, "layer_6.bias": 0}
    assert not spec.notes


def test_bytes_mode_has_a_label_for_every_byte_but_zero_and_the_blank() -> None:
    spec = target("bytes: true, n_hidden: 4")
    assert spec.tensors["layer_6.weight"].shape == (256, 4)
    assert spec.files == ()


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ("n_hidden: 4", "deepspeech needs an alphabet"),
        ("alphabet: alphabet.txt, bytes: true", "has both an alphabet and bytes: true"),
        ("bytes: 'no'", "the field bytes is 'no'; it must be true or false"),
        ("bytes: true, n_hidden: 0", "n_hidden is 0"),
        ("bytes: true, n_context: -1", "n_context is -1"),
        ("bytes: true, n_input: 2.5", "n_input is 2.5"),
        ("bytes: true, dropout: 1", "dropout is 1"),
        ("bytes: true, hidden: 4", "has no field 'hidden'. Did you mean n_hidden?"),
        ("alphabet: nowhere.txt", "cannot be read"),
    ],
)
def test_a_field_that_is_wrong_is_an_error(fields: str, why: str) -> None:
    with pytest.raises(cs.ConfigError) as error:
        target(fields)
    assert why in str(error.value)


def test_a_letter_that_stands_twice_is_an_error() -> None:
    with pytest.raises(cs.ConfigError, match="the alphabet has tokens twice: 'a'"):
        MODEL.build({**SMALL, "alphabet": "a\nb\na\n"})


def test_it_starts_as_coqui_s_starts() -> None:
    """Glorot's bounds, and zero biases; the LSTM's are those of its one kernel (2h, 4h)."""
    torch.manual_seed(0)
    state = MODEL.build({**SMALL, "n_hidden": 64}).state_dict()
    bounds = {"layer_1.weight": (6 / (25 + 64)) ** 0.5, "layer_6.weight": (6 / (64 + 3)) ** 0.5}
    bounds |= {"layer_2.weight": (6 / 128) ** 0.5, "lstm.weight_ih_l0": (6 / (6 * 64)) ** 0.5}
    for key, bound in bounds.items():
        assert bound * 0.9 < float(state[key].abs().max()) <= bound, key
    assert not any(value.any() for key, value in state.items() if "bias" in key)


def test_a_clip_gives_the_same_result_alone_and_in_a_batch() -> None:
    torch.manual_seed(0)
    model = MODEL.build(SMALL).eval()
    features, lengths = torch.randn(2, 9, 5), torch.tensor([9, 6])
    features[1, 6:] = 0
    with torch.no_grad():
        both, alone = model(features, lengths), model(features[1:, :6], lengths[1:])
    assert both.shape == (2, 9, 3)
    assert torch.allclose(both[1, :6], alone[0], atol=1e-6)
    assert torch.allclose(both.exp().sum(-1), torch.ones(2, 9), atol=1e-5)


def test_every_parameter_gets_a_gradient() -> None:
    torch.manual_seed(0)
    model = MODEL.build(SMALL)
    features: Any = torch.randn(2, 12, 5)
    said = model(features, torch.tensor([12, 12]))
    loss = torch.nn.functional.ctc_loss(
        said.transpose(0, 1), torch.tensor([[0, 1], [1, 0]]), torch.tensor([12, 12]), torch.tensor([2, 2]), blank=2
    )
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []
