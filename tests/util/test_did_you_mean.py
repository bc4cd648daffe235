"""A file that is not there: the error names those that are near, whatever it was to be read as."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.util import did_you_mean as neighbours
from ckptsurgeon.util.did_you_mean import did_you_mean

from ..helpers.adapters import factors, peft_folder

Run = Callable[..., Any]


@pytest.fixture
def files() -> None:
    """One file of each kind, under a name of its own."""
    tensors = {"enc.weight": torch.ones(2, 2)}
    save_file(tensors, "v.safetensors")
    save_file(tensors, "other.safetensors")
    a, b = factors(2, 2)
    peft_folder("adapter", {"enc.lora_A.weight": a, "enc.lora_B.weight": b})
    Path("folder").mkdir()
    save_file(tensors, "folder/w.safetensors")
    texts = {"tokens.txt": "a\nb\n", "names.map": "enc=x\n", "ops.yaml": "- {scale: enc, by: 2}\n", "plug.py": "x = 1\n",
             "recipe.yaml": "verb: convert\nsource: v.safetensors\n", "plan.json": "{}", "words.txt": "ein zwei drei"}  # fmt: skip
    for name, text in texts.items():
        Path(name).write_text(text)
    Path("dst.yaml").write_text("model: {like: other.safetensors}\n")
    cs.apply(cs.convert("v.safetensors"), "out.safetensors")


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("args", "near"),
    [
        (("inspect", "v.safetensor"), "v.safetensors"),
        (("inspect", "V.SafeTensors"), "v.safetensors"),
        (("inspect", "v.pth"), "v.safetensors"),
        (("inspect", "floder/w.safetensors"), "folder/w.safetensors"),
        (("inspect", "folder/w.safetensor"), "folder/w.safetensors"),
        (("inspect", "./v.safetensor"), "./v.safetensors"),
        (("transplant", "v.safetensor", "dst.yaml", "-n"), "v.safetensors"),
        (("transplant", "v.safetensor:enc:enc", "dst.yaml", "-n"), "v.safetensors"),
        (("transplant", "--source", "v.safetensors", "--source", "othr.safetensors", "dst.yaml", "-n"),
         "other.safetensors"),
        (("transplant", "v.safetensors", "dts.yaml", "-n"), "dst.yaml"),
        (("transplant", "v.safetensors", "othr.safetensors", "-n"), "other.safetensors"),
        (("transplant", "v.safetensors", "dst.yaml", "--vocab", "tokens.txt:token.txt", "-n"), "tokens.txt"),
        (("transplant", "v.safetensors", "dst.yaml", "--map-file", "name.map", "-n"), "names.map"),
        (("rename", "v.safetensors", "--operations", "op.yaml", "-n"), "ops.yaml"),
        (("filter", "v.safetensor", "--include", "enc", "-n"), "v.safetensors"),
        (("convert", "v.safetensor", "-n"), "v.safetensors"),
        (("diff", "v.safetensors", "othr.safetensors"), "other.safetensors"),
        (("match", "v.safetensor", "other.safetensors"), "v.safetensors"),
        (("average", "v.safetensors", "othr.safetensors", "-n"), "other.safetensors"),
        (("merge", "v.safetensors", "othr.safetensors", "-m", "linear", "-n"), "other.safetensors"),
        (("merge", "recpie.yaml", "-n"), "recipe.yaml"),
        (("merge", "v.safetensors", "other.safetensors", "-m", "mine", "--plugin", "plugg.py", "-n"), "plug.py"),
        (("merge", "v.safetensors", "other.safetensors", "-m", "linear", "--weights", "1,1", "--vocab", "base", "--tokens",
          "v.safetensors=token.txt", "--tokens", "other.safetensors=tokens.txt", "-n"), "tokens.txt"),
        (("lora", "merge", "v.safetensors", "adapte", "-n"), "adapter"),
        (("lora", "extract", "v.safetensor", "other.safetensors", "--rank", "1", "-n"), "v.safetensors"),
        (("apply", "plna.json", "-o", "x.pth"), "plan.json"),
        (("apply", "recpie.yaml", "-o", "x.pth"), "recipe.yaml"),
        (("verify", "ot.safetensors"), "out.safetensors"),
        (("verify", "out.safetensors", "--plan", "plna.json"), "plan.json"),
        (("verify", "out.safetensors", "--source", "v.safetensors=v.safetensor"), "v.safetensors"),
        (("scan", "v.safetensor"), "v.safetensors"),
        (("view", "v.safetensor", "-o", "x.html"), "v.safetensors"),
        (("init", "v.safetensor"), "v.safetensors"),
        (("fetch", "v.safetensor"), "v.safetensors"),
        (("train", "dts.yaml"), "dst.yaml"),
        (("train", "dst.yaml", "--init", "v.safetensor"), "v.safetensors"),
        (("train", "--report", "adaper"), "adapter"),
        (("demo-data", "d", "--words", "word.txt"), "words.txt"),
    ],
)  # fmt: skip
def test_every_input_that_is_not_there_names_what_is_near(args: tuple[str, ...], near: str, ckpt: Run) -> None:
    done = ckpt(*args)
    assert done.code in (2, 3), done
    assert f"Did you mean {near}" in done.err.replace(f"{os.getcwd()}/", ""), done.err


@pytest.mark.usefixtures("files")
def test_what_a_configuration_names_does_so_too() -> None:
    Path("net.yaml").write_text("model: {like: othr.safetensors}\n")
    with pytest.raises(cs.CheckpointError, match=r"Did you mean other\.safetensors\?"):
        cs.load_target("net.yaml")
    Path("asr.yaml").write_text("model: {name: hybrid_asr, tokens: token.txt}\n")
    with pytest.raises(cs.ConfigError, match=r"Did you mean tokens\.txt\?"):
        cs.load_target("asr.yaml")


def test_nothing_is_named_where_nothing_is_near() -> None:
    Path("model.bin").write_text("")
    Path(".hidden.pth").write_text("")
    for path in ("nothing.xyz", "hidden.pth", "no/such/folder", "", "\0", "/"):
        assert did_you_mean(path) == ""
        assert did_you_mean(path, "Do so.") == "Do so."
    assert did_you_mean("model.bin", "Do so.") == "Do so."


def test_at_most_three_are_named_the_nearest_first_and_escaped() -> None:
    for i in range(9):
        Path(f"epoch{i}.pth").write_text("")
    Path("epoch\x1b.pth").write_text("")
    said = did_you_mean("epoch.pth")
    assert said.count(".pth") == 3
    assert "\x1b" not in said
    Path("epochs.pth").write_text("")
    Path("epochs.safetensors").write_text("")
    assert did_you_mean("epochs.pt").startswith("Did you mean epochs.pth or ")


def test_of_a_folder_of_very_many_files_few_names_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    closest = difflib.get_close_matches
    monkeypatch.setattr(neighbours, "LISTED", 500)
    monkeypatch.setattr(
        difflib,
        "get_close_matches",
        lambda word, names, **how: compared.append(len(names)) or closest(word, names, **how),
    )
    for i in range(1000):
        Path(f"clip-{i:06d}.wav").write_text("")
    assert did_you_mean("clip-00000.wav").startswith("Did you mean clip-")
    assert compared == [neighbours.COMPARED]


def test_a_name_of_one_letter_has_no_similar_name() -> None:
    for name in ("ad", "nt.pth", "e.pth"):
        Path(name).touch()
    assert [did_you_mean(name) for name in ("d", "t.pth", "n")] == ["", "", ""]
    assert did_you_mean("e.safetensors") == "Did you mean e.pth?"
