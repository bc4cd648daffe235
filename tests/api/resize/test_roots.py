"""A root is a state dict of the network; what an optimizer stores is none, though its keys may be the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ckptsurgeon as cs

from .test_another_type import Saved
from .test_resize import source

__all__ = ["source"]


@pytest.fixture
def training(source: Saved) -> Path:
    """Return a file of a training with several state dicts of one network, and its configuration."""
    weights = load_file(source("llama") / "model.safetensors")
    moments = {key: torch.zeros_like(one) for key, one in weights.items()}
    optimizer = {"adam_m": moments, "adam_v": moments}
    states = {"model": weights, "momentum_encoder": weights, "optimizer": optimizer, "exp_avg": moments}
    torch.save(states, "training.pth")
    return source("llama") / "config.json"


@pytest.mark.parametrize("root", ["optimizer.adam_m", "optimizer", "exp_avg"])
def test_moments_of_an_optimizer_are_not_resized(root: str, training: Path) -> None:
    with pytest.raises(
        cs.ConfigError, match="is the state of an optimizer, which cannot be resized like weights"
    ) as error:
        cs.resize("training.pth", config=training, root=root, set={"hidden_size": 128})
    assert "name the file of the optimizer's state with" in str(error.value.hint)


@pytest.mark.costly
@pytest.mark.parametrize("root", ["model", "momentum_encoder"])
def test_other_state_dicts_are(root: str, training: Path) -> None:
    plan = cs.resize("training.pth", config=training, root=root, set={"hidden_size": 128})
    cs.apply(plan, "out")
    assert cs.verify("out").ok
