"""Shards, their index, and folders that hold a checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.formats import OutTensor, split_shards


def index(name: str, weight_map: dict[str, str]) -> None:
    Path(name).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def shards(folder: str = "m") -> dict[str, str]:
    os.makedirs(folder, exist_ok=True)
    save_file({"a": torch.ones(2), "b": torch.zeros(2)}, f"{folder}/model-00001-of-00002.safetensors", {"who": "me"})
    save_file({"c": torch.full((3,), 2.0)}, f"{folder}/model-00002-of-00002.safetensors")
    weight_map = {
        "c": "model-00002-of-00002.safetensors",
        "a": "model-00001-of-00002.safetensors",
        "b": "model-00001-of-00002.safetensors",
    }
    index(f"{folder}/model.safetensors.index.json", weight_map)
    return weight_map


def test_a_folder_and_its_index_are_the_same_checkpoint() -> None:
    shards()
    for path in ("m", "m/", "m/model.safetensors.index.json"):
        found = cs.open_checkpoint(path)
        assert list(found) == ["c", "a", "b"]
        assert found.format == "sharded safetensors"
        assert found.tensor("c").tolist() == [2.0, 2.0, 2.0]
        assert found["a"].storage is not None
        assert found["a"].storage.file == "model-00001-of-00002.safetensors"
        assert found.metadata["who"] == "me"
        assert len(found.files) == 3


def test_shards_that_torch_wrote() -> None:
    os.mkdir("m")
    torch.save({"a": torch.ones(2)}, "m/pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.zeros(2)}, "m/pytorch_model-00002-of-00002.bin")
    weight_map = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    index("m/pytorch_model.bin.index.json", weight_map)
    assert cs.open_checkpoint("m").tensor("a").tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda m: os.remove("m/model-00002-of-00002.safetensors"), "00002-of-00002.safetensors, which does not exist"),
        (lambda m: index("m/model.safetensors.index.json", {**m, "d": m["a"]}), "lacks d"),
        (lambda m: index("m/model.safetensors.index.json", {k: v for k, v in m.items() if k != "b"}), "has besides b"),
        (lambda m: save_file({"a": torch.ones(1)}, "m/model.safetensors"), "both model.safetensors and"),
    ],
)
def test_the_error_says_which_shard_or_key_it_is(change: object, why: str) -> None:
    """What else an index can say that is not so: tests/hostile/test_index.py."""
    change(shards())  # type: ignore[operator]
    with pytest.raises(cs.FormatError, match=why):
        cs.open_checkpoint("m")


def test_a_missing_shard_is_said_whatever_the_folder_is_called() -> None:
    weight_map = shards("a b c")
    os.remove(f"a b c/{weight_map['c']}")
    with pytest.raises(
        cs.FormatError, match=r"names the shard model-00002-of-00002.safetensors, which does not exist\.$"
    ):
        cs.open_checkpoint("a b c")


def test_a_shard_that_the_index_does_not_name_is_said() -> None:
    shards()
    for name in ("model-00003-of-00003.safetensors", "other-00001-of-00002.safetensors"):
        save_file({"z": torch.ones(2)}, f"m/{name}")
    (note,) = cs.open_checkpoint("m").notes
    assert (
        note
        == "model.safetensors.index.json does not name model-00003-of-00003.safetensors, so nothing of that was read"
    )


def test_many_shards_are_compared_with_their_own_keys_only() -> None:
    os.mkdir("m")
    weight_map = {}
    for i in range(200):
        name = f"model-{i:05d}-of-00200.safetensors"
        save_file({f"k{i}.{j}": torch.ones(1) for j in range(20)}, f"m/{name}")
        weight_map.update({f"k{i}.{j}": name for j in range(20)})
    index("m/model.safetensors.index.json", weight_map)
    assert len(cs.open_checkpoint("m")) == 4000


def test_a_recipe_that_is_too_large_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptsurgeon.formats import _sharded_writer

    shards()
    Path("m/ckptsurgeon.json").write_text("x" * 100)
    monkeypatch.setattr(_sharded_writer, "RECIPE_BYTES", 99)
    with pytest.raises(cs.FormatError, match="too large for a recipe"):
        cs.open_checkpoint("m")


def test_a_folder_with_one_file_is_that_file() -> None:
    os.mkdir("m")
    save_file({"a": torch.ones(2)}, "m/anything.safetensors")
    Path("m/config.json").write_text("{}")
    assert list(cs.open_checkpoint("m")) == ["a"]


def test_the_well_known_name_is_taken_and_the_others_are_said() -> None:
    os.mkdir("m")
    save_file({"a": torch.ones(2)}, "m/model.safetensors")
    torch.save({"b": torch.ones(2)}, "m/pytorch_model.bin")
    found = cs.open_checkpoint("m")
    assert list(found) == ["a"]
    assert any("pytorch_model.bin" in note for note in found.notes)


def test_a_folder_of_several_checkpoints_asks_which() -> None:
    os.mkdir("m")
    torch.save({"b": torch.ones(2)}, "m/1epoch.pth")
    torch.save({"b": torch.ones(2)}, "m/2epoch.pth")
    with pytest.raises(cs.FormatError, match="several checkpoints: 1epoch.pth, 2epoch.pth"):
        cs.open_checkpoint("m")


def test_a_folder_without_any_says_so() -> None:
    os.mkdir("m")
    with pytest.raises(cs.FormatError, match="no checkpoint in it"):
        cs.open_checkpoint("m")
    save_file({"a": torch.ones(2)}, "m/model-00001-of-00002.safetensors")
    with pytest.raises(cs.FormatError, match="1 shards and no index|1 shard"):
        cs.open_checkpoint("m")


def test_links_as_the_hub_s_cache_makes_them_are_followed() -> None:
    os.makedirs("blobs")
    os.makedirs("snapshots/x")
    save_file({"a": torch.ones(2)}, "blobs/abc")
    os.symlink("../../blobs/abc", "snapshots/x/model.safetensors")
    assert list(cs.open_checkpoint("snapshots/x")) == ["a"]


def tensor(key: str, nbytes: int, alias_of: str = "") -> OutTensor:
    return OutTensor(key, "uint8", (nbytes,), nbytes, alias_of)


def test_shards_fill_in_order_and_keep_aliases_together() -> None:
    made = split_shards([tensor("a", 60), tensor("b", 60), tensor("c", 30), tensor("a2", 60, "a")], 100)
    assert [[t.key for t in shard] for shard in made] == [["a", "a2"], ["b", "c"]]


def test_a_tensor_larger_than_a_shard_gets_one_of_its_own() -> None:
    made = split_shards([tensor("a", 10), tensor("b", 500), tensor("c", 10)], 100)
    assert [[t.key for t in shard] for shard in made] == [["a"], ["b"], ["c"]]
