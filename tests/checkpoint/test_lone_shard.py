"""A shard that is opened alone is compared with the index beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

KEYS = {
    "a": "model-00001-of-00002.safetensors",
    "b": "model-00001-of-00002.safetensors",
    "c": "model-00002-of-00002.safetensors",
}
FIRST, SECOND = "m/model-00001-of-00002.safetensors", "m/model-00002-of-00002.safetensors"
FOREIGN = "is not the shard that model.safetensors.index.json describes"


def sharded(total: object = 48) -> None:
    Path("m").mkdir()
    for file in dict.fromkeys(KEYS.values()):
        save_file({key: torch.zeros(4) for key, place in KEYS.items() if place == file}, Path("m", file))
    index = {"metadata": {"total_size": total}, "weight_map": KEYS}
    Path("m/model.safetensors.index.json").write_text(json.dumps(index))


def said(path: str) -> list[str]:
    notes = cs.inspect(path).notes
    assert notes[0].endswith("is one of 2 shards: the tensors of the other shards are not read")
    for plan in (cs.convert(path), cs.filter(path, include="**")):
        assert set(notes) <= set(plan.notes)
    assert {f"{path}: {note}" for note in notes} <= set(cs.transplant(path, path).notes)
    return list(notes[1:])


def test_a_shard_that_fits_gets_no_note() -> None:
    sharded()
    assert said(FIRST) == said(SECOND) == []


@pytest.mark.parametrize(
    ("keys", "how"),
    [
        (("c", "b"), "it has b, which the index does not list for it"),
        (("d",), "it has d, which the index does not list for it and lacks c"),
        (("c", "a", "b", "e"), "it has a, b and 2 more, which the index does not list for it"),
    ],
)
def test_a_shard_of_another_save_is_said(keys: tuple[str, ...], how: str) -> None:
    sharded()
    save_file({key: torch.zeros(4) for key in keys}, SECOND)
    (note,) = said(SECOND)
    assert note.endswith(f"{FOREIGN}: {how}".replace("a, b and 2 more", "a, b and 1 more"))


def test_shards_that_have_another_size_together_are_said() -> None:
    sharded()
    save_file({"c": torch.zeros(4, dtype=torch.float64)}, SECOND)
    told = "model.safetensors.index.json gives a total_size of 48 bytes, but the shards in its folder have 64: a shard may be truncated, or from another model"
    assert said(FIRST) == said(SECOND) == [told]


@pytest.mark.parametrize("total", [None, "48", -1.5, []])
def test_an_index_without_a_size_says_nothing_of_it(total: object) -> None:
    sharded(total)
    save_file({"c": torch.zeros(9)}, SECOND)
    assert said(FIRST) == []


def test_a_shard_that_is_not_there_or_cut_short_is_no_other_size() -> None:
    sharded()
    Path(SECOND).write_bytes(b"\0\0\0")
    assert said(FIRST) == []
    Path(SECOND).unlink()
    assert said(FIRST) == []
