"""``check`` warns of code that a checkpoint's pickle would import or call, and never runs it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.analysis.check.report import Found, Status

WEIGHTS = {"a.weight": torch.ones(4, 4), "a.bias": torch.zeros(4)}


class _Calling:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("called",)


def _found(path: str) -> list[Found]:
    report = cs.check(path)
    assert report.ok  # a WARN leaves the exit status at 0
    return [one for one in report.row("other-notes").found if "pickle" in one.what]


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_calls_code_is_a_warning(zipped: bool) -> None:
    torch.save({"model": WEIGHTS, "x": _Calling()}, "a.pth", _use_new_zipfile_serialization=zipped)
    (one,) = _found("a.pth")
    assert one.status is Status.WARN
    assert one.what == f"loading a.pth with pickle would call {os.name}.mkdir, which no tensor needs"
    assert "ckpt scan" in one.todo
    assert not Path("called").exists()


def test_the_settings_of_a_run_are_named() -> None:
    torch.save({"model": WEIGHTS, "args": argparse.Namespace(lr=1)}, "a.pth")
    assert "argparse.Namespace" in _found("a.pth")[0].what


def test_tensors_and_the_state_of_an_optimizer_are_no_warning() -> None:
    model = torch.nn.Linear(4, 4)
    state = torch.optim.AdamW(model.parameters()).state_dict()
    torch.save({"model": model.state_dict(), "optimizer": state, "path": Path("x")}, "a.pth")
    assert _found("a.pth") == []


def test_every_file_of_a_folder_is_scanned() -> None:
    folder = Path("model")
    folder.mkdir()
    torch.save(WEIGHTS, folder / "pytorch_model.bin")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    assert _found("model") == []
    torch.save({**WEIGHTS, "x": _Calling()}, folder / "pytorch_model.bin")
    assert _found("model")[0].what.startswith("loading pytorch_model.bin with pickle would call")
