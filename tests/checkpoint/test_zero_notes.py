"""Verbs that read all values notice zeros where a part of a file is missing, wherever they are in the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file

import ckptsurgeon as cs
from ckptsurgeon.checkpoint.opening import open_checkpoint
from ckptsurgeon.checkpoint.zero_notes import seen_zero_notes
from ckptsurgeon.engine.part_receipt import PartReceipt
from ckptsurgeon.storage.read.local import LocalFile
from ckptsurgeon.storage.read.zero_pages import GRID, PAGE, zero_page

Run = Callable[..., Any]
CUT = "the zeros begin or end in the middle of a row of "
ROWS = "of zeros, perhaps because a part of the file is missing"


def model(layers: int = 5) -> dict[str, torch.Tensor]:
    """Layers of two matrices of 512 rows, each of 600 bytes: 600 kB a layer."""
    draw = torch.Generator().manual_seed(0)
    return {
        f"layers.{layer}.{role}.weight": torch.randn(512, 300, generator=draw).half()
        for layer in range(layers)
        for role in ("gate", "up")
    }


@pytest.fixture
def cut() -> str:
    """A file with 100,000 bytes of zeros in its middle, not at the end of a 16th."""
    content = save(model())
    begin = len(content) // 2 - 130_000
    Path("cut.safetensors").write_bytes(content[:begin] + bytes(100_000) + content[begin + 100_000 :])
    save_file(model(), "whole.safetensors")
    return "cut.safetensors"


VERBS = {
    "convert": ("-o", "out.safetensors"),
    "convert to another dtype": ("--dtype", "bf16", "-o", "out.safetensors"),
    "convert to another format": ("-o", "out.pth"),
    "filter": ("--exclude", "layers.0.**", "-o", "out.safetensors"),
    "rename": ("--map", "layers=blocks", "-o", "out.safetensors"),
    "average": ("whole.safetensors", "-o", "out.safetensors"),
    "merge": ("whole.safetensors", "--method", "slerp", "--param", "t=0.5", "-o", "out.safetensors"),
    "transplant": ("whole.safetensors", "-o", "out.safetensors"),
    "diff": ("whole.safetensors", "--values"),
    "inspect": ("--stats",),
}


@pytest.mark.costly
@pytest.mark.parametrize("verb", VERBS)
def test_verbs_that_read_values_note_a_hole_in_the_middle(verb: str, cut: str, ckpt: Run) -> None:
    said = " ".join(open_notes(cut))
    assert CUT not in said
    done = ckpt(verb.partition(" ")[0], cut, *VERBS[verb])
    assert done.code in (0, 1), done
    assert " ".join((done.out + done.err).split()).count(CUT) == 1, done


def open_notes(path: str) -> list[str]:
    with open_checkpoint(path) as checkpoint:
        return list(checkpoint.notes)


def test_verify_notes_it_on_the_output_and_its_source(cut: str) -> None:
    cs.apply(cs.convert(cut), "out.safetensors")
    found = cs.verify("out.safetensors")
    assert found.ok
    assert [Path(one.name).name for one in found.notes if CUT in one.why] == ["out.safetensors", cut]


def test_rows_of_zeros_are_noted_with_their_bytes() -> None:
    state = model()
    state["layers.2.gate.weight"][100:300] = 0
    save_file(state, "x.safetensors")
    receipt = cs.apply(cs.convert("x.safetensors", dtype="f32"), "out.safetensors")
    (said,) = [note for note in receipt.notes if ROWS in note]
    assert f"1 matrix has rows {ROWS}: layers.2.gate.weight (rows 100 to 299: bytes " in said


def shards(hole: bool) -> str:
    Path("m").mkdir()
    places = {}
    for number in range(1, 4):
        state = {f"model.{number}.{key}": value for key, value in model().items()}
        name = f"model-0000{number}-of-00003.safetensors"
        content = save(state)
        begin = len(content) // 2 - 130_000
        Path(f"m/{name}").write_bytes(
            content[:begin] + bytes(100_000) + content[begin + 100_000 :] if hole and number == 3 else content
        )
        places |= dict.fromkeys(state, name)
    Path("m/model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return "m"


@pytest.mark.costly
@pytest.mark.parametrize("hole", [True, False])
def test_shards_have_the_note_once(hole: bool) -> None:
    receipt = cs.apply(cs.convert(shards(hole), dtype="bf16"), "out", max_shard_size="1MB")
    assert sum(CUT in note for note in receipt.notes) == hole


def test_receipts_of_other_processes_have_the_places() -> None:
    receipt = PartReceipt("x", zeros={"m": {"a.safetensors": [4096, 1 << 20]}})
    assert PartReceipt.from_json(json.loads(json.dumps(receipt.to_json()))) == receipt


def test_values_in_memory_have_the_note(cut: str) -> None:
    module = torch.nn.ParameterDict({key.replace(".", "_"): value.float() for key, value in model().items()})
    rules = {key: key.replace(".", "_") for key in model()}
    receipt = cs.load_into(module, cut, map=rules)
    assert sum(CUT in note for note in receipt.notes) == 1


def test_a_note_of_the_plan_is_not_repeated() -> None:
    content = save(model())
    Path("tail.safetensors").write_bytes(content[: len(content) * 3 // 4] + bytes(len(content) - len(content) * 3 // 4))
    plan = cs.convert("tail.safetensors")
    assert sum(CUT in note for note in plan.notes) == 1
    assert sum(CUT in note for note in cs.apply(plan, "out.safetensors").notes) == 1


def test_a_sound_file_and_zeros_on_purpose_have_no_note() -> None:
    state = {**model(), "pad.weight": torch.cat([torch.ones(400, 300), torch.zeros(624, 300)])}
    for key in [*state]:
        if ".up." in key:
            state[key] = state[key] * (torch.rand(512, 300) < 0.5)
    save_file(state, "x.safetensors")
    assert not any("zeros" in note for note in cs.apply(cs.convert("x.safetensors"), "out.safetensors").notes)


def test_pages_of_zeros_are_noticed_once_in_each_block() -> None:
    Path("f").write_bytes(b"\1" * GRID + bytes(GRID) + b"\1" * ((3 << 20) - 2 * GRID) + bytes(2 << 20))
    file = LocalFile("f")
    file.readinto(0, memoryview(bytearray(file.size)))
    assert file.zeros == [GRID, 3 << 20, 4 << 20]
    file.read(GRID, 2 * GRID)
    assert file.zeros[3:] == [GRID]
    file.read(GRID, PAGE)
    assert len(file.zeros) == 4


@pytest.mark.parametrize("size", [0, 1, 7, 8, PAGE - 1])
def test_short_blocks_have_no_page(size: int) -> None:
    assert zero_page(memoryview(bytes(size))) is None


def test_taken_zeros_are_forgotten(cut: str) -> None:
    with open_checkpoint(cut) as checkpoint:
        (file,) = checkpoint.open_files().values()
        file.read(0, file.size)
        assert len(list(seen_zero_notes([checkpoint]))) == 1
        assert not list(seen_zero_notes([checkpoint]))
