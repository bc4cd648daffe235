"""The axes with one row for each token are found from the shapes of a larger model, which needs no initial values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from ckptsurgeon.destinations._load import load_target
from ckptsurgeon.destinations.hf import model
from ckptsurgeon.tensors.info import TensorInfo

from ...helpers.transformers_models import BERT, CLIP, ESM, GPT2, MIXTRAL, MOBILEBERT, PARAKEET, T5, WAV2VEC2, WHISPER

NETWORKS = [BERT, CLIP, ESM, GPT2, MIXTRAL, MOBILEBERT, PARAKEET, T5, WAV2VEC2, WHISPER]


def axes(config: dict[str, Any]) -> dict[str, int]:
    Path("config.json").write_text(json.dumps(config))
    Path("dst.yaml").write_text("model: {transformers: config.json}\n")
    return dict(load_target("dst.yaml").vocabulary)


def recorded(described: model.ModelDescription) -> Any:
    return model.module_target(lambda: model.built(described), kind="transformers", name=described.name).tensors


@pytest.mark.parametrize("config", NETWORKS, ids=lambda config: str(config["model_type"]))
def test_the_shapes_are_those_of_the_model_with_values(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    shapes_of: Callable[[model.ModelDescription], Any] = model._shapes_of
    asked = list[model.ModelDescription]()
    monkeypatch.setattr(model, "_shapes_of", lambda described: asked.append(described) or shapes_of(described))
    state, initialise = torch.get_rng_state(), PreTrainedModel.initialize_weights
    axes(config)
    assert torch.equal(torch.get_rng_state(), state)
    assert PreTrainedModel.initialize_weights is initialise
    assert torch.nn.init.zeros_(torch.ones(2)).tolist() == [0, 0]
    for described in asked:
        found: dict[str, TensorInfo] = shapes_of(described)
        assert list(found.items()) == list(recorded(described).items())
    assert len(asked) == 1


def test_a_model_that_reads_its_initial_values_is_built_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert axes(GPT2) == {"wte.weight": 0}

    def refuses(build: object) -> None:
        raise RuntimeError("Tensor.item() cannot be called on meta tensors")

    monkeypatch.setattr(model, "build_on_meta", refuses)
    assert axes(GPT2) == {"wte.weight": 0}
