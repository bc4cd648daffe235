"""Files on this machine: who owns the descriptor, and what a folder lists."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.storage.read.spec import parse_spec
from ckptsurgeon.storage.read.uri import open_source


def test_a_copied_checkpoint_shares_its_file() -> None:
    torch.save({"a": torch.ones(2)}, "x.pth")
    found = cs.open_checkpoint("x.pth")
    for made in (copy.deepcopy(found), copy.copy(found)):
        assert made.tensor("a").tolist() == [1.0, 1.0]
        del made
    assert found.tensor("a").tolist() == [1.0, 1.0]


def test_an_open_file_cannot_be_pickled() -> None:
    Path("x").write_bytes(b"x")
    with pytest.raises(TypeError, match="x is open and cannot be pickled"):
        pickle.dumps(open_source("x"))


@pytest.mark.long
def test_a_checkpoint_that_nobody_closes_is_no_noise_at_the_end_of_python() -> None:
    """Python clears the modules of the package before objects that other modules refer to."""
    torch.save({"a": torch.ones(2)}, "x.pth")
    script = "import os, ckptsurgeon; os.kept = ckptsurgeon.open_checkpoint('x.pth')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_link_to_itself_does_not_hide_the_rest_of_a_folder() -> None:
    os.mkdir("m")
    torch.save({"a": torch.ones(2)}, "m/x.pth")
    os.symlink("loop", "m/loop")
    assert list(cs.open_checkpoint("m")) == ["a"]


@pytest.mark.parametrize("name", ["a\0b", "a\\b", "../a", "/a", "", "b/../../a"])
def test_a_folder_opens_only_plain_names_inside_itself(name: str) -> None:
    os.mkdir("m")
    with pytest.raises(cs.FormatError, match="outside of it"):
        open_source("m").file(name)  # type: ignore[union-attr]


def test_the_longest_beginning_of_a_spec_that_exists_is_the_file() -> None:
    for name in ("a", "a:b", "a:b:c"):
        Path(name).write_bytes(b"")
    assert (parse_spec("a:b:c:d").uri, parse_spec("a:b:c:d").src) == ("a:b:c", "d")
    assert (parse_spec("a:b:x:d").uri, parse_spec("a:b:x:d").src) == ("a:b", "x")
    assert (parse_spec("a:x:y").uri, parse_spec("a:x:y").src, parse_spec("a:x:y").dst) == ("a", "x", "y")
