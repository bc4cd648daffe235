"""What is wrong in a plan or a recipe is said before what is wrong with the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs

Run = Callable[..., Any]
OUTPUTS = [(), ("-o", "x.pth"), ("-o", "-"), ("-o", "x.xyz"), ("-o", "x.pth", "--to", "magic"), ("-n",),
           ("-o", "x", "--max-shard-size", "5")]  # fmt: skip


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("p.json", b'{"a": 1,', "the plan p.json is not valid JSON: Expecting property name enclosed in double quotes: "
         "line 1 column 9 (char 8)."),
        ("p.json", b"", "the plan p.json is not valid JSON: Expecting value: line 1 column 1 (char 0)."),
        ("p.json", b"\xff\xfe", "the plan p.json is not valid JSON: it is not UTF-8."),
        ("r.yaml", b"verb: [convert\nsource: v\n", "r.yaml, line 2: it is not valid YAML at column 7: "),
        ("r.yml", b"verb: 'convert\n", "r.yml, line 2: it is not valid YAML at column 1: "),
        ("r.yaml", b"\tverb: x\n", "r.yaml, line 1: it is not valid YAML at column 1: "),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be_read_is_said_to_be_that_first(
    name: str, data: bytes, said: str, output: tuple[str, ...], ckpt: Run
) -> None:
    Path(name).write_bytes(data)
    done = ckpt("apply", name, *output)
    assert done.code == 2
    assert done.err.startswith(f"error: {said}"), done.err


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_recipe_of_mergekit_is_read_first_too(output: tuple[str, ...], ckpt: Run) -> None:
    Path("mk.yaml").write_text("merge_method: [linear\n")
    done = ckpt("merge", "mk.yaml", *output)
    assert done.code == 2
    assert done.err.startswith("error: mk.yaml, line 2: it is not valid YAML at column 1: "), done.err


def test_in_python_it_is_the_same() -> None:
    Path("p.json").write_text("{")
    with pytest.raises(cs.ConfigError, match="is not valid JSON"):
        cs.apply("p.json")


def test_of_a_sound_plan_the_output_is_missed(ckpt: Run) -> None:
    torch.save({"a": torch.ones(2)}, "a.pth")
    Path("p.json").write_text(ckpt("convert", "a.pth", "-n", "--json").out)
    for output, said in (
        ((), "--output"),
        (("-o", "-"), "-o - is not a file name"),
        (("-o", "x.xyz"), "does not belong to a known format"),
    ):
        done = ckpt("apply", "p.json", *output)
        assert done.code == 2
        assert said in done.err
    assert ckpt("apply", "p.json", "-o", "x.pth").code == 0
