"""``check`` warns of code that a checkpoint's pickle would import or call, and never runs it."""

from __future__ import annotations

import argparse
import json
import os
from collections import OrderedDict
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


@pytest.mark.parametrize("name", ["a.gguf", "a.h5", "a.json", "a.npy", "a.safetensors"])
def test_a_pickle_is_known_by_its_content(name: str) -> None:
    torch.save({"model": WEIGHTS, "x": _Calling()}, name)
    assert f"loading {name} with pickle would call {os.name}.mkdir, which" in _found(name)[0].what


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
    names = [f"pytorch_model-0000{place}-of-00002.bin" for place in (1, 2)]
    shards = dict(zip(names, ({"a.weight": WEIGHTS["a.weight"]}, {"a.bias": WEIGHTS["a.bias"]}), strict=True))
    for name, tensors in shards.items():
        torch.save(tensors, folder / name)
    where = {key: name for name, tensors in shards.items() for key in tensors}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "config.json").write_text('{"model_type": "bert"}')
    assert _found("model") == []
    second = OrderedDict(shards[names[1]])
    second._metadata = {"": {"version": _Calling()}}  # type: ignore[attr-defined]  # as state_dict() has
    torch.save(second, folder / names[1])
    assert _found("model")[0].what.startswith(f"loading {names[1]} with pickle would call")
