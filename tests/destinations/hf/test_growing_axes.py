"""The axes with one row for each token are found from the shapes of a larger model, which needs no initial values."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2Model, PreTrainedModel

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


@pytest.mark.costly
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
    """A tensor without memory has no values, and a constructor that reads one fails."""
    build: Callable[..., None] = GPT2Model.__init__
    read = list[float]()
    failed = list[str]()

    def reads(made: Any, config: Any) -> None:
        build(made, config)
        try:
            read.append(made.wte.weight[0, 0].item())
        except RuntimeError as error:
            failed.append(str(error))
            raise

    monkeypatch.setattr(GPT2Model, "__init__", reads)
    assert axes(GPT2) == {"wte.weight": 0}
    assert any("meta" in one for one in failed)
    assert read
    assert 0 not in read


def test_a_model_that_cannot_have_more_tokens_has_no_known_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    build: Callable[..., None] = GPT2Model.__init__

    def refuses(made: Any, config: Any) -> None:
        if config.vocab_size > GPT2["vocab_size"]:
            raise ValueError("too many tokens")
        build(made, config)

    monkeypatch.setattr(GPT2Model, "__init__", refuses)
    assert axes(GPT2) == {}


def test_functions_that_another_thread_puts_there_meanwhile_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers has versions of its own, which it puts in place while it initialises a model."""
    own = torch.nn.init.ones_
    monkeypatch.setattr(torch.nn.init, "ones_", own)
    with model._without_values():
        torch.nn.init.ones_ = other = lambda tensor: tensor.fill_(2)
    assert torch.nn.init.ones_ is other
    torch.nn.init.ones_ = own
    with model._without_values():
        assert torch.nn.init.ones_ is not own
    assert torch.nn.init.ones_ is own


def test_models_that_other_threads_build_get_their_values() -> None:
    """The functions that draw values are replaced for all threads, but are idle only in the one that builds."""
    config = GPT2Config(vocab_size=40, n_positions=8, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)

    def elsewhere() -> tuple[list[float], torch.Tensor, torch.Tensor]:
        linear = torch.nn.Linear(8, 8)
        torch.nn.init.constant_(linear.weight, 3.0)
        return (
            torch.nn.init.ones_(torch.zeros(2)).tolist(),
            linear.weight.detach(),
            GPT2Model(config).wte.weight.detach(),
        )

    with ThreadPoolExecutor(1) as other, model._without_values():
        assert torch.nn.init.ones_(torch.zeros(2)).tolist() == [0, 0]
        ones, linear, embedding = other.submit(elsewhere).result()
        replaced = torch.nn.init.ones_
    assert ones == [1, 1]
    assert linear.eq(3).all()
    assert 0.015 < float(embedding.std()) < 0.025  # initialize_weights of GPT-2 draws with a deviation of 0.02
    assert replaced(torch.zeros(2)).tolist() == [1, 1]
