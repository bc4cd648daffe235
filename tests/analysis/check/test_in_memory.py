"""Tensors in memory are checked by their values; what only files have is not run."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ckptsurgeon as cs
from ckptsurgeon.analysis.check.report import CheckReport

OF_FILES = {"checksums", "shards", "index-keys", "index-total", "offsets", "orphaned-shards", "file-size", "shard"}


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {f"layers.{number}.up.weight": torch.randn(32, 32) for number in range(4)}


def statuses(report: CheckReport) -> dict[str, str]:
    return {row["id"]: row["status"] for row in report.to_json()["rows"]}


def test_a_state_dict_has_the_results_of_its_file_except_for_checks_of_files() -> None:
    state = weights()
    state["layers.2.up.weight"][3, 4] = float("nan")
    torch.save(state, "m.pth")
    here, there = statuses(cs.check(state)), statuses(cs.check("m.pth"))
    assert {id for id, status in here.items() if status != there[id]} <= OF_FILES
    assert {here[id] for id in OF_FILES} == {"NOT RUN"}
    assert here["not-finite"] == "FAIL"
    assert not cs.check({"model": state}, root="model").ok


def test_a_module_and_an_open_checkpoint_are_checked() -> None:
    report = cs.check(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)))
    assert (report.ok, report.path) == (True, "<Sequential>")
    torch.save(weights(), "m.pth")
    with cs.open_checkpoint("m.pth") as opened:
        assert cs.check(opened).to_json() == cs.check("m.pth").to_json()
        assert opened.tensor("layers.0.up.weight") is not None  # still open


def test_what_is_no_checkpoint_is_refused() -> None:
    for wrong in (3, None, [weights()]):
        with pytest.raises(cs.ConfigError, match="not a path, a checkpoint or a dict of tensors"):
            cs.check(wrong)  # type: ignore[arg-type]
    with pytest.raises(cs.ConfigError, match="is not a LoRA adapter"):
        cs.check(weights(), base=weights())
