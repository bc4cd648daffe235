"""Shards, their index, and folders that hold a checkpoint."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.formats import sharded
from ckptsurgeon.formats.base.header import OutTensor
from ckptsurgeon.formats.base.sharded_writer import split_shards
from ckptsurgeon.storage.read.local import LocalFolder


def index(name: str, weight_map: dict[str, str]) -> None:
    Path(name).write_text(json.dumps({"metadata": {"written_by": 1}, "weight_map": weight_map}))


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


def test_an_index_of_the_one_file_beside_it_is_of_the_same_checkpoint() -> None:
    """mlx-lm writes an index beside a single file, too."""
    os.mkdir("m")
    save_file({"a": torch.ones(2), "b": torch.zeros(2)}, "m/model.safetensors")
    index("m/model.safetensors.index.json", {"a": "model.safetensors", "b": "model.safetensors"})
    assert list(cs.open_checkpoint("m")) == ["a", "b"]
    assert not cs.open_checkpoint("m").notes
    index("m/model.safetensors.index.json", {"a": "model.safetensors", "c": "model.safetensors"})
    with pytest.raises(cs.errors.FormatError, match="c"):
        cs.open_checkpoint("m")


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
        (lambda m: index("m/model.safetensors.index.json", {k: v for k, v in m.items() if k != "b"}), "also has b"),
        (lambda m: save_file({"a": torch.ones(1)}, "m/model.safetensors"), "both model.safetensors and"),
    ],
)
def test_the_error_says_which_shard_or_key_it_is(change: object, why: str) -> None:
    """What else an index can say that is not so: tests/hostile/test_index.py."""
    change(shards())  # type: ignore[operator]
    with pytest.raises(cs.FormatError, match=why):
        cs.open_checkpoint("m")


@pytest.mark.parametrize("kind", ["sharded", "meta", "zero"])
def test_a_file_that_cannot_be_read_leaves_no_file_open(kind: str) -> None:
    """The error is kept, as an interactive session does: with it, the garbage collector keeps the files."""
    if kind == "sharded":
        shards()
        bad = "m/model-00001-of-00002.safetensors"
    else:
        names = ("consolidated.00.pth", "consolidated.01.pth")
        names = names if kind == "meta" else ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt")
        os.mkdir("m")
        torch.save({"a": torch.ones(2)}, f"m/{names[0]}")
        bad = f"m/{names[1]}"
    Path(bad).write_bytes(b"no tensors")
    with pytest.raises(cs.errors.FormatError) as caught:
        cs.open_checkpoint("m")
    opened = {os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")}
    assert not opened & {os.path.realpath(f"m/{name}") for name in os.listdir("m") if not name.endswith(".json")}
    assert caught.value


@pytest.mark.parametrize("shard", [{"b": torch.ones(2)}, {"c": [torch.ones(2)]}], ids=["no key", "no tensor"])
def test_a_shard_that_does_not_fit_its_index_is_closed(shard: dict[str, Any]) -> None:
    weight_map = shards()
    torch.save(shard, "m/bad.pth")
    index = {"metadata": {}, "weight_map": {**weight_map, "c": "bad.pth"}}
    Path("m/model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(cs.errors.FormatError, match="bad.pth") as caught:
        cs.open_checkpoint("m")
    opened = {os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")}
    assert not opened & {os.path.realpath(f"m/{name}") for name in os.listdir("m") if not name.endswith(".json")}
    assert caught.value


def test_a_missing_shard_is_said_whatever_the_folder_is_called() -> None:
    weight_map = shards("a b c")
    os.remove(f"a b c/{weight_map['c']}")
    with pytest.raises(
        cs.FormatError, match=r"lists the shard model-00002-of-00002.safetensors, which does not exist\."
    ):
        cs.open_checkpoint("a b c")


def test_a_missing_shard_comes_with_what_to_do(ckpt: Any) -> None:
    weight_map = shards("m")
    os.remove(f"m/{weight_map['c']}")
    said = "Fetch or save this file again. ckpt check m says which tensors are missing."
    assert said in " ".join(ckpt("inspect", "m").err.split())
    shutil.copytree("m", "a b")
    assert "ckpt check 'a b' says" in " ".join(ckpt("inspect", "a b").err.split())
    os.remove(f"m/{weight_map['a']}")
    with pytest.raises(cs.FormatError) as caught:
        cs.open_checkpoint("m")
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("Fetch or save the 2 missing files again.")


def test_advice_on_a_shard_lists_few_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """To list a folder of the hub may be a request, and an index can name any number of folders."""
    weight_map = shards("m")
    for at in range(40):
        weight_map[f"x{at}"] = f"d{at}/x.safetensors"
    os.remove(f"m/{weight_map['c']}")
    index("m/model.safetensors.index.json", weight_map)
    listed: list[str] = []
    names = LocalFolder.names
    monkeypatch.setattr(LocalFolder, "names", lambda self: listed.append(self.uri) or names(self))
    with pytest.raises(cs.FormatError) as caught:
        cs.open_checkpoint("m")
    assert str(caught.value.hint).startswith("Fetch or save this file again.")
    assert not [uri for uri in listed if "/d" in uri]


def test_advice_on_a_shard_counts_only_the_shards_that_are_missing() -> None:
    weight_map = shards("m")
    os.remove(f"m/{weight_map['a']}")
    os.mkfifo(f"m/{weight_map['a']}")
    os.mkdir("m/inner")
    os.rename(f"m/{weight_map['c']}", f"m/inner/{weight_map['c']}")
    inner = {key: f"inner/{name}" if key == "c" else name for key, name in weight_map.items()}
    index("m/model.safetensors.index.json", inner)
    with pytest.raises(cs.FormatError, match="which is a FIFO") as caught:
        cs.open_checkpoint("m")
    assert str(caught.value.hint).startswith("Fetch or save this file again.")
    os.remove(f"m/{weight_map['a']}")
    os.symlink(weight_map["a"], f"m/{weight_map['a']}")
    with pytest.raises(cs.FormatError, match="which cannot be opened"):
        cs.open_checkpoint("m")


def test_metadata_that_differs_between_shards_is_noted() -> None:
    weight_map = shards()
    save_file({"c": torch.ones(3)}, f"m/{weight_map['c']}", {"who": "you"})
    found = cs.inspect("m")
    assert found.metadata["who"] == "me"  # the index lists this shard last
    assert (
        "model.safetensors.index.json and its shards have different values in their metadata for who: the value of the "
        "last shard is used"
    ) in found.notes
    assert cs.check("m").row("other-notes").status.value == "WARN"


def test_a_shard_that_the_index_does_not_name_is_said() -> None:
    shards()
    for name in ("model-00003-of-00003.safetensors", "other-00001-of-00002.safetensors"):
        save_file({"z": torch.ones(2)}, f"m/{name}")
    assert cs.open_checkpoint("m").notes == (
        "read model.safetensors.index.json; also in the folder: other-00001-of-00002.safetensors",
        "model.safetensors.index.json does not list model-00003-of-00003.safetensors, so it was not read",
    )


@pytest.mark.parametrize("named", ["./{}", ".//./{}"])
def test_an_index_may_name_its_shards_with_a_dot_for_the_folder(named: str) -> None:
    weight_map = {key: named.format(name) for key, name in shards().items()}
    index("m/model.safetensors.index.json", weight_map)
    checkpoint = cs.open_checkpoint("m")
    assert list(checkpoint) == list(weight_map)
    assert checkpoint.notes == ()
    assert list(cs.open_checkpoint("m/model-00002-of-00002.safetensors").elsewhere) == ["a", "b"]
    del weight_map["c"]
    index("m/model.safetensors.index.json", weight_map)
    os.remove("m/model-00002-of-00002.safetensors")
    with pytest.raises(
        cs.FormatError, match=r"but not model-00002-of-00002.safetensors, although the names of the shards imply more"
    ):
        cs.open_checkpoint("m")


def sharded_as(names: list[str], index_name: str = "model.safetensors.index.json") -> None:
    """A folder of shards of those names and their index."""
    os.makedirs("m", exist_ok=True)
    for number, name in enumerate(names):
        save_file({f"k{number}": torch.ones(1)}, f"m/{name}")
    index(f"m/{index_name}", {f"k{number}": name for number, name in enumerate(names)})


SHARDED = {
    "six digits, as DeepSeek-V3": [f"model-{i:05}-of-000003.safetensors" for i in (1, 2, 3)],
    "one digit": ["model-1-of-2.safetensors", "model-2-of-2.safetensors"],
    "capitals": ["MODEL-00001-OF-00002.SAFETENSORS", "MODEL-00002-OF-00002.SAFETENSORS"],
    "underscores": ["model_0001_of_0002.safetensors", "model_0002_of_0002.safetensors"],
    "Llama's": ["consolidated.00.safetensors", "consolidated.01.safetensors"],
    "a rank": ["consolidated.00.safetensors"],
    "one of one": ["model-00001-of-00001.safetensors"],
    "no numbers": ["body.safetensors", "head.safetensors"],
}


@pytest.mark.parametrize("names", SHARDED.values(), ids=SHARDED)
@pytest.mark.parametrize("index_name", ["model.safetensors.index.json", "net.safetensors.index.json"])
def test_what_the_index_names_is_its_own_whatever_it_is_called(names: list[str], index_name: str) -> None:
    sharded_as(names, index_name)
    found = cs.open_checkpoint("m")
    assert (len(found), found.notes) == (len(names), ())
    Path("m/training_args.bin").write_bytes(b"")
    if index_name.startswith("model"):
        note = "read model.safetensors.index.json; also in the folder: training_args.bin"
        assert cs.open_checkpoint("m").notes == (note,)


@pytest.mark.parametrize(
    "name", ["model.safetensors.index.fp16.json", "diffusion_pytorch_model.safetensors.index.fp16.json"]
)
def test_the_index_of_a_variant_is_one(name: str) -> None:
    """As transformers and diffusers name it, with ``variant="fp16"``; what is beside it goes along."""
    stem = name.partition(".")[0]
    sharded_as([f"{stem}.fp16-{i:05}-of-00002.safetensors" for i in (1, 2)], name)
    Path("m/config.json").write_text('{"model_type": "bert"}')
    for path in ("m", f"m/{name}"):
        assert set(cs.open_checkpoint(path)) == {"k0", "k1"}
        plan = cs.convert(path)
        assert [one.name for one in plan.target.companions] == ["config.json"]
    index("m/model.safetensors.index.json", {"k0": f"{stem}.fp16-00001-of-00002.safetensors"})
    with pytest.raises(cs.FormatError, match="disagree|part of the checkpoint is missing"):
        cs.open_checkpoint("m")


def test_what_else_is_in_the_folder_is_said_in_one_line(ckpt: Any) -> None:
    sharded_as(SHARDED["six digits, as DeepSeek-V3"])
    for number in range(9):
        torch.save({}, f"m/rng_state_{number}.pth")
    done = ckpt("inspect", "m")
    (line,) = [line for line in (done.out + done.err).splitlines() if "also in the folder" in line]
    assert line.endswith("also in the folder: rng_state_0.pth, and 8 more")
    assert "json lists" not in done.out + done.err


def test_shards_without_an_index_beside_a_checkpoint_are_said() -> None:
    os.mkdir("m")
    for name in ("model.safetensors", "model-00001-of-000002.safetensors"):
        save_file({"a": torch.ones(2)}, f"m/{name}")
    assert cs.open_checkpoint("m").notes == (
        "read model.safetensors; also in the folder: model-00001-of-000002.safetensors",
    )


@pytest.mark.parametrize(
    "names", [names for name, names in SHARDED.items() if name not in ("no numbers", "a rank", "one of one")]
)
def test_shards_of_any_name_without_an_index_are_no_checkpoint(names: list[str]) -> None:
    sharded_as([*names, "model-00001-of-00077.safetensors"])
    os.remove("m/model.safetensors.index.json")
    with pytest.raises(cs.FormatError, match=f"m has {len(names) + 1} shards, but no index") as caught:
        cs.open_checkpoint("m")
    assert sorted(caught.value.details) == sorted([*names, "model-00001-of-00077.safetensors"])
    assert "pass a shard to read it alone, for example m/" in caught.value.hint


def test_one_of_one_and_a_single_rank_are_checkpoints() -> None:
    for names in (SHARDED["one of one"], SHARDED["a rank"]):
        sharded_as(names)
        os.remove("m/model.safetensors.index.json")
        assert list(cs.open_checkpoint("m")) == ["k0"]
        shutil.rmtree("m")


def test_stale_shards_of_another_count_are_said_whatever_their_width() -> None:
    sharded_as(SHARDED["six digits, as DeepSeek-V3"])
    for name in ("model-00001-of-00002.safetensors", "Model-1-of-3.safetensors"):
        save_file({"z": torch.ones(2)}, f"m/{name}")
    assert cs.open_checkpoint("m").notes == (
        "model.safetensors.index.json does not list Model-1-of-3.safetensors, model-00001-of-00002.safetensors, "
        "so they were not read",
    )


def test_a_replaced_folder_keeps_no_shard_of_any_width() -> None:
    sharded_as(SHARDED["six digits, as DeepSeek-V3"])
    for name in ("model-00001-of-00002.safetensors", "model-1-of-3.safetensors", "notes-1-of-2.safetensors"):
        save_file({"z": torch.ones(2)}, f"m/{name}")
    save_file({"a": torch.ones(2)}, "a.safetensors")
    with pytest.raises(cs.OutputError):
        cs.apply(cs.convert("a.safetensors"), "m")
    cs.apply(cs.convert("a.safetensors"), "m", force=True)
    assert sorted(os.listdir("m")) == ["ckptsurgeon.json", "model.safetensors", "notes-1-of-2.safetensors"]


@pytest.mark.long
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
    from ckptsurgeon.formats.base import sharded_writer as _sharded_writer

    shards()
    Path("m/ckptsurgeon.json").write_text("x" * 100)
    monkeypatch.setattr(_sharded_writer, "RECIPE_BYTES", 99)
    with pytest.raises(cs.FormatError, match="too large to be a recipe"):
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
    with pytest.raises(cs.FormatError, match="contains no checkpoint"):
        cs.open_checkpoint("m")
    save_file({"a": torch.ones(2)}, "m/model-00001-of-00002.safetensors")
    with pytest.raises(
        cs.FormatError, match=r"1 shard, but no index; missing: model-00002-of-00002\.safetensors\. Fetch it and"
    ):
        cs.open_checkpoint("m")
    save_file({"a": torch.ones(2)}, "m/model-00002-of-00002.safetensors")
    with pytest.raises(cs.FormatError, match=r"2 shards, but no index\. Fetch the \.index\.json too"):
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


def parts(names: list[str], total: int | None) -> None:
    """A folder whose index names these shards, of 16 bytes each."""
    for i, name in enumerate(names):
        save_file({f"w{i}": torch.ones(4)}, name)
    metadata = {"total_size": total} if total is not None else {}
    weight_map = {f"w{i}": name for i, name in enumerate(names)}
    Path("model.safetensors.index.json").write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))


@pytest.mark.parametrize("total", [None, 32, 1 << 40])
def test_an_index_that_names_fewer_shards_than_they_count_says_the_way_out(total: int | None) -> None:
    parts(["model-00001-of-00002.safetensors"], total)
    with pytest.raises(cs.FormatError) as error:
        cs.inspect(".")
    entry = re.search(r'write the size of the listed shards into the index: ("metadata": \{.*\})\.', error.value.hint)
    assert entry is not None
    name = Path("model.safetensors.index.json")
    name.write_text(json.dumps(json.loads(name.read_text()) | json.loads(f"{{{entry[1]}}}")))
    assert cs.inspect(".").notes


@pytest.mark.parametrize("total", [None, 32, 1 << 40])
def test_an_index_that_names_fewer_shards_than_they_count_is_a_part_of_a_checkpoint(total: int | None) -> None:
    parts(["model-00001-of-00002.safetensors"], total)
    with pytest.raises(cs.FormatError, match=r"lists 1 shard, but not model-00002-of-00002\.safetensors") as error:
        cs.inspect(".")
    assert (error.value.exit_code, error.value.details) == (3, ("model-00002-of-00002.safetensors",))


def test_a_shard_in_the_middle_is_missed_too() -> None:
    parts(["model-00001-of-000003.safetensors", "model-00003-of-000003.safetensors"], None)
    with pytest.raises(cs.FormatError, match=r"model-00002-of-000003\.safetensors"):
        cs.inspect(".")


def test_shards_that_were_only_named_so_are_a_note() -> None:
    parts(["model-00001-of-00002.safetensors"], 16)
    (note,) = cs.inspect(".").notes
    assert "model-00002-of-00002.safetensors, which is not in its folder either; its total_size counts only the" in note


def test_a_shard_that_is_there_is_not_called_missing() -> None:
    parts(["model-00001-of-00002.safetensors"], 16)
    shutil.copy("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    first, second = cs.inspect(".").notes
    assert first.endswith("does not list model-00002-of-00002.safetensors, so it was not read")
    assert second.endswith("but not model-00002-of-00002.safetensors, which is in its folder, but not read")


@pytest.mark.parametrize(("there", "words"), [
    ([], "of which the first 3 are not in its folder"),
    ([6], "of which the first 3 are not in its folder"),
    ([2], "of which at least 1 is in its folder, but not read"),
    ([2, 3, 4], "of which at least 3 are in its folder, but not read"),
    ([2, 3, 4, 5, 6], "of which at least 3 are in its folder, but not read"),
])  # fmt: skip
def test_of_many_missing_shards_only_some_are_looked_for(
    there: list[int], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts(["model-00001-of-00006.safetensors"], 16)
    for number in there:
        shutil.copy("model-00001-of-00006.safetensors", f"model-{number:05}-of-00006.safetensors")
    monkeypatch.setattr(sharded, "_COUNTED_SHARDS", 3)
    assert str(cs.inspect(".").notes[-1]).endswith(f" and 3 more, {words}")
    monkeypatch.setattr(sharded, "_COUNTED_SHARDS", 5)
    assert "at least" not in str(cs.inspect(".").notes[-1])


@pytest.mark.parametrize(("there", "words"), [
    ([], "which are not in its folder either; its total_size counts only the listed shards, so the others were "
         "perhaps left out on purpose"),
    ([4], "of which 1 is in its folder, but not read"),
    ([2, 3], "of which 2 are in its folder, but not read"),
    ([2, 3, 4, 5, 6], "which are in its folder, but not read"),
])  # fmt: skip
def test_only_shards_that_are_in_the_folder_are_said_to_be_there(there: list[int], words: str) -> None:
    parts(["model-00001-of-00006.safetensors"], 16)
    for number in there:
        shutil.copy("model-00001-of-00006.safetensors", f"model-{number:05}-of-00006.safetensors")
    (note,) = [one for one in cs.inspect(".").notes if " lists " in one]
    two = "model-00002-of-00006.safetensors, model-00003-of-00006.safetensors"
    assert note.endswith(f" lists 1 shard, but not {two} and 3 more, {words}")


@pytest.mark.parametrize(
    "names",
    [
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ["model-0-of-2.safetensors", "model-1-of-2.safetensors"],
        ["a-00001-of-00001.safetensors", "b-00001-of-00002.safetensors", "b-00002-of-00002.safetensors"],
        ["one.safetensors", "two.safetensors"],
        ["model-00001-of-99999999999.safetensors"],
    ],
)
def test_shards_that_are_all_there_are_no_note(names: list[str]) -> None:
    parts(names, None)
    assert not cs.inspect(".").notes
