"""Zeros that begin or end in the middle of a row: a file with missing parts was copied, and the copy has zeros there."""

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
from ckptsurgeon.util.notes import is_serious

Run = Callable[..., Any]
SAID = "the zeros begin or end in the middle of a row of "


def model() -> dict[str, torch.Tensor]:
    """Four matrices of 512 rows and 300 columns, each after a vector: 1.2 MB."""
    draw = torch.Generator().manual_seed(0)
    return {
        key: value
        for layer in range(4)
        for key, value in (
            (f"layers.{layer}.norm.weight", torch.ones(256, dtype=torch.float16)),
            (f"layers.{layer}.up.weight", torch.randn(512, 300, generator=draw).half() + 1e-3),
        )
    }


def with_zeros(path: str, content: bytes, begin: int, end: int) -> str:
    Path(path).write_bytes(content[:begin] + bytes(end - begin) + content[end:])
    return path


def note_of(path: str) -> str:
    with open_checkpoint(path) as checkpoint:
        return "\n".join(checkpoint.notes)


def warning_of(path: str) -> str:
    return "\n".join(one.what for row in cs.check(path).rows if row.id == "shard" for one in row.found)


@pytest.fixture
def tail() -> str:
    """A file of which the last 40 % are zeros."""
    content = save(model())
    return with_zeros("tail.safetensors", content, int(len(content) * 0.6), len(content))


def test_a_missing_end_is_noted(tail: str) -> None:
    assert note_of(tail) == (
        f"3 tensors are zeros, wholly or in part: {SAID}layers.2.up.weight (was a file with missing parts copied?): "
        "layers.2.up.weight, layers.3.norm.weight, layers.3.up.weight"
    )


VERBS = {
    "inspect": (),
    "convert": ("-o", "out.safetensors"),
    "filter": ("--exclude", "layers.0.**", "-o", "out.safetensors"),
    "average": ("whole.safetensors", "-o", "out.safetensors"),
    "transplant": ("whole.safetensors", "-o", "out.safetensors"),
    "diff": ("whole.safetensors",),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_the_note(verb: str, tail: str, ckpt: Run) -> None:
    save_file(model(), "whole.safetensors")
    done = ckpt(verb, tail, *VERBS[verb])
    assert done.code in (0, 1), done
    assert SAID in " ".join((done.out + done.err).split()), done


@pytest.mark.parametrize("part", range(16))
def test_the_end_of_each_part_of_a_download_is_looked_at(part: int) -> None:
    content = save(model())
    end = len(content) * (part + 1) // 16
    path = with_zeros("part.safetensors", content, end - 12_345, end)
    assert SAID in note_of(path)
    assert SAID in warning_of(path)


def test_check_finds_zeros_anywhere() -> None:
    content = save(model())
    middle = len(content) // 2 - 50_000
    path = with_zeros("x.safetensors", content, middle, middle + 10_001)
    assert note_of(path) == ""
    assert warning_of(path).startswith(f"1 tensor is zeros, wholly or in part: {SAID}layers.")
    assert warning_of("x.safetensors").count("middle of a row") == 1


@pytest.mark.costly
@pytest.mark.parametrize("width", [300, 3000])
def test_check_finds_a_single_page_of_the_file(width: int) -> None:
    """The page is lost within a few rows, or within one."""
    content = save({key: value.repeat(1, width // 300) if value.ndim > 1 else value for key, value in model().items()})
    begin = (len(content) // 2 - 50_000) // 4096 * 4096
    assert warning_of(with_zeros("x.safetensors", content, begin, begin + 4096)).startswith(
        f"1 tensor is zeros, wholly or in part: {SAID}"
    )
    for shifted in (begin + 64, begin + 1000):  # no page of the file: perhaps on purpose
        assert warning_of(with_zeros("x.safetensors", content, shifted, shifted + 4096)) == ""


def test_torch_files_and_shards_have_the_note_too() -> None:
    torch.save(model(), "x.pth")
    content = Path("x.pth").read_bytes()
    record = content.index(model()["layers.2.up.weight"].numpy().tobytes()[:64])
    with_zeros("x.pth", content, record + 70_000, record + 200_000)
    assert SAID in warning_of("x.pth")
    Path("m").mkdir()
    names = {number: f"model-0000{number}-of-00002.safetensors" for number in (1, 2)}
    places = {f"{number}.{key}": name for number, name in names.items() for key in model()}
    for number, name in names.items():
        save_file({f"{number}.{key}": value for key, value in model().items()}, f"m/{name}")
    Path("m/model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    content = Path(f"m/{names[2]}").read_bytes()
    with_zeros(f"m/{names[2]}", content, 700_000, len(content))
    assert f"{SAID}2.layers." in note_of("m")


def layers(number: int, lost: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Layers of three matrices and a norm; those of ``lost`` are zeros."""
    draw, state = torch.Generator().manual_seed(0), dict[str, torch.Tensor]()
    for layer in range(number):
        for role in ("down", "gate", "up"):
            state[f"layers.{layer}.{role}.weight"] = torch.randn(200, 100, generator=draw)
        state[f"layers.{layer}.zz_norm.weight"] = torch.ones(100)
    return {key: value.zero_() if int(key.split(".")[1]) in lost else value for key, value in state.items()}


def test_matrices_that_are_lost_from_the_beginning_of_one_on_are_noted() -> None:
    save_file(layers(6, (4, 5)), "x.safetensors")
    said = "6 matrices are all zeros, one after the other in the file, although those of other layers are not"
    assert note_of("x.safetensors").startswith(f"{said} (was a file with missing parts copied?): layers.4.down.weight")
    assert warning_of("x.safetensors").startswith(said)
    assert is_serious(note_of("x.safetensors")) is False


def test_statistics_of_experts_that_got_no_inputs_are_not() -> None:
    save_file({f"{key}.gram": value for key, value in layers(6, (4, 5)).items()}, "x.safetensors")
    assert note_of("x.safetensors") == warning_of("x.safetensors") == ""


@pytest.mark.parametrize("name", ["all", "one role", "none", "new blocks"])
def test_zeros_that_all_layers_or_one_role_have_are_not(name: str) -> None:
    state = layers(6, tuple(range(6)) if name == "all" else ())
    for key, value in state.items():
        if name == "one role" and ".up." in key:
            value.zero_()
        if name == "new blocks" and "layers.5" in key and ".gate." not in key and "norm" not in key:
            value.zero_()  # outputs of attention and of the feed-forward network
    save_file(state, "x.safetensors")
    assert note_of("x.safetensors") == warning_of("x.safetensors") == ""


BLOCK = torch.ones(300, 300)
HEALTHY = {
    "zero rows": torch.cat([torch.ones(700, 300), torch.zeros(324, 300)]),
    "zero rows first": torch.cat([torch.zeros(700, 300), torch.ones(324, 300)]),
    "zero columns": torch.cat([torch.ones(700, 300), torch.zeros(700, 1100)], 1),
    "zero columns first": torch.cat([torch.zeros(700, 1100), torch.ones(700, 300)], 1),
    "rows and columns added": torch.nn.functional.pad(torch.ones(300, 300), (0, 700, 0, 700)),
    "rows and columns added before": torch.nn.functional.pad(torch.ones(300, 300), (700, 0, 700, 0)),
    "identity": torch.eye(1100),
    "blocks": torch.block_diag(BLOCK, BLOCK, BLOCK, BLOCK),
    "lower triangle": torch.ones(1024, 1024).tril(),
    "upper triangle": torch.ones(1024, 1024).triu(),
    "band": torch.ones(1024, 1024).tril() * torch.ones(1024, 1024).triu(-100),
    "mask": torch.ones(1, 1, 1024, 1024, dtype=torch.bool).tril(),
    "kernels of a new channel": torch.cat([torch.ones(300, 200, 3, 3), torch.zeros(100, 200, 3, 3)]),
    "kernels with new inputs": torch.cat([torch.ones(300, 200, 3, 3), torch.zeros(300, 300, 3, 3)], 1),
    "experts": torch.cat([torch.ones(2, 200, 300), torch.zeros(2, 200, 300)]),
    "all zeros": torch.zeros(1024, 512),
    "a vector": torch.cat([torch.ones(100_000), torch.zeros(300_000), torch.ones(100_000)]),
    "few values": torch.zeros(1024, 1024).index_fill(1, torch.tensor([500]), 1.0),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_zeros_on_purpose_are_not_noted(name: str) -> None:
    for path, tensors in (
        ("alone", {"x": HEALTHY[name]}),
        (
            "beside",
            {"a": torch.ones(333, 111), "x": HEALTHY[name], "y": torch.zeros(100_000), "z": torch.ones(77, 999)},
        ),
    ):
        save_file({key: value.contiguous() for key, value in tensors.items()}, f"{path}.safetensors")
        assert note_of(f"{path}.safetensors") == ""
        assert warning_of(f"{path}.safetensors") == ""
