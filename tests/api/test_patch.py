"""Patches: the new files come back byte for byte, from the right base only, and never from a damaged patch."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.engine.patch import apply as applying
from ckptsurgeon.engine.patch import make as making
from ckptsurgeon.engine.patch.blocks import BLOCK
from ckptsurgeon.engine.patch.in_order import THREADS

from ..conftest import Result
from ..helpers.depth import FULL

State = dict[str, torch.Tensor]


def base() -> State:
    draw = torch.Generator().manual_seed(0)
    state = {f"layers.{n}.weight": torch.randn(64, 256, generator=draw).bfloat16() for n in range(4)}
    return {
        **state,
        "embed.weight": torch.randn(100, 32, generator=draw),
        "norm": torch.ones(32),
        "steps": torch.tensor(3),
    }


def tuned() -> State:
    """Some values of one tensor are others, one has more rows, one another dtype, one a new name; one is new."""
    state = base()
    state["layers.0.weight"][::7, ::5] *= 1.05
    state["embed.weight"] = torch.cat([state["embed.weight"], torch.randn(7, 32)])
    state["norm"] = state["norm"].half()
    state["blocks.2.weight"] = state.pop("layers.2.weight")
    state["head.weight"] = torch.randn(5, 32)
    return state


def write(state: State, path: str) -> str:
    """Write a checkpoint in the form that the path names."""
    if path.endswith(".safetensors"):
        save_file(state, path, metadata={"format": "pt", "who": path})
    elif path.endswith(".pth"):
        torch.save({"state_dict": state, "epoch": 3, "optimizer": {"state": {0: torch.randn(40)}}}, path)
    else:
        how: dict[str, Any] = (
            {"to": "dcp"} if "dcp" in path else {"max_shard_size": "20000B"} if "shards" in path else {}
        )
        cs.apply(cs.convert(state), path, **how)
        Path(path, "config.json").write_text(json.dumps({"model_type": "mine", "n": len(state)}))
        Path(path, "tokenizer.model").write_bytes(bytes(range(256)) * 20)
    return path


def content(path: str) -> dict[str, bytes]:
    place = Path(path)
    return {one.name: one.read_bytes() for one in ([place] if place.is_file() else place.iterdir())}


FORMS = ["{}.safetensors", "{}.pth", "{}.gguf", "{}", "{}-shards", "{}-dcp"]


@pytest.mark.parametrize("form", FORMS)
def test_the_new_files_come_back(form: str) -> None:
    states = base(), tuned()
    if form.endswith(".gguf"):
        for name, state in zip(("old", "new"), states, strict=True):
            del state["steps"]
            cs.apply(cs.convert(state), form.format(name))
    else:
        for name, state in zip(("old", "new"), states, strict=True):
            write(state, form.format(name))
    old, new = form.format("old"), form.format("new")
    made = cs.make_patch(old, new, "d.ckptpatch")
    output = f"back/{new}" if os.path.isfile(new) else "back"
    os.makedirs(os.path.dirname(output) or ".", exist_ok=True)
    done = cs.apply_patch(old, "d.ckptpatch", output)
    assert content(output) == content(new)
    assert made.nbytes == os.path.getsize("d.ckptpatch") < made.new_nbytes / 1.5
    assert made.new_nbytes == sum(map(len, content(new).values()))
    assert (made.equal, made.changed, made.added) == (done.equal, done.changed, done.added)
    assert made.equal + made.changed + made.added == len(cs.open_checkpoint(new))
    assert not [name for name in os.listdir() if ".ckpt-" in name]


def test_what_a_patch_has_is_counted() -> None:
    made = cs.make_patch(write(base(), "old.safetensors"), write(tuned(), "new.safetensors"), "d.ckptpatch")
    # Equal: layers.1, layers.3, blocks.2 (renamed), steps. Changed: layers.0, embed. New: norm (another dtype), head.
    assert (made.equal, made.changed, made.added) == (4, 2, 2)
    read = cs.read_patch("d.ckptpatch")
    assert (read.old, read.new, read.nbytes, read.equal) == ("old.safetensors", "new.safetensors", made.nbytes, 4)


def test_equal_checkpoints_take_no_room() -> None:
    state = {"w": torch.randn(2000, 1000)}
    made = cs.make_patch(write(state, "old.safetensors"), write(state, "new.safetensors"), "d.ckptpatch")
    assert made.nbytes < 1000
    assert (made.equal, made.changed, made.added) == (1, 0, 0)


def test_files_beside_the_weights_that_are_equal_take_no_room() -> None:
    write(base(), "old")
    noise = random.Random(0).randbytes(200_000)
    Path("old/tokenizer.model").write_bytes(noise)
    shutil.copytree("old", "new")
    Path("new/config.json").write_text("{}")
    Path("new/more.txt").write_text("more")
    made = cs.make_patch("old", "new", "d.ckptpatch")
    assert made.nbytes < 10_000
    cs.apply_patch("old", "d.ckptpatch", "back")
    assert content("back") == content("new")
    Path("old/tokenizer.model").write_bytes(noise[:-1] + b"x")
    with pytest.raises(cs.PlanError, match=r"1 tensor or file is missing or different: tokenizer\.model"):
        cs.apply_patch("old", "d.ckptpatch", "again")


def test_the_base_may_be_in_another_form() -> None:
    write(base(), "old.safetensors")
    write(tuned(), "new.pth")
    cs.make_patch("old.safetensors", "new.pth", "d.ckptpatch")
    for form in ("base-shards", "base.pth"):
        cs.apply_patch(write(base(), form), "d.ckptpatch", f"{form}.out.pth")
        assert content(f"{form}.out.pth").popitem()[1] == content("new.pth")["new.pth"]


def flip(path: str) -> None:
    state = load_file(path)
    state["layers.3.weight"][0, 0] += 1
    save_file(state, path)


def drop(path: str) -> None:
    state = load_file(path)
    del state["layers.3.weight"]
    save_file(state, path)


@pytest.mark.parametrize("change", [flip, drop])
def test_another_base_is_an_error_before_a_byte_is_written(
    change: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cs.make_patch(write(base(), "old.safetensors"), write(tuned(), "new.safetensors"), "d.ckptpatch")
    change("old.safetensors")
    monkeypatch.setattr(applying, "write_files", None)
    with pytest.raises(cs.PlanError, match="1 tensor or file is missing or different: layers.3.weight") as caught:
        cs.apply_patch("old.safetensors", "d.ckptpatch", "out.safetensors")
    assert "old.safetensors is not the checkpoint that d.ckptpatch was made from" in caught.value.message
    assert caught.value.exit_code == 4
    assert not os.path.exists("out.safetensors")


def steps(number: int, form: str) -> list[str]:
    """Write checkpoints each of which differs a little from the one before, the last with another layout."""
    state, names = {**base(), "big": torch.randn(3000, 1000)}, []
    for step in range(number):
        state = {key: value.clone() for key, value in state.items()}
        state["big"][step::9] += 0.5
        state[f"extra.{step}"] = torch.full((step + 1, 3), float(step))
        state["embed.weight"] = torch.cat([state["embed.weight"], torch.randn(3, 32)])
        names.append(write(state, form.format(step)))
    return names


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("form", ["{}.safetensors", "{}.pth", "{}-shards"])
def test_patches_are_applied_in_turn(form: str) -> None:
    names = steps(4, form)
    for number in range(3):
        cs.make_patch(names[number], names[number + 1], f"{number}.ckptpatch")
    output = form.format("out")
    cs.apply_patch(names[0], ["0.ckptpatch", "1.ckptpatch", "2.ckptpatch"], output)
    assert list(content(output).values()) == list(content(names[3]).values()) or content(output) == content(names[3])


@pytest.mark.costly
@pytest.mark.parametrize(
    ("order", "wrong"),
    [("10", "0.safetensors is not"), ("02", "the result of 0.ckptpatch is not"), ("00", "the result of 0.ckpt")],
)
def test_patches_in_another_order_are_an_error(order: str, wrong: str) -> None:
    names = steps(4, "{}.safetensors")
    for number in range(3):
        cs.make_patch(names[number], names[number + 1], f"{number}.ckptpatch")
    with pytest.raises(cs.PlanError, match=wrong):
        cs.apply_patch(names[0], [f"{one}.ckptpatch" for one in order], "out.safetensors")
    assert not os.path.exists("out.safetensors")


def test_tensors_that_share_memory_and_views_come_back() -> None:
    big = torch.randn(50, 40)
    torch.save({"a": big, "b": big, "rows": big[10:20], "turned": big.t(), "none": torch.empty(0, 3)}, "old.pth")
    other = big.clone()
    other[3] = 0
    torch.save(
        {"a": other, "b": other, "rows": other[10:20], "turned": other.t(), "none": torch.empty(0, 3)}, "new.pth"
    )
    made = cs.make_patch("old.pth", "new.pth", "d.ckptpatch")
    assert made.nbytes < 3000
    cs.apply_patch("old.pth", "d.ckptpatch", "out.pth")
    assert Path("out.pth").read_bytes() == Path("new.pth").read_bytes()


# Damage.


@pytest.fixture
def small() -> bytes:
    """A patch of two small files."""
    save_file({"w": torch.arange(60.0), "v": torch.ones(9)}, "old.safetensors")
    save_file({"w": torch.arange(60.0).flip(0), "v": torch.ones(9), "u": torch.rand(7)}, "new.safetensors")
    cs.make_patch("old.safetensors", "new.safetensors", "d.ckptpatch")
    shutil.copy("new.safetensors", "made.safetensors")
    return Path("d.ckptpatch").read_bytes()


@pytest.fixture
def signed() -> bytes:
    """A patch of two small files, with the signs of changes alone."""
    old = torch.rand(8, 32)
    save_file({"w": old, "v": torch.ones(9)}, "old.safetensors")
    save_file({"w": old + torch.randn(8, 32) / 99, "v": torch.ones(9)}, "new.safetensors")
    assert cs.make_patch("old.safetensors", "new.safetensors", "d.ckptpatch", signs="w").approximated == 1
    cs.apply_patch("old.safetensors", "d.ckptpatch", "made.safetensors")
    return Path("d.ckptpatch").read_bytes()


def tried(raw: bytes) -> bool:
    """Return whether a patch is applied; what it makes is right, or there is an error and nothing else."""
    Path("bad.ckptpatch").write_bytes(raw)
    try:
        cs.apply_patch("old.safetensors", "bad.ckptpatch", "out.safetensors", force=True)
    except (cs.FormatError, cs.PlanError):
        assert not os.path.exists("out.safetensors")
        return False
    assert Path("out.safetensors").read_bytes() == Path("made.safetensors").read_bytes()
    os.unlink("out.safetensors")
    return True


def damaged(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield each place, and the file with another byte there; in ``make test`` each fifth, the first and the last places."""
    draw = random.Random(0)
    for place in range(len(raw)):
        changed = bytes((raw[place] ^ draw.randrange(1, 256),))
        if FULL or place % 5 == 0 or place < 20 or place >= len(raw) - 60:
            yield place, raw[:place] + changed + raw[place + 1 :]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["small", "signed"])
def test_a_patch_with_one_changed_byte_never_makes_another_file(kind: str, request: pytest.FixtureRequest) -> None:
    small: bytes = request.getfixturevalue(kind)
    assert tried(small)
    assert [place for place, raw in damaged(small) if tried(raw)] == []


def test_a_patch_that_is_cut_short_is_an_error(small: bytes) -> None:
    assert not any(tried(small[:end]) for end in range(0, len(small), 5))
    assert not tried(small + b"\0")


def with_index(raw: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Return a patch whose index was changed, with the right checksum."""
    tail = struct.Struct("<QQI8s")
    offset, size, _, magic = tail.unpack(raw[-tail.size :])
    index = json.loads(zstandard.ZstdDecompressor().decompress(raw[offset : offset + size]))
    change(index)
    data = zstandard.ZstdCompressor().compress(json.dumps(index).encode())
    return raw[:offset] + data + tail.pack(offset, len(data), zlib.crc32(data), magic)


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.update(kind="ckpt.plan"),
        lambda index: index.update(version=2),
        lambda index: index.update(files=[]),
        lambda index: index["files"].append(index["files"][0]),
        lambda index: index["files"][0].__setitem__(0, "../out"),
        lambda index: index["files"][0].__setitem__(1, 1 << 60),
        lambda index: index["files"][0].__setitem__(1, -1),
        lambda index: index["files"][0].__setitem__(2, "0" * 64),
        lambda index: index["files"][0][3].pop(),
        lambda index: index["files"][0][3][0].__setitem__(0, "exec"),
        lambda index: index["files"][0][3][0].__setitem__(1, 1 << 62),
        lambda index: index["files"][0][3][0].__setitem__(4, [1 << 40]),
        lambda index: index["files"][0][3].append(["file", 0, "nowhere", 0, []]),
        lambda index: index["files"][0][3][1].__setitem__(2, "unknown"),
        lambda index: index["files"][0][3][-1].__setitem__(2, "unknown"),
        lambda index: index["files"][0][3][-1].__setitem__(3, 7),
        lambda index: index["tensors"].update(w=[0, 1 << 50, 8, 0]),
        lambda index: index["tensors"].update(w=[9, 0, 8, 0]),
        lambda index: index["tensors"].update(w=None),
        lambda index: index.update(folder=True),
        lambda index: index.update(old_files={"../x": [1, "00"]}),
        lambda index: index.update(old_files={"x": [1, "00"]}),
        lambda index: index.clear(),
    ],
)
def test_an_index_that_lies_is_an_error(change: Callable[[dict[str, Any]], object], small: bytes) -> None:
    assert tried(with_index(small, lambda index: None))
    assert not tried(with_index(small, change))
    assert not os.path.exists("../out")


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.update(version=1),
        lambda index: index.pop("errors"),
        lambda index: index.update(errors=[0.5]),
        lambda index: index.update(errors=[-0.5, 0.1]),
        lambda index: index.update(errors=[1, 1]),
        lambda index: index["files"][0][3][-1].__setitem__(0, "xor"),
        lambda index: [segment.__setitem__(3, 7) for segment in index["files"][0][3] if segment[0] == "signs"],
    ],
)
def test_an_index_with_signs_that_lies_is_an_error(change: Callable[[dict[str, Any]], object], signed: bytes) -> None:
    assert tried(with_index(signed, lambda index: None))
    assert not tried(with_index(signed, change))


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc/x", "x\0y", ".ckpt-journal"])
def test_a_patch_of_a_folder_writes_nowhere_else(name: str) -> None:
    write(base(), "old")
    write(tuned(), "new")
    cs.make_patch("old", "new", "d.ckptpatch")
    raw = with_index(Path("d.ckptpatch").read_bytes(), lambda index: index["files"][0].__setitem__(0, name))
    Path("d.ckptpatch").write_bytes(raw)
    with pytest.raises(cs.FormatError, match="is not a valid file name"):
        cs.apply_patch("old", "d.ckptpatch", "out")
    assert not os.path.exists("out")


def test_a_patch_that_claims_to_make_a_petabyte_is_an_error_at_once(small: bytes) -> None:
    def grow(index: dict[str, Any]) -> None:
        index["files"][0][1] += 1 << 50
        index["files"][0][3].append(["same", 1 << 50, "w", 0, []])

    Path("d.ckptpatch").write_bytes(with_index(small, grow))
    with pytest.raises(cs.OutputError, match="are free"):
        cs.apply_patch("old.safetensors", "d.ckptpatch", "out.safetensors")


@pytest.mark.long
def test_an_index_of_very_many_values_is_not_read(small: bytes) -> None:
    raw = with_index(small, lambda index: index.update(files=[[]] * 7_000_000))
    assert len(raw) < 100_000
    Path("d.ckptpatch").write_bytes(raw)
    with pytest.raises(cs.FormatError, match="too many values to read"):
        cs.read_patch("d.ckptpatch")


def test_a_link_out_of_the_folder_is_not_followed() -> None:
    write(base(), "old")
    write(tuned(), "new")
    Path("secret").write_text("secret")
    Path("new/notes.txt").symlink_to("../secret")
    with pytest.raises(cs.SourceError, match="is a link to a file outside its folder"):
        cs.make_patch("old", "new", "d.ckptpatch")


def test_folders_in_the_new_folder_are_named() -> None:
    write(base(), "old")
    write(tuned(), "new")
    Path("new/original").mkdir()
    first, *others = cs.make_patch("old", "new", "d.ckptpatch").notes
    assert first == "subfolders, which are not stored in the patch: original"
    assert all(one.startswith("new: ") for one in others)  # notes on the model itself


def test_a_source_that_changes_meanwhile_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    write(base(), "old.safetensors")
    write(tuned(), "new.safetensors")
    ranges = making._ranges

    def changing(*args: Any) -> Any:
        os.utime("new.safetensors", ns=(1, 1))
        return ranges(*args)

    monkeypatch.setattr(making, "_ranges", changing)
    with pytest.raises(cs.PlanError, match=r"new.safetensors has changed since it was opened"):
        cs.make_patch("old.safetensors", "new.safetensors", "d.ckptpatch")
    assert not os.path.exists("d.ckptpatch")


def test_tied_tensors_of_the_middle_are_known_by_each_name() -> None:
    big, other = torch.randn(50, 40), torch.randn(50, 40)
    torch.save({"a": big, "b": big, "rows": big[10:20]}, "0.pth")
    torch.save({"a": other, "b": other, "rows": other[10:20]}, "1.pth")
    save_file({"a": other + 1, "b": other.clone(), "rows": other[10:20].clone()}, "2.safetensors")
    cs.make_patch("0.pth", "1.pth", "01.ckptpatch")
    cs.make_patch("1.pth", "2.safetensors", "12.ckptpatch")
    done = cs.apply_patch("0.pth", ["01.ckptpatch", "12.ckptpatch"], "out.safetensors")
    assert Path("out.safetensors").read_bytes() == Path("2.safetensors").read_bytes()
    assert (done.old, done.new) == ("0.pth", "2.safetensors")


def test_a_file_of_any_plain_name_is_in_the_patch() -> None:
    write(base(), "old")
    write(tuned(), "new")
    Path("new/ckpt-journal").write_text("mine")
    cs.make_patch("old", "new", "d.ckptpatch")
    cs.apply_patch("old", "d.ckptpatch", "out")
    assert content("out") == content("new")


def test_an_earlier_output_leaves_nothing_of_its_own() -> None:
    cs.apply(cs.convert(write(base(), "old-shards"), dtype="float32"), "out", max_shard_size="20000B")
    Path("out/model.sig").write_text("a signature")
    Path("link").symlink_to("out")
    cs.make_patch("old-shards", write(tuned(), "new"), "d.ckptpatch")
    cs.apply_patch("old-shards", "d.ckptpatch", "link", force=True)
    assert content("out") == content("new")
    assert os.path.islink("link")


@pytest.mark.long
def test_many_renamed_tensors_are_found_by_their_first_bytes() -> None:
    """The number of comparisons grows with the number of tensors, not with its square."""
    state = {f"experts.{n}": torch.full((4, 8), float(n)) for n in range(600)}
    save_file(state, "old.safetensors")
    save_file({key.replace("experts", "moe"): value for key, value in state.items()}, "new.safetensors")
    made = cs.make_patch("old.safetensors", "new.safetensors", "d.ckptpatch")
    assert (made.equal, made.added) == (600, 0)


# Outputs.


@pytest.mark.long
def test_outputs_are_replaced_only_if_asked_and_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = write(base(), "old-shards"), write(tuned(), "new-shards")
    cs.make_patch(old, new, "d.ckptpatch")
    with pytest.raises(cs.OutputError, match="exists"):
        cs.make_patch(old, new, "d.ckptpatch")
    write(base(), "out-shards")
    Path("out-shards/mine.txt").write_text("mine")
    before = content("out-shards")
    with pytest.raises(cs.OutputError, match="contains files of this output"):
        cs.apply_patch(old, "d.ckptpatch", "out-shards")

    def fail(*args: object) -> None:
        raise cs.OutputError("no space.")

    with monkeypatch.context() as patch:
        patch.setattr(applying, "_check_made", fail)
        with pytest.raises(cs.OutputError, match="no space"):
            cs.apply_patch(old, "d.ckptpatch", "out-shards", force=True)
    assert content("out-shards") == before
    cs.apply_patch(old, "d.ckptpatch", "out-shards", force=True)
    assert content("out-shards") == {**content(new), "mine.txt": b"mine"}
    with monkeypatch.context() as patch:
        patch.setattr(making, "_tensors", fail)
        with pytest.raises(cs.OutputError, match="no space"):
            cs.make_patch(old, new, "e.ckptpatch")
    assert not [name for name in os.listdir() if name.startswith((".", "e."))]


def test_a_file_beside_the_weights_is_an_input_too() -> None:
    write(base(), "old")
    write(tuned(), "new")
    with pytest.raises(cs.OutputError, match="is an input"):
        cs.make_patch("old", "new", "new/config.json", force=True)


@pytest.mark.parametrize("output", ["old.safetensors", "new.safetensors"])
def test_an_input_is_never_written(output: str) -> None:
    write(base(), "old.safetensors")
    write(tuned(), "new.safetensors")
    with pytest.raises(cs.OutputError, match="is an input"):
        cs.make_patch("old.safetensors", "new.safetensors", output, force=True)
    cs.make_patch("old.safetensors", "new.safetensors", "d.ckptpatch")
    with pytest.raises(cs.OutputError, match="is an input"):
        cs.apply_patch("old.safetensors", "d.ckptpatch", "d.ckptpatch", force=True)


def test_a_shard_alone_is_not_a_checkpoint_to_patch() -> None:
    write(base(), "old-shards")
    write(tuned(), "new-shards")
    name = next(Path("new-shards").glob("*-00002-*"))
    cs.make_patch("old-shards", name, "d.ckptpatch")
    cs.apply_patch("old-shards", "d.ckptpatch", "one.safetensors")
    assert Path("one.safetensors").read_bytes() == name.read_bytes()


@pytest.mark.long
def test_memory_does_not_grow_with_the_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only some blocks are held at a time: those of the tasks that run or wait, however many there are."""
    save_file({"w": torch.zeros(20 * BLOCK // 4)}, "old.safetensors")
    save_file({"w": torch.ones(20 * BLOCK // 4)}, "new.safetensors")
    alive, most = [0], [0]

    class Counted(making.EncodedBlock):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            alive[0] += 1
            most[0] = max(most[0], alive[0])

        def __del__(self) -> None:
            alive[0] -= 1

    monkeypatch.setattr(making, "EncodedBlock", Counted)
    cs.make_patch("old.safetensors", "new.safetensors", "d.ckptpatch")
    assert 1 < most[0] <= 2 * THREADS + 3


# Patches with the signs of changes alone.


def fine_tuned(dtype: torch.dtype) -> tuple[State, State]:
    """A model and its fine-tune, with tied tensors, a matrix of several blocks, a vector, and a matrix left alone."""
    draw = torch.Generator().manual_seed(1)
    old = {name: torch.randn(shape, generator=draw).to(dtype) for name, shape in SHAPES.items()}
    new = {
        name: (one + 0.01 * torch.randn(one.shape, generator=draw)).to(dtype) if name != "still.weight" else one.clone()
        for name, one in old.items()
    }
    return old, new


SHAPES = {
    "a.weight": (64, 96),
    "b.weight": (1100, 2048),
    "norm": (96,),
    "still.weight": (8, 64),
    "embed.weight": (50, 32),
}
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("dtype", DTYPES)
def test_signs_add_the_mean_size_of_the_changes(dtype: torch.dtype) -> None:
    old, new = fine_tuned(dtype)
    write(old, "old.safetensors")
    write(new, "new.safetensors")
    made = cs.make_patch("old.safetensors", "new.safetensors", "p", signs="**", exact="embed.weight")
    again = cs.apply_patch("old.safetensors", "p", "again.safetensors")
    found = load_file("again.safetensors")
    assert (made.approximated, made.changed, made.equal, made.added) == (2, 4, 1, 0)
    assert (again.approximated, again.change_error) == (made.approximated, made.change_error)
    for name in ("norm", "still.weight", "embed.weight"):
        assert torch.equal(found[name], new[name])
    missing = change = 0.0
    errors = []
    for name in ("a.weight", "b.weight"):
        steps = BLOCK // old[name].element_size()
        wanted = []
        for before, after in zip(old[name].flatten().split(steps), new[name].flatten().split(steps), strict=True):
            delta = after.float() - before.float()
            scale = delta.abs().double().mean().float()
            wanted.append((before.float() + torch.where(delta > 0, scale, -scale)).to(dtype))
        assert torch.equal(found[name].flatten(), torch.cat(wanted))
        error = (found[name].double() - new[name].double()).square().sum().item()
        missing, change = missing + error, change + (new[name].double() - old[name].double()).square().sum().item()
        errors.append((error / new[name].double().square().sum().item()) ** 0.5)
    assert made.change_error == pytest.approx((missing / change) ** 0.5, rel=1e-6)
    assert made.weight_error == pytest.approx(max(errors), rel=1e-6)
    assert 0.6 < made.change_error < 0.66  # of normal changes sqrt(1 - 2 / pi) = 0.603, and rounding
    assert made.nbytes < made.new_nbytes / (6 * old["a.weight"].element_size())


def test_blocks_that_take_less_space_exactly_are_exact() -> None:
    old, new = fine_tuned(torch.bfloat16)
    new["a.weight"] = old["a.weight"].clone()
    new["a.weight"][3, 5] *= 2
    new["b.weight"] = new["b.weight"].clone()
    new["b.weight"][7, 7] = torch.inf  # of its first block no sign is of use
    write(old, "old.safetensors")
    write(new, "new.safetensors")
    made = cs.make_patch("old.safetensors", "new.safetensors", "p", signs=["*.weight"], exact=["embed.weight"])
    cs.apply_patch("old.safetensors", "p", "again.safetensors")
    found = load_file("again.safetensors")
    first = BLOCK // 2
    assert made.approximated == 1
    assert torch.equal(found["a.weight"], new["a.weight"])
    assert torch.equal(found["b.weight"].flatten()[:first], new["b.weight"].flatten()[:first])
    assert not torch.equal(found["b.weight"].flatten()[first:], new["b.weight"].flatten()[first:])


@pytest.mark.long
def test_tied_tensors_are_exact_if_one_of_them_is() -> None:
    old, new = fine_tuned(torch.float32)
    for state, path in ((old, "old.pth"), (new, "new.pth")):
        state["head.weight"] = state["embed.weight"]
        torch.save(state, path)
    said = cs.make_patch("old.pth", "new.pth", "p", signs=["head.weight"], exact=["embed.weight"])
    assert said.approximated == 0
    assert said.notes == (
        "no tensor is approximated: the patterns select no matrix of floats whose changes need much space",
    )
    assert cs.make_patch("old.pth", "new.pth", "p", signs=["head.weight"], force=True).approximated == 2


@pytest.mark.parametrize(
    ("signs", "exact", "wrong"),
    [
        (["layer.*"], [], 'signs="layer.*" matches none of the 5 new keys'),
        (["**"], ["nothing"], 'exact="nothing" matches none'),
        ([], ["**"], "exact needs signs"),
    ],
)
def test_patterns_that_cannot_be_meant_are_errors(signs: list[str], exact: list[str], wrong: str) -> None:
    old, new = fine_tuned(torch.bfloat16)
    write(old, "old.safetensors")
    write(new, "new.safetensors")
    with pytest.raises(cs.ConfigError if "needs" in wrong else cs.PatternError, match=re.escape(wrong)):
        cs.make_patch("old.safetensors", "new.safetensors", "p", signs=signs, exact=exact)
    assert not Path("p").exists()


@pytest.mark.long
def test_patches_follow_one_with_signs(ckpt: Callable[..., Result]) -> None:
    old, new = fine_tuned(torch.bfloat16)
    third = {name: one + 1 for name, one in new.items()}
    write(old, "old.safetensors")
    write(new, "new.safetensors")
    write(third, "third.safetensors")
    done = ckpt("patch", "make", "old.safetensors", "new.safetensors", "-o", "p", "--signs", "**")
    assert done.code == 0, done.err
    assert re.search(
        r"approximate 3 tensors: only the signs of their changes are stored; the error is \d\d\.\d % of the changes",
        " ".join(done.out.split()),
    )
    cs.apply_patch("old.safetensors", "p", "near.safetensors")
    done = ckpt("patch", "apply", "old.safetensors", "p", "-o", "n.safetensors")
    assert "they differ from the new checkpoint" in " ".join(done.out.split())
    assert ckpt("verify", "near.safetensors", "--patch", "p").code == 0
    cs.make_patch("near.safetensors", "third.safetensors", "q")
    cs.apply_patch("old.safetensors", ["p", "q"], "again.safetensors")
    assert content("again.safetensors").popitem()[1] == content("third.safetensors").popitem()[1]
    assert "approximate" in ckpt("patch", "show", "p").out


def test_the_commands(ckpt: Callable[..., Result]) -> None:
    write(base(), "old.safetensors")
    write(tuned(), "new.safetensors")
    done = ckpt("patch", "make", "old.safetensors", "new.safetensors", "-o", "d.ckptpatch")
    assert "4 equal, 2 changed, 2 new" in done.out
    assert "ckpt patch apply old.safetensors d.ckptpatch -o OUT" in done.out
    assert "from old.safetensors" in ckpt("patch", "show", "d.ckptpatch").out
    done = ckpt("patch", "apply", "old.safetensors", "d.ckptpatch", "-o", "out.safetensors")
    assert (done.code, "wrote out.safetensors" in done.out) == (0, True)
    assert Path("out.safetensors").read_bytes() == Path("new.safetensors").read_bytes()
    assert ckpt("patch", "make", "old.safetensors", "new.safetensors").code == 2
    assert ckpt("patch", "make", "old.safetensors", "new.safetensors", "-o", "x", "--level", "0").code == 2
    done = ckpt("inspect", "d.ckptpatch")
    assert (done.code, "ckpt patch show" in done.err) == (3, True)
    done = ckpt("patch", "show", "old.safetensors")
    assert (done.code, "is not a patch" in done.err) == (3, True)


@pytest.mark.costly
@pytest.mark.parametrize("form", ["{}.safetensors", "{}", "{}-shards"])
def test_an_output_is_verified_by_its_patch(form: str, ckpt: Callable[..., Result]) -> None:
    old, new, out = (form.format(name) for name in ("old", "new", "out"))
    write(base(), old), write(tuned(), new)
    cs.make_patch(old, new, "d.ckptpatch")
    done = ckpt("patch", "apply", old, "d.ckptpatch", "-o", out)
    assert f"next: ckpt verify {out} --patch d.ckptpatch" in done.out
    done = ckpt("verify", out, "--patch", "d.ckptpatch")
    assert (done.code, f"{len(tuned())} of {len(tuned())} tensors" in done.out, f"verified {out}" in done.out) == (
        0,
        True,
        True,
    )
    found = cs.verify(out, patch="d.ckptpatch")
    assert (found.ok, found.checked, found.compared, found.patch) == (True, len(tuned()), len(tuned()), "d.ckptpatch")
    assert found.recipe is (old == "old" or "shards" in form)  # a folder is an output of ckpt, and has its recipe
    wrong = cs.verify(old, patch="d.ckptpatch")
    assert wrong.failed
    assert wrong.compared < len(tuned())


def test_each_file_of_an_output_is_compared_with_the_patch(ckpt: Callable[..., Result]) -> None:
    write(base(), "old"), write(tuned(), "new")
    cs.make_patch("old", "new", "d.ckptpatch")
    cs.apply_patch("old", "d.ckptpatch", "out")
    for name in ("config.json", "tokenizer.model"):
        data = bytearray(Path("out", name).read_bytes())
        data[-1] ^= 1
        Path("out", name).write_bytes(data)
    Path("out/more.txt").write_text("more")
    Path("out/model.safetensors").unlink()
    found = cs.verify("out", patch="d.ckptpatch")
    assert {one.key: one.why for one in found.failed} == {
        "config.json": "does not have the SHA-256 that is stored in the patch",
        "tokenizer.model": "does not have the SHA-256 that is stored in the patch",
        "model.safetensors": "cannot be read: out/model.safetensors does not exist",
    }
    assert [(note.name, note.why) for note in found.notes] == [("more.txt", "in the folder, but not in the patch")]
    assert found.compared == 0
    done = ckpt("verify", "out", "--patch", "d.ckptpatch")
    assert (done.code, "2 files" in done.out) == (1, True)
    assert json.loads(ckpt("verify", "out", "--patch", "d.ckptpatch", "--json").out)["patch"] == "d.ckptpatch"


def test_a_file_is_not_the_folder_that_a_patch_makes() -> None:
    write(base(), "old"), write(tuned(), "new"), write(tuned(), "new.safetensors")
    cs.make_patch("old", "new", "folder.ckptpatch")
    cs.make_patch("old", "new.safetensors", "file.ckptpatch")
    (failure,) = cs.verify("new.safetensors", patch="folder.ckptpatch").failed
    assert failure.why == "is one file, but the patch makes a folder"
    (failure,) = cs.verify("new", patch="file.ckptpatch").failed
    assert failure.why == "is a folder, but the patch makes one file"
    assert cs.verify("new.safetensors", patch="file.ckptpatch").ok


def test_a_folder_is_not_written_under_the_name_of_a_file() -> None:
    write(base(), "old"), write(tuned(), "new")
    cs.make_patch("old", "new", "p.ckptpatch")
    with pytest.raises(cs.OutputError, match=r"a folder of 4 files, but x\.safetensors is the name of a file") as error:
        cs.apply_patch("old", "p.ckptpatch", "x.safetensors")
    assert error.value.hint == "Give the path of a folder, such as x/."
    shutil.copy("p.ckptpatch", "p")
    with pytest.raises(cs.OutputError) as error:
        cs.apply_patch("old", "p", "p.safetensors")
    assert error.value.hint == "Give the path of a folder, such as p-model/."
    assert not Path("x.safetensors").exists()
    cs.apply_patch("old", "p.ckptpatch", "x")
    assert sorted(os.listdir("x")) == sorted(os.listdir("new"))


def test_an_output_of_a_patch_without_the_patch_says_how_it_is_verified(ckpt: Callable[..., Result]) -> None:
    write(base(), "old.safetensors"), write(tuned(), "new.safetensors")
    cs.make_patch("old.safetensors", "new.safetensors", "d.ckptpatch")
    cs.apply_patch("old.safetensors", "d.ckptpatch", "out.safetensors")
    done = ckpt("verify", "out.safetensors")
    assert (done.code, "or wrote it with ckpt patch apply" in done.err, "--patch FILE" in done.err) == (2, True, True)
    done = ckpt("verify", "out.safetensors", "--patch", "d.ckptpatch", "--sample", "1")
    assert (done.code, "so --sample has no effect" in done.err) == (2, True)
    with pytest.raises(cs.ConfigError, match="but the output is in memory"):
        cs.verify(tuned(), patch="d.ckptpatch")


def test_what_is_wrong_with_the_models_is_said() -> None:
    """Notes that both models have are given once, for the new one; those of the old one alone, too."""
    state = {f"layers.{number}.weight": torch.randn(64, 64) for number in range(4)}
    wrong = {**state, "layers.1.weight": state["layers.1.weight"] * torch.nan}
    save_file(state, "right.safetensors")
    save_file(wrong, "wrong.safetensors")
    save_file({**wrong, "norm": torch.ones(8)}, "both.safetensors")
    (said,) = cs.inspect("wrong.safetensors").notes
    assert "NaN" in said
    assert cs.make_patch("right.safetensors", "wrong.safetensors", "a.p").notes == (f"wrong.safetensors: {said}",)
    assert cs.make_patch("wrong.safetensors", "right.safetensors", "b.p").notes == (f"wrong.safetensors: {said}",)
    assert cs.make_patch("wrong.safetensors", "both.safetensors", "c.p").notes == (f"both.safetensors: {said}",)
    assert cs.apply_patch("right.safetensors", "a.p", "out.safetensors").notes == (f"out.safetensors: {said}",)
    found = cs.verify("out.safetensors", patch="a.p")
    assert found.ok
    assert [one.why for one in found.notes] == [said]
    assert cs.apply_patch("wrong.safetensors", "b.p", "mended.safetensors").notes == ()
    assert cs.verify("mended.safetensors", patch="b.p").notes == ()
