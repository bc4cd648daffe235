"""Why T5 is not made into Switch Transformers: the figures of the page Resizing, measured with transformers alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs
from fixtures.resizing.networks import NETWORKS
from fixtures.resizing.running import error_of
from fixtures.resizing.twelve import NOT

from .test_another_type import Saved
from .test_resize import source

__all__ = ["source"]

transformers = pytest.importorskip("transformers", minversion="5")


def error(folder: Path, experts: int, *, has_router: bool, times: int = 1, capacity: int = 64) -> float:
    """Return how far the outputs are from those of T5 if all experts are copies, with outputs ``times`` as large."""
    dense = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    names = ("d_model", "d_ff", "d_kv", "num_layers", "num_decoder_layers", "num_heads", "vocab_size")
    own: dict[str, Any] = {name: getattr(dense.config, name) for name in names}
    sparse = {f"num_sparse_{side}_layers": own["num_layers"] for side in ("encoder", "decoder")}
    torch.manual_seed(0)
    config = transformers.SwitchTransformersConfig(**own, **sparse, num_experts=experts, expert_capacity=capacity)
    model = transformers.SwitchTransformersForConditionalGeneration(config).eval()
    weights = dense.state_dict()
    with torch.no_grad():
        for key, values in model.state_dict().items():
            if "router" in key:
                values.mul_(has_router)
            else:
                copied = weights[re.sub(r"\.mlp\.(experts\.expert_\d+\.)?", ".DenseReluDense.", key)]
                values.copy_(copied * times if ".experts." in key and ".wo." in key else copied)
        ids = torch.randint(5, 30, (2, 12), generator=torch.Generator().manual_seed(1))
        return error_of(*(one(input_ids=ids, decoder_input_ids=ids).logits for one in (dense, model)))


@pytest.mark.long
def test_only_equal_probabilities_are_exact_and_they_send_every_token_to_the_first_expert(source: Saved) -> None:
    folder = source("t5")
    assert error(folder, 4, has_router=False, times=4) < 1e-5
    assert error(folder, 4, has_router=False, times=4, capacity=4) > 0.3  # 8 of 12 tokens pass all layers by
    random = error(folder, 4, has_router=True)
    assert f"are off by {random:.2f}" in NOT["experts: copies of a dense layer"]["t5"]
    assert error(folder, 4, has_router=True, times=4) > random


def test_the_command_refuses_it(source: Saved) -> None:
    assert NETWORKS["t5"]
    with pytest.raises(cs.PlanError, match="not recognised as a part of a feed-forward layer"):
        cs.resize(source("t5"), set={"num_experts": 4}, model_type="switch_transformers")
