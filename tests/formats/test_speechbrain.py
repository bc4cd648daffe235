"""Folders of SpeechBrain's Checkpointer, as SpeechBrain itself wrote them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import ckptsurgeon as cs

GOLDEN = Path(__file__).resolve().parents[2] / "fixtures" / "golden" / "speechbrain"
RECORDED = json.loads((GOLDEN / "checkpointer.json").read_text())

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def _save() -> None:
    shutil.copytree(GOLDEN / "save", "save")


def test_a_checkpoint_has_one_root_for_each_recoverable() -> None:
    with cs.open_checkpoint("save/CKPT+second") as checkpoint:
        assert (checkpoint.format, checkpoint.root) == ("speechbrain checkpoint", "model")
        assert {key: checkpoint.tensor(key).tolist() for key in checkpoint} == RECORDED["second model"]
        assert list(checkpoint) == ["0.weight", "0.bias", "1.weight", "1.bias"]
        assert checkpoint.passed == ("normalize",)
    with cs.open_checkpoint("save/CKPT+second", root="normalize") as checkpoint:
        assert list(checkpoint) == ["glob_mean", "glob_std"]
    with pytest.raises(cs.ConfigError, match="root=.counter. has no tensors"):
        cs.open_checkpoint("save/CKPT+second", root="counter")


def test_what_the_checkpoint_says_of_itself_is_shown(ckpt: Run) -> None:
    extras = {extra.key: extra.value for extra in cs.inspect("save/CKPT+first").extras}
    meta = {"WER": 24.5, "epoch": 1, "end-of-epoch": True, "unixtime": 1700000000.5}
    assert meta.items() <= extras.items()
    assert extras["counter"] == "1"
    assert "'a' => 0" in str(extras["tokenizer"])
    assert RECORDED["classes"].keys() - {"model"} <= extras.keys()
    assert "WER = 24.5" in ckpt("inspect", "save/CKPT+first").out


def test_several_checkpoints_are_listed_with_what_they_are_worth(ckpt: Run) -> None:
    done = ckpt("inspect", "save")
    assert done.code == 3
    assert " ".join(done.err.split()) == (
        "error: save has several checkpoints: CKPT+first (WER 24.5, epoch 1), CKPT+second (WER 21.25, epoch 2, "
        "within an epoch, the most recent). Pass the folder of one checkpoint, for example save/CKPT+second."
    )


def test_the_only_checkpoint_of_a_folder_is_taken_and_said(ckpt: Run) -> None:
    shutil.rmtree("save/CKPT+first")
    Path("save/CKPT+unfinished").mkdir()
    (Path("save") / "CKPT+file").touch()
    done = ckpt("convert", "save", "-o", "model.safetensors")
    assert done.code == 0, done
    assert "read CKPT+second, the only checkpoint in save" in done.err
    assert ckpt("verify", "model.safetensors").code == 0


def test_a_plan_is_refused_when_the_checkpoint_changed() -> None:
    plan = cs.convert("save/CKPT+first")
    Path("save/CKPT+first/CKPT.yaml").write_text("unixtime: 1\n")
    from dataclasses import replace

    with pytest.raises(cs.PlanError, match=r"CKPT\.yaml has changed since the plan"):
        cs.apply(replace(plan, inputs=None), "out.safetensors")


def test_a_meta_file_that_is_not_understood_is_said_and_hides_no_weights(ckpt: Run) -> None:
    path = Path("save/CKPT+first/CKPT.yaml")
    for text in (b"\xff", b"a: [", b"[]", b"", b"garbage", b"a: " + b"1" * (1 << 20)):
        path.write_bytes(text)
        found = cs.inspect("save/CKPT+first")
        assert len(found.tensors) == 4
        assert any("CKPT.yaml cannot be read: " in note for note in found.notes)
    assert "CKPT+first (its CKPT.yaml cannot be read)" in " ".join(ckpt("inspect", "save").err.split())
    assert not Path("ran").exists()


@pytest.mark.parametrize(("time", "other"), [("", ""), ("unixtime: 1\n", "unixtime: 1\n"), ("unixtime: 5\n", "")])
def test_no_checkpoint_is_called_the_most_recent_if_this_is_not_known(time: str, other: str) -> None:
    for name, said in (("first", time), ("second", other)):
        Path(f"save/CKPT+{name}/CKPT.yaml").write_text(f"WER: 1.5\n{said}")
    with pytest.raises(cs.FormatError) as caught:
        cs.inspect("save")
    assert caught.value.message == "save has several checkpoints: CKPT+first (WER 1.5), CKPT+second (WER 1.5)."


def test_the_text_of_a_counter_is_not_taken_for_the_model() -> None:
    Path("save/CKPT+first/model.ckpt").write_text("12")
    with pytest.raises(cs.FormatError, match=r"model\.ckpt is not a checkpoint\."):
        cs.inspect("save/CKPT+first")


def test_a_metric_that_is_a_tensor_costs_neither_the_others_nor_the_choice_of_a_checkpoint(ckpt: Run) -> None:
    text = Path("save/CKPT+first/CKPT.yaml").read_text()
    Path("save/CKPT+first/CKPT.yaml").write_text(f"{text}loss: {yaml.dump(torch.tensor(2.5)).strip()}\n")
    found = cs.inspect("save/CKPT+first")
    extras = {extra.key: extra.value for extra in found.extras}
    assert extras["WER"] == 24.5
    assert "loss" in extras
    assert any(note.startswith("CKPT.yaml has Python objects, which are not rebuilt: loss (") for note in found.notes)
    assert not any("cannot be read" in note for note in found.notes)
    assert "CKPT+first (WER 24.5" in " ".join(ckpt("inspect", "save").err.split())


def test_no_python_object_of_a_meta_file_is_made() -> None:
    Path("save/CKPT+first/CKPT.yaml").write_text("WER: !!python/object/apply:os.system [touch ran]\n")
    found = cs.inspect("save/CKPT+first")
    assert "CKPT.yaml has Python objects, which are not rebuilt: WER (os.system)" in found.notes
    assert not Path("ran").exists()


def test_a_metric_never_hides_a_recoverable() -> None:
    Path("save/CKPT+first/CKPT.yaml").write_text("model: 3\nunixtime: 1\n")
    found = cs.inspect("save/CKPT+first")
    assert (found.root, len(found.tensors)) == ("model", 4)
    assert {extra.key: extra.value for extra in found.extras}["CKPT.yaml model"] == 3


def test_recoverables_of_which_none_is_the_model_are_listed(ckpt: Run) -> None:
    os.rename("save/CKPT+first/model.ckpt", "save/CKPT+first/embedding_model.ckpt")
    done = ckpt("inspect", "save/CKPT+first")
    assert done.code == 2
    assert "has several state dicts: embedding_model (4 tensors), normalize (2 tensors)" in " ".join(done.err.split())
    assert ckpt("inspect", "save/CKPT+first", "--root", "embedding_model").code == 0


def test_a_damaged_recoverable_is_an_error_and_closes_what_was_open(ckpt: Run) -> None:
    path = Path("save/CKPT+first/optimizer.ckpt")
    path.write_bytes(path.read_bytes()[:-40])
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(cs.FormatError, match=r"optimizer\.ckpt"):
        cs.open_checkpoint("save/CKPT+first")
    assert len(os.listdir("/proc/self/fd")) == before


def test_binary_recoverables_are_named_only() -> None:
    Path("save/CKPT+first/spm.ckpt").write_bytes(b"\x0a\x0e\xff" * 5000)
    extras = {extra.key: (extra.type, extra.value) for extra in cs.inspect("save/CKPT+first").extras}
    assert extras["spm"] == ("spm.ckpt", None)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((name, content) for name in ("model", "normalize", "counter", "spm") for content in (b"", b"\0" * 3000)),
        ("spm", b"version https://git-lfs.github.com/spec/v1\n"),
        ("model", b"\x0a\x0e\xff" * 5000),
        ("model", b"garbage"),
    ],
)
def test_a_recoverable_of_which_nothing_is_there_is_an_error(name: str, content: bytes, ckpt: Run) -> None:
    Path(f"save/CKPT+first/{name}.ckpt").write_bytes(content)
    done = ckpt("convert", "save/CKPT+first", "-o", "out.safetensors")
    assert done.code == 3
    assert f"save/CKPT+first/{name}.ckpt is " in " ".join(done.err.split())
    assert not Path("out.safetensors").exists()


def test_a_long_text_is_named_only_and_no_model(ckpt: Run) -> None:
    text = "'ä' => 0\n" * 200_000  # the bytes that are looked at may end within a letter
    Path("save/CKPT+first/labels.ckpt").write_text(text, encoding="utf-8")
    extras = {extra.key: (extra.type, extra.value) for extra in cs.inspect("save/CKPT+first").extras}
    assert extras["labels"] == ("labels.ckpt", None)
    os.rename("save/CKPT+first/labels.ckpt", "save/CKPT+first/model.ckpt")
    assert ckpt("inspect", "save/CKPT+first").code == 3


def test_a_folder_with_a_checkpoint_beside_says_so() -> None:
    torch.save({"w": torch.ones(2)}, "save/model.safetensors")
    assert cs.inspect("save").format == "torch zip"
    torch.save({"w": torch.ones(2)}, "save/CKPT+first/pytorch_model.bin")
    with pytest.raises(cs.FormatError, match="one of them may be out of date"):
        cs.open_checkpoint("save/CKPT+first")


def test_the_training_s_own_order_is_what_keys_of_a_module_list_mean(ckpt: Run) -> None:
    """``ModuleList([enc, head])`` is 0 and 1: they are mapped by name."""
    torch.manual_seed(0)
    torch.save({"enc.weight": torch.zeros(3, 4), "enc.bias": torch.zeros(3)}, "new.pth")
    cs.init_config("new.pth", output="dst.yaml")
    done = ckpt("transplant", "save/CKPT+second", "dst.yaml", "--map", "0=enc", "-o", "out.pth")
    assert done.code == 0, done
    assert torch.load("out.pth")["enc.weight"].tolist() == RECORDED["second model"]["0.weight"]
