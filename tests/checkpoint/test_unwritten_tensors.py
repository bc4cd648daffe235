"""Tensors whose bytes were never written: a download in several parts that was interrupted leaves holes, read as zeros."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file

from ckptsurgeon.checkpoint.opening import open_checkpoint
from ckptsurgeon.storage.descriptors import unwritten_ranges

Run = Callable[..., Any]
PAGE = 4096
SAID = "are zeros, wholly or in part, because the bytes were never written to the file"
WHOLE = {f"layers.{number}.weight": torch.ones(4, PAGE, dtype=torch.uint8).view(torch.float16) for number in range(4)}


def with_hole(path: str, content: bytes, begin: int, end: int) -> None:
    """Write a file with a hole from ``begin`` to ``end``."""
    with open(path, "wb") as file:
        file.write(content[:begin])
        file.seek(end)
        file.write(content[end:])
        file.truncate(len(content))


@pytest.fixture
def half() -> str:
    """A safetensors file of which the last two and a half tensors are missing."""
    content = save(WHOLE)
    with_hole("half.safetensors", content, len(content) - 10 * PAGE, len(content))
    return "half.safetensors"


def note_of(path: str) -> str:
    with open_checkpoint(path) as checkpoint:
        return "\n".join(checkpoint.notes)


def test_the_note_names_tensors_that_are_wholly_or_partly_missing(half: str) -> None:
    assert note_of(half).startswith(f"3 tensors {SAID} (was a download interrupted?): layers.1.weight, layers.2")


def test_a_hole_within_one_tensor_is_found() -> None:
    content = save(WHOLE)
    begin = len(content) - 7 * PAGE  # 4 pages a tensor, so in the last but one, and not at the border of a block
    with_hole("x.safetensors", content, begin, begin + 2 * PAGE)
    assert note_of("x.safetensors").startswith("1 tensor is zeros, wholly or in part")
    assert note_of("x.safetensors").endswith(": layers.2.weight")


def test_torch_files_and_shards_have_the_note_too() -> None:
    torch.save(WHOLE, "whole.pth", _use_new_zipfile_serialization=False)
    content = Path("whole.pth").read_bytes()
    with_hole("x.pth", content, len(content) - 3 * PAGE, len(content) - PAGE)  # within the last storage
    assert "never written" in note_of("x.pth")
    places = {key: f"model-{number + 1:05}-of-00004.safetensors" for number, key in enumerate(WHOLE)}
    Path("m").mkdir()
    for key, name in places.items():
        save_file({key: WHOLE[key]}, f"m/{name}")
    Path("m/model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    one = save({"layers.2.weight": WHOLE["layers.2.weight"]})
    with_hole("m/model-00003-of-00004.safetensors", one, len(one) - 4 * PAGE, len(one))
    assert "1 tensor is zeros" in note_of("m")
    assert "layers.2.weight" in note_of("m")


def test_zeros_that_were_written_are_no_note() -> None:
    save_file({key: torch.zeros_like(one) for key, one in WHOLE.items()}, "zeros.safetensors")
    assert "never written" not in note_of("zeros.safetensors")


VERBS = {
    "inspect": ("inspect", "half.safetensors"),
    "diff": ("diff", "whole.safetensors", "half.safetensors"),
    "check": ("check", "half.safetensors"),
    "convert": ("convert", "half.safetensors", "-o", "out.safetensors"),
    "cast": ("convert", "half.safetensors", "-o", "out.safetensors", "--dtype", "bf16"),
    "filter": ("filter", "half.safetensors", "-o", "out.safetensors", "--exclude", "layers.0"),
    "rename": ("rename", "half.safetensors", "-o", "out.safetensors", "--map", "layers=blocks"),
    "average": ("average", "whole.safetensors", "half.safetensors", "-o", "out.safetensors"),
    "merge": (
        "merge",
        "whole.safetensors",
        "half.safetensors",
        "--method",
        "linear",
        "--weights",
        "1,1",
        "-o",
        "out.safetensors",
    ),
    "transplant": ("transplant", "half.safetensors", "whole.safetensors", "-o", "out.safetensors"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_it(verb: str, half: str, ckpt: Run) -> None:
    save_file(WHOLE, "whole.safetensors")
    done = ckpt(*VERBS[verb])
    assert done.code in (0, 1), done
    assert "because the bytes were never written" in " ".join((done.out + done.err).split()), done


def test_check_warns(half: str, ckpt: Run) -> None:
    save_file(WHOLE, "whole.safetensors")
    assert "WARN  shard" in ckpt("check", half).out
    assert "never written" not in ckpt("check", "whole.safetensors").out


def test_the_note_is_there_after_the_file_is_closed(half: str) -> None:
    checkpoint = open_checkpoint(half)
    checkpoint.close()
    assert any("never written" in note for note in checkpoint.notes)


@pytest.mark.skipif(sys.platform != "linux", reason="FIEMAP is a call of Linux")
def test_space_that_was_only_reserved_stays_known_after_it_was_read() -> None:
    """A downloader that reserves space leaves no hole, and SEEK_DATA calls the space data once it is in the cache."""
    content = save(WHOLE)
    Path("x.safetensors").write_bytes(content[: -10 * PAGE])
    with open("x.safetensors", "r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, len(content))
        except OSError:
            pytest.skip("this file system reserves no space")
    for _ in range(2):
        assert "3 tensors are zeros" in note_of("x.safetensors")
        Path("x.safetensors").read_bytes()
    with open("x.safetensors", "r+b") as file:  # written, but perhaps not yet on disk
        file.write(content)
    assert "never written" not in note_of("x.safetensors")


def test_a_file_system_that_does_not_know_holes_has_none(half: str, monkeypatch: pytest.MonkeyPatch) -> None:
    size = os.path.getsize(half)

    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    with open(half, "rb") as file:
        assert [end - begin for begin, end in unwritten_ranges(file.fileno(), size)] == [
            pytest.approx(10 * PAGE, abs=PAGE)
        ]
        monkeypatch.setattr(os, "lseek", refuse)
        monkeypatch.setattr("fcntl.ioctl", refuse)
        assert unwritten_ranges(file.fileno(), size) == ()
