"""What is no regular file is refused before it is opened for reading."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..promises.clauses import SPECIAL, clause
from .case import Case, Refusal, broken, each
from .holding import held


def fifo() -> str:
    os.mkfifo("x.pth")
    return "x.pth"


def bound() -> str:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("x.pth")  # stays in the folder when it is closed
    return "x.pth"


def link(target: str) -> Callable[[], str]:
    def make() -> str:
        os.symlink(target, "x.pth")
        return "x.pth"

    return make


def linked_fifo() -> str:
    os.mkfifo("pipe")
    return link("pipe")()


def folder(*names: str) -> Callable[[], str]:
    """A folder with FIFOs of these names."""

    def make() -> str:
        os.mkdir("m")
        for name in names:
            os.mkfifo(f"m/{name}")
        return "m"

    return make


def loop_of_folders() -> str:
    os.mkdir("m")
    os.symlink(".", "m/m")
    return "m/" * 20


def zero() -> str:
    os.makedirs("d/global_step1")
    Path("d/latest").write_text("global_step1")
    os.mkfifo("d/global_step1/mp_rank_00_model_states.pt")
    return "d"


source = Refusal("SourceError", "")
CASES: dict[str, tuple[Refusal, Callable[[], str]]] = {
    "a FIFO": (source, fifo),
    "a socket": (source, bound),
    "a character device": (source, lambda: "/dev/zero"),
    "a device without end that is random": (source, lambda: "/dev/urandom"),
    "a terminal": (source, lambda: "/dev/tty"),
    "a link to a device": (source, link("/dev/zero")),
    "a link to a FIFO": (source, linked_fifo),
    "a link to nowhere": (source, link("nowhere")),
    "a link to itself": (source, link("x.pth")),
    "a name with a NUL": (source, lambda: "x\0.pth"),
    "a name that is too long": (source, lambda: "x" * 300),
    "a folder in itself": (broken("no checkpoint"), loop_of_folders),
    "a folder of a FIFO": (broken("no checkpoint"), folder("model.safetensors")),
    "a folder whose index is a FIFO": (broken("no checkpoint"), folder("model.safetensors.index.json")),
    "a folder whose metadata is a FIFO": (broken("no checkpoint"), folder(".metadata")),
    "a folder whose states are a FIFO": (broken("no checkpoint"), zero),
}  # fmt: skip


@each([Case(name, SPECIAL, refusal, make) for name, (refusal, make) in CASES.items()])
def test_what_is_no_regular_file_is_refused(case: Case, ckpt: Any) -> None:
    held(case, ckpt)


@clause(SPECIAL)
@pytest.mark.parametrize("name", ["a FIFO", "a socket", "a character device", "a link to a FIFO", "a link to a device"])
def test_the_error_says_that_only_regular_files_are_read(name: str, ckpt: Any) -> None:
    assert "only regular files are read" in ckpt("inspect", CASES[name][1]()).err
