"""Code in a child process gives its result, and changes nothing outside the process."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ckptsurgeon.destinations.torch_module.child import in_child

FLAGS = (
    os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_RDONLY | os.O_TRUNC, os.O_RDONLY | os.O_APPEND,
)  # fmt: skip


def test_the_result_of_code_that_reads_comes_back() -> None:
    Path("there").write_text("kept")
    assert in_child(lambda: (Path("there").read_text(), os.close(os.open("there", os.O_RDONLY)))) == ("kept", None)


@pytest.mark.costly
@pytest.mark.parametrize(
    "change",
    [
        lambda: Path("there").write_text("lost"),
        lambda: Path("new").touch(),
        lambda: tempfile.mkstemp(dir=".")[1],
        lambda: os.open("new", os.O_RDONLY | os.O_CREAT),
        *(lambda flags=flags: os.open("there", flags) for flags in FLAGS),
        lambda: os.remove("there"),
        lambda: os.mkdir("new"),
        lambda: os.rename("there", "new"),
    ],
)
def test_code_that_would_change_a_file_is_ended_before_it_does(change: Callable[[], object]) -> None:
    Path("there").write_text("kept")
    assert in_child(change) is None
    assert (os.listdir(), Path("there").read_text()) == (["there"], "kept")
