"""Parallel WaveGAN of its package and of ESPnet: two convolutions of each block in one, of other widths too."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.errors import PlanError

from ...helpers.converting import Tensors, assert_same, converted

RECORDED = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts"


def recorded(layout: str, network: str = "parallel-wavegan") -> Tensors:
    """The tensors of a recording."""
    return load_file(RECORDED / network / f"{layout}.safetensors")


def test_the_sizes_of_the_two_convolutions_come_from_the_first_one() -> None:
    """The blocks have 4 channels of output and 6 for the sum."""
    made = converted(recorded("espnet"), "parallel-wavegan")
    assert made["conv_layers.1.conv1x1_out.bias"].shape == (4,)
    assert made["conv_layers.1.conv1x1_skip.weight_v"].shape == (6, 4, 1)
    joined = torch.cat([made["conv_layers.1.conv1x1_out.weight_g"], made["conv_layers.1.conv1x1_skip.weight_g"]])
    assert torch.equal(joined, recorded("espnet")["conv_layers.1.conv1x1_out.weight_g"])


def test_the_generator_in_a_file_of_the_package_is_read_by_its_entry() -> None:
    torch.save({"model": {"generator": recorded("parallel-wavegan")}, "steps": 400000}, "checkpoint-400000steps.pkl")
    cs.apply(cs.convert("checkpoint-400000steps.pkl", root="model.generator", layout="espnet"), "generator.pth")
    assert_same(torch.load("generator.pth", weights_only=True), recorded("espnet"))


@pytest.mark.parametrize("lost", ["conv_layers.1.conv1x1_skip.weight_v", "conv_layers.1.conv1x1_aux.weight_g"])
def test_a_block_without_a_tensor_is_an_error(lost: str) -> None:
    less = recorded("parallel-wavegan")
    del less[lost]
    with pytest.raises(PlanError, match=f"{re.escape(lost)} is missing from before.safetensors"):
        converted(less, "espnet")


def test_what_has_no_name_is_an_error() -> None:
    with pytest.raises(PlanError, match=r"no name in the layout espnet .*pqmf\.analysis_filter"):
        converted({**recorded("parallel-wavegan"), "pqmf.analysis_filter": torch.ones(2)}, "espnet")


def test_a_block_that_is_too_narrow_is_not_recognised() -> None:
    narrow = {key: value[:4] if "conv1x1_out" in key else value for key, value in recorded("espnet").items()}
    with pytest.raises(PlanError, match="the layout of before.safetensors is not known"):
        converted(narrow, "parallel-wavegan")


@pytest.mark.parametrize("network", ["parallel-wavegan", "parallel-wavegan.plain"])
@pytest.mark.parametrize("layout", ["parallel-wavegan", "espnet"])
def test_both_are_recognised(ckpt: Any, layout: str, network: str) -> None:
    save_file(recorded(layout, network), "model.safetensors")
    found = json.loads(ckpt("layouts", "model.safetensors", "--json").out)["found"]
    assert [(one["family"], one["layout"]) for one in found] == [("parallel-wavegan", layout)]
