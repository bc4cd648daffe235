"""``rename --in-place``: only headers are written; what changes more than names, or does not fit, is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.errors import CheckpointError, ConfigError, OutputError, PlanError
from ckptsurgeon.storage.replaced_header import REPLACED

from ...conftest import Result

Run = Callable[..., Result]
TENSORS = {f"model.layers.{number}.weight": torch.full((3, 2), float(number)) for number in range(4)}
RENAMED = {key.removeprefix("model."): value for key, value in TENSORS.items()}


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts have the same names and values."""
    return found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


def saved(path: str = "a.safetensors", **metadata: str) -> Path:
    """A file of safetensors."""
    save_file(TENSORS, path, {"format": "pt", **metadata})
    return Path(path)


def shards(folder: str = "model") -> Path:
    """A folder of two shards and an index, as transformers writes it."""
    os.mkdir(folder)
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = {key: names[number // 2] for number, key in enumerate(TENSORS)}
    for name in names:
        save_file({key: TENSORS[key] for key in TENSORS if index[key] == name}, f"{folder}/{name}", {"format": "pt"})
    text = json.dumps({"metadata": {"total_size": 96, "made": "by hand"}, "weight_map": index})
    Path(folder, "model.safetensors.index.json").write_text(text)
    return Path(folder)


def test_only_the_header_is_written(ckpt: Run) -> None:
    file = saved(made="by hand")
    before, inode = file.read_bytes(), file.stat().st_ino
    planned = ckpt("rename", "a.safetensors", "--in-place", "--map", "model=", "-n")
    assert planned.code == 0
    assert file.read_bytes() == before
    done = ckpt("rename", "a.safetensors", "--in-place", "--map", "model=")
    assert done.code == 0, done.err
    assert "only 1 header is written" in done.err
    assert "config.json is not changed" not in done.err
    assert "next: ckpt check a.safetensors" in done.out
    after = file.read_bytes()
    size = 8 + int.from_bytes(before[:8], "little")
    assert (after[:8], after[size:], len(after)) == (before[:8], before[size:], len(before))
    assert file.stat().st_ino == inode
    assert same(load_file(file), RENAMED)
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt", "made": "by hand"}
    verified = ckpt("verify", "a.safetensors", "--plan", "a.safetensors.rename.json")
    assert verified.code == 0
    assert "PASS" not in verified.out  # there is nothing to compare values with
    assert "only names, dtypes and shapes are compared" in " ".join(verified.out.split())
    assert "not verified a.safetensors" in verified.out
    found = json.loads(ckpt("verify", "a.safetensors", "--plan", "a.safetensors.rename.json", "--json").out)
    assert (found["ok"], found["verified"], found["unchecked"]) == (True, False, found["checked"])
    without_plan = ckpt("verify", "a.safetensors")
    assert (without_plan.code, "--plan a.safetensors.rename.json compares names" in without_plan.err) == (2, True)
    assert sorted(os.listdir()) == ["a.safetensors", "a.safetensors.rename.json"]
    receipt = json.loads(ckpt("rename", "a.safetensors", "--in-place", "--map", "layers=blocks", "--json").out)
    assert receipt["kind"] == "ckpt.receipt"
    assert receipt["beside"] == ["a.safetensors.rename-2.json"]
    assert receipt["nbytes_written"] == size
    for path, plan in (("a.safetensors", "a.safetensors"), (".", "./a.safetensors")):
        assert f"--plan {plan}.rename-2.json" in ckpt("verify", path).err


def test_a_folder_of_shards_gets_its_index(ckpt: Run) -> None:
    folder = shards()
    (folder / "config.json").write_text("{}")
    done = ckpt("rename", "model", "--in-place", "--map", "model=")
    assert done.code == 0
    assert "only 2 headers are written" in done.err
    said = " ".join(done.err.split())
    assert "config.json is not changed: it no longer fits if the old names are those of its model class (model." in said
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 96, "made": "by hand"}
    assert set(index["weight_map"]) == set(RENAMED)
    found = {
        key: value for name in set(index["weight_map"].values()) for key, value in load_file(folder / name).items()
    }
    assert same(found, RENAMED)
    with cs.open_checkpoint(folder) as opened:
        assert set(opened) == set(RENAMED)
    assert len(os.listdir(folder)) == 5


def test_there_are_no_notes_on_files_of_an_output_folder(ckpt: Run) -> None:
    """In place, there is none: config.json and README.md stay where they are."""
    folder = shards()
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("x")
    planned = ckpt("rename", "model", "--map", "model=", "-n")
    assert all(said in planned.out + planned.err for said in ("README.md", "is not copied into an output folder"))
    for rules, is_said in (("model=", 1), ("layers=layers", 0)):
        for options in (["-n"], ["-n", "--json"], ["--json"]):
            done = ckpt("rename", "model", "--in-place", "--map", rules, *options)
            assert done.code == 0
            said = " ".join((done.out + done.err).split())
            assert [said.count(one) for one in ("README.md", "output folder", "config.json is not changed")] == [
                0,
                0,
                is_said,
            ]
    assert {"config.json", "README.md"} <= set(os.listdir(folder))


def test_a_shard_alone_is_refused(ckpt: Run) -> None:
    """Its new names would not be those of the index."""
    shard = shards() / "model-00001-of-00002.safetensors"
    done = ckpt("rename", shard, "--in-place", "--map", "model=")
    assert done.code == 4
    assert "is a shard, and the index model.safetensors.index.json also lists the names of its tensors" in done.err


def test_shards_in_other_folders_are_refused(ckpt: Run) -> None:
    """The journal of the change is in the folder of the index, and has the names of files there."""
    folder = shards()
    (folder / "sub").mkdir()
    first = "model-00001-of-00002.safetensors"
    (folder / first).rename(folder / "sub" / first)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] = {key: f"sub/{one}" if one == first else one for key, one in index["weight_map"].items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    done = ckpt("rename", "model", "--in-place", "--map", "model=")
    assert done.code == 4
    assert "in a different folder" in " ".join(done.err.split())


def test_a_file_is_no_plan() -> None:
    with pytest.raises(ConfigError, match="the argument plan is .a.safetensors., not a plan"):
        cs.apply_in_place(str(saved()))  # type: ignore[arg-type]


def test_wrappers_are_stripped_and_names_may_be_swapped() -> None:
    save_file({"module.a": torch.zeros(2), "module.b": torch.ones(2)}, "a.safetensors")
    cs.apply_in_place(cs.rename("a.safetensors", unwrap=True, map={"a": "b", "b": "a"}))
    assert same(load_file("a.safetensors"), {"b": torch.zeros(2), "a": torch.ones(2)})


def test_the_recipe_of_an_earlier_run_leaves_the_header(ckpt: Run) -> None:
    saved("first.safetensors")
    cs.apply(cs.rename("first.safetensors", map="model="), "a.safetensors")
    with cs.open_checkpoint("a.safetensors") as opened:
        recipe = opened.header.recipe
    os.mkdir("b")
    Path("a.safetensors.sig").write_text("{}")
    done = ckpt("rename", "a.safetensors", "--in-place", "--map", "layers=a_much_longer_name_than_that")
    assert done.code == 0, done.err
    assert "the recipe of an earlier run (ckptsurgeon) is moved from the header" in done.err
    assert "the signature a.safetensors.sig was made for the old header" in done.err
    with cs.open_checkpoint("a.safetensors") as opened:
        assert opened.header.recipe is None
    assert json.loads(Path("a.safetensors.rename.json").read_text())["recipes"] == {"a.safetensors": recipe}


def test_a_header_that_does_not_fit_is_refused_before_anything_is_written() -> None:
    file = saved()
    before = file.read_bytes()
    with pytest.raises(
        PlanError, match="the new header of a.safetensors does not fit: it needs [0-9]+ bytes more"
    ) as error:
        cs.apply_in_place(cs.rename(file, map="model.layers=model.a_much_longer_name"))
    assert "Write a new file with -o" in (error.value.hint or "")
    assert file.read_bytes() == before
    assert os.listdir() == ["a.safetensors"]


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        (
            lambda: cs.rename("a.safetensors", operations=[{"scale": "**", "by": 2.0}], map="model="),
            "gets other values",
        ),
        (lambda: cs.rename("a.safetensors", operations=[{"transpose": "**"}]), "gets other values"),
        (lambda: cs.rename("a.safetensors", map="model.layers.0.weight={a,b}"), "copied to several names"),
        (lambda: cs.rename("a.safetensors", map="model=", metadata={"a": "b"}), "--set-metadata was given"),
        (lambda: cs.convert("a.safetensors", dtype="bf16"), "ckpt convert changes more than names"),
        (lambda: cs.filter("a.safetensors", exclude="model.layers.0"), "ckpt filter changes more than names"),
        (lambda: cs.rename("a.pth", map="model="), "only safetensors can be renamed in place"),
        (lambda: cs.rename("a.safetensors", map="model.layers.0.weight=__metadata__"), "which safetensors reserves"),
        (lambda: cs.rename("a.safetensors", map="model.layers.0.weight=\ud800"), "not valid Unicode"),
    ],
)
def test_what_changes_more_than_names_is_refused(plan: Callable[[], cs.Plan], why: str) -> None:
    before = saved().read_bytes()
    torch.save(TENSORS, "a.pth")
    with pytest.raises(CheckpointError, match=why):
        cs.apply_in_place(plan())
    assert Path("a.safetensors").read_bytes() == before
    assert sorted(os.listdir()) == ["a.pth", "a.safetensors"]


def test_links_and_files_that_are_open_are_refused(ckpt: Run) -> None:
    file = saved()
    os.symlink(file, "link.safetensors")
    done = ckpt("rename", "link.safetensors", "--in-place", "--map", "model=", "-n")
    assert done.code == 5
    assert "is a link to a.safetensors" in done.err
    os.link(file, "other.safetensors")
    assert "has 2 names (hard links)" in ckpt("rename", "a.safetensors", "--in-place", "--map", "model=").err
    os.unlink("other.safetensors")
    with cs.open_checkpoint(file), pytest.raises(OutputError, match="is open in this or another program"):
        cs.apply_in_place(cs.rename(file, map="model="))
    assert same(load_file(file), TENSORS)


def test_a_folder_with_a_recipe_is_refused(ckpt: Run) -> None:
    cs.apply(cs.rename(saved(), map="model="), "made", max_shard_size="50B")
    done = ckpt("rename", "made", "--in-place", "--map", "layers=blocks")
    assert done.code == 4
    assert "has the recipe of an earlier run (ckptsurgeon.json)" in done.err


@pytest.mark.parametrize("option", [["-o", "b.safetensors"], ["--force"], ["--to", "pth"], ["--ranks", "2"]])
def test_options_of_a_new_file_contradict(option: list[str], ckpt: Run) -> None:
    saved()
    done = ckpt("rename", "a.safetensors", "--in-place", "--map", "model=", *option)
    assert done.code == 2
    assert f"--in-place and {option[0]} contradict each other" in done.err


@pytest.mark.long
def test_a_run_that_was_interrupted_is_said_and_undone_by_check(
    ckpt: Run, ckpt_process: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, real = saved(), os.pwrite

    def fails(fd: int, data: bytes, at: int) -> int:
        if at == 8 or (data == REPLACED and os.pread(fd, 8, 0) == REPLACED):
            raise OSError(28, "no space")
        return real(fd, data, at)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", fails)
        assert "cannot be read now" in ckpt("rename", "a.safetensors", "--in-place", "--map", "model=").err
    with pytest.raises(Exception, match=r"(?i)header"):
        load_file(file)
    seen = ckpt("inspect", "a.safetensors")
    assert seen.code == 3
    assert "ckpt rename --in-place was interrupted" in seen.err
    assert "ckpt check restores the header" in seen.err
    found = ckpt_process("check", "a.safetensors")
    assert found.code == 0
    assert "note: ckpt rename --in-place of a.safetensors was interrupted; it is undone now" in found.err
    assert same(load_file(file), TENSORS)
    assert os.listdir() == ["a.safetensors"]


def test_joined_scales_are_not_split_in_place() -> None:
    """Each expert gets scales of its own, so that the file would not have the same tensors."""
    codes = torch.zeros(128, 128).to(torch.float8_e4m3fn)
    state = {f"mlp.experts.{number}.down_proj.weight": codes.clone() for number in range(2)}
    save_file({**state, "mlp.experts.down_proj_scale_inv": torch.ones(2, 1, 1)}, "a.safetensors")
    with pytest.raises(PlanError, match=r"but mlp\.experts\.down_proj_scale_inv is split into several tensors"):
        cs.apply_in_place(cs.rename("a.safetensors", map=["mlp=ffn"]))
