"""ECAPA-TDNN of SpeechBrain and PaddleSpeech: running statistics, the classifier, and networks of other sizes."""

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

from ...helpers.converting import Tensors, assert_same, converted, converted_and_noted

RECORDED = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts" / "ecapa-tdnn"


def recorded(layout: str = "speechbrain") -> Tensors:
    """The tensors of the recording."""
    return load_file(RECORDED / f"{layout}.safetensors")


def without_counters(tensors: Tensors) -> Tensors:
    """The tensors without torch's counters of batches."""
    return {key: value for key, value in tensors.items() if not key.endswith("num_batches_tracked")}


def test_the_running_statistics_get_paddle_s_names() -> None:
    made, notes = converted_and_noted(recorded(), "paddlespeech")
    ours = recorded()
    assert torch.equal(made["backbone.asp_bn.norm._variance"], ours["asp_bn.norm.running_var"])
    assert torch.equal(made["backbone.blocks.0.norm.norm._mean"], ours["blocks.0.norm.norm.running_mean"])
    assert "left out: **.num_batches_tracked, which only training uses" in notes
    assert "PaddleSpeech's own files also have the classifier of training (weight)" in notes


def test_torch_adds_the_counters_that_paddle_lacks() -> None:
    """SpeechBrain loads the file strictly: a batch norm of torch sets its counter itself if a file has none."""
    made = converted(recorded("paddlespeech"), "speechbrain")
    assert_same(made, without_counters(recorded()))
    norm = torch.nn.BatchNorm1d(8)
    norm.load_state_dict(
        {leaf: made[f"blocks.0.norm.norm.{leaf}"] for leaf in ("weight", "bias", "running_mean", "running_var")}
    )
    assert norm.num_batches_tracked.item() == 0


def test_the_classifier_of_paddlespeech_is_left_out_with_a_note() -> None:
    assert "weight" in recorded("paddlespeech")
    _, notes = converted_and_noted(recorded("paddlespeech"), "speechbrain")
    assert "left out: weight, the classifier of training, which SpeechBrain stores in a file of its own" in notes


def test_a_backbone_alone_is_read() -> None:
    alone = {
        key.removeprefix("backbone."): value
        for key, value in recorded("paddlespeech").items()
        if key.startswith("backbone.")
    }
    assert_same(converted(alone, "speechbrain"), without_counters(recorded()))


@pytest.mark.long
def test_blocks_of_other_widths_have_a_shortcut() -> None:
    more = {"blocks.2.shortcut.conv.weight": torch.randn(8, 8, 1), "blocks.2.shortcut.conv.bias": torch.randn(8)}
    made = converted({**recorded(), **more}, "paddlespeech")
    assert torch.equal(made["backbone.blocks.2.shortcut.conv.weight"], more["blocks.2.shortcut.conv.weight"])
    assert_same(converted(made, "speechbrain"), without_counters({**recorded(), **more}))


def test_a_folder_of_the_checkpointer_is_converted() -> None:
    folder = Path("save/CKPT+2026-03-01+12-00-00+00")
    folder.mkdir(parents=True)
    torch.save(recorded(), folder / "embedding_model.ckpt")
    torch.save({"weight": torch.ones(3, 5)}, folder / "classifier.ckpt")
    (folder / "CKPT.yaml").write_text("error: 0.9\n")
    cs.apply(cs.convert("save", root="embedding_model", layout="paddlespeech"), "model.safetensors")
    assert_same(load_file("model.safetensors"), converted(recorded(), "paddlespeech"))


@pytest.mark.parametrize(
    "lost", ["blocks.2.tdnn2.norm.norm.running_var", "blocks.1.res2net_block.blocks.2.conv.conv.bias"]
)
def test_a_layer_without_a_tensor_is_an_error(lost: str) -> None:
    less = {key: value for key, value in recorded().items() if key != lost}
    with pytest.raises(PlanError, match=f"{re.escape(lost)} is missing from before.safetensors"):
        converted(less, "paddlespeech")


@pytest.mark.parametrize(
    "more", ["blocks.1.se_block.norm.norm.weight", "classifier.weight", "mfa.norm.norm.running_std"]
)
def test_what_has_no_name_is_an_error(more: str) -> None:
    with pytest.raises(PlanError, match=f"no name in the layout paddlespeech .*{re.escape(more)}"):
        converted({**recorded(), more: torch.ones(2)}, "paddlespeech")


@pytest.mark.parametrize("layout", ["speechbrain", "paddlespeech"])
def test_both_are_recognised(ckpt: Any, layout: str) -> None:
    save_file(recorded(layout), "model.safetensors")
    found = json.loads(ckpt("layouts", "model.safetensors", "--json").out)["found"]
    assert [(one["family"], one["layout"]) for one in found] == [("ecapa-tdnn", layout)]
