"""The total_size of an index is compared with the bytes that its shards have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

INDEX = "model.safetensors.index.json"


def folder(total: object) -> list[str]:
    Path("m").mkdir()
    for number, key in enumerate("ab", 1):
        save_file({key: torch.ones(4, number)}, f"m/model-0000{number}-of-00002.safetensors")
    names = {key: f"model-0000{number}-of-00002.safetensors" for number, key in enumerate("ab", 1)}
    Path("m", INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": names}))
    return [note for note in cs.open_checkpoint("m").header.notes if "total_size" in note]


@pytest.mark.parametrize("total", [48, 48.0, None, "48", [48], True])
def test_the_size_that_it_has_and_what_is_not_a_size_are_not_noted(total: object) -> None:
    assert not folder(total)


@pytest.mark.parametrize(("total", "said"), [(32, "32"), (10**12, "1,000,000,000,000"), (0, "0"), (47.0, "47")])
def test_another_size_is_noted(total: object, said: str) -> None:
    lost = "tensors may be missing, or " if total > 48 else ""
    why = f"gives a total_size of {said} bytes, but its tensors have 48: {lost}a shard may be from another model"
    assert folder(total) == [f"{INDEX} {why}"]


def test_tied_tensors_may_be_counted_once_or_for_each_name() -> None:
    Path("m").mkdir()
    shared = torch.ones(4)
    torch.save({"a": shared, "b": shared}, "m/pytorch_model-00001-of-00001.bin")
    for total, noted in ((16, False), (32, False), (48, True)):
        names = dict.fromkeys("ab", "pytorch_model-00001-of-00001.bin")
        Path("m/pytorch_model.bin.index.json").write_text(
            json.dumps({"metadata": {"total_size": total}, "weight_map": names})
        )
        assert any("total_size" in note for note in cs.open_checkpoint("m").header.notes) == noted


def test_what_is_written_has_the_size_that_its_index_gives() -> None:
    tensors = {f"w.{i}": torch.ones(300_000) for i in range(3)}
    torch.save({**tensors, "tied": tensors["w.0"]}, "a.pth")
    for to in ("safetensors", "pth"):
        cs.apply(cs.convert("a.pth"), f"{to}/", to=to, max_shard_size="2MB")
        assert not any("total_size" in note for note in cs.open_checkpoint(to).header.notes)


def test_of_two_folders_the_note_says_which_one_it_is_about(ckpt: Any) -> None:
    folder(48)
    shutil.copytree("m", "other")
    index = Path("other", INDEX)
    index.write_text(index.read_text().replace("48", "99"))
    said = f"note: other: {INDEX} gives a total_size of 99 bytes"
    for verb in ("diff m other", "match m other"):
        assert said in ckpt(*verb.split()).err, verb
    merge = "merge m other --method linear --weights 0.5,0.5"
    for verb in ("average m other", merge, "transplant m other", "transplant other m"):
        assert said in ckpt(*verb.split(), "-o", "x", "-n").err, verb
