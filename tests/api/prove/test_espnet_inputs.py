"""Random inputs for a network with the arguments of ESPnet's recognition models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ckptsurgeon as cs
from ckptsurgeon.api.prove.espnet_inputs import espnet_inputs

MODEL = """
import torch
from torch import nn

class Recogniser(nn.Module):
    def __init__(self, front_end=True):
        super().__init__()
        self.vocab_size = 7
        self.frontend = nn.Conv1d(1, 4, 400, 160) if front_end else None
        self.encoder = nn.Linear(4, 4)
        self.embed = nn.Embedding(7, 4)

    def forward(self, speech, speech_lengths, text, text_lengths, **kwargs):
        frames = self.encoder(self.frontend(speech[:, None]).transpose(1, 2)).mean(1)
        return (frames[:, None] * self.embed(text)).sum(-1)
"""


def test_a_recogniser_is_proved_on_waveforms_and_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    Path("recogniser.py").write_text(MODEL)
    Path("model.yaml").write_text("model: {_target_: recogniser.Recogniser}\n")
    from importlib import import_module

    torch.manual_seed(0)
    state: dict[str, Tensor] = import_module("recogniser").Recogniser().state_dict()
    torch.save(state, "a.pth")
    torch.save({**state, "encoder.weight": state["encoder.weight"].T}, "b.pth")
    found = cs.prove("a.pth", "a.pth", model="model.yaml")
    assert found.verdict == "SAME"
    assert "speech (2, 16000), speech_lengths (2), text (2, 8), text_lengths (2), drawn with seed 0" in found.inputs
    found = cs.prove("a.pth", "b.pth", model="model.yaml")
    assert found.verdict == "DIFFERENT"
    assert found.drift is not None
    assert found.drift.name == "encoder"


class Taking(nn.Module):
    """A network with a front end, perhaps, and a number of tokens."""

    def __init__(self, front_end: Any, tokens: Any) -> None:
        super().__init__()
        self.frontend, self.vocab_size = front_end, tokens

    def forward(self, speech: Tensor, speech_lengths: Tensor, text: Tensor, text_lengths: Tensor) -> Tensor:
        return speech


def test_tokens_are_none_of_the_special_ones() -> None:
    given = espnet_inputs(Taking(nn.Identity(), 6), torch.Generator().manual_seed(0))
    assert given is not None
    assert set(given["text"].flatten().tolist()) <= {2, 3, 4}


@pytest.mark.parametrize(("front_end", "tokens"), [(None, 6), (nn.Identity(), None), (nn.Identity(), 3)])
def test_other_networks_have_none(front_end: Any, tokens: Any) -> None:
    assert espnet_inputs(Taking(front_end, tokens), torch.Generator()) is None
    assert espnet_inputs(nn.Linear(2, 2), torch.Generator()) is None
