"""Indexes of shards that name what is not theirs, or other keys than the shards hold."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from tests.formats.test_sharded import index, shards

from ..promises.clauses import INDEX
from .case import Case, Refusal, broken, each
from .holding import held

AT = "m/model.safetensors.index.json"
Change = Callable[[dict[str, str]], object]


def naming(file: Any) -> Change:
    """An index that says of one key that it is in this file."""
    return lambda weight_map: index(AT, {**weight_map, "a": file})


def text(content: str) -> Change:
    return lambda _: Path(AT).write_text(content)


def outside(weight_map: dict[str, str]) -> None:
    save_file({"a": torch.ones(2)}, "secret.safetensors")
    index(AT, {**weight_map, "a": "../secret.safetensors"})


def fifo(weight_map: dict[str, str]) -> None:
    os.mkfifo("m/pipe.safetensors")
    index(AT, {**weight_map, "a": "pipe.safetensors"})


def more_than_tensors(weight_map: dict[str, str]) -> None:
    torch.save({"a": torch.ones(2), "b": torch.ones(2), "epoch": [1]}, f"m/{weight_map['a']}")


CHANGES: dict[str, tuple[Refusal, Change]] = {
    "a shard that is not there": (broken("missing shard"), lambda m: os.remove(f"m/{m['c']}")),
    "a shard that is empty": (broken("empty"), lambda m: Path(f"m/{m['c']}").write_bytes(b"")),
    "a shard that is cut short": (broken("InvalidOffset"), lambda m: os.truncate(f"m/{m['c']}", 70)),
    "a shard that is no checkpoint": (broken("unknown format"), lambda m: Path(f"m/{m['c']}").write_text("hello")),
    "a shard that is the index": (broken("index"), naming("model.safetensors.index.json")),
    "a shard with more than tensors": (broken("shard contents"), more_than_tensors),
    "a shard that is a FIFO": (broken("missing shard"), fifo),
    "a shard that is a folder": (broken("missing shard"), lambda m: (os.mkdir("m/d"), naming("d")(m))),
    "a key that the shard lacks": (broken("shard keys"), lambda m: index(AT, {**m, "d": m["a"]})),
    "a key that the index lacks": (broken("shard keys"), lambda m: index(AT, {k: v for k, v in m.items() if k != "b"})),
    "a key in the other shard": (broken("shard keys"), lambda m: index(AT, {**m, "a": m["c"]})),
    "a file outside": (broken("outside"), outside),
    "an absolute file": (broken("outside"), naming("/etc/passwd")),
    "a file by a NUL": (broken("outside"), naming("a\0b")),
    "a file by a backslash": (broken("outside"), naming("..\\secret")),
    "a file that is a number": (broken("index"), naming(3)),
    "a file that is nothing": (broken("index"), naming("")),
    "a file of a megabyte of name": (broken("index"), naming("x" * (1 << 20))),
    "no JSON": (broken("index"), text("{")),
    "no UTF-8": (broken("index"), lambda m: Path(AT).write_bytes(b'{"weight_map":{"\xff":"x"}}')),
    "no weight_map": (broken("index"), text('{"a": 1}')),
    "a weight_map that is a list": (broken("index"), text('{"weight_map": [["a", "b"]]}')),
    "a key twice": (broken("index"), text('{"weight_map": {"a": "x", "a": "y"}}')),
    "half a character": (broken("missing shard"), text('{"weight_map": {"\\ud800": "x"}}')),
    "nested without end": (broken("index"), text('{"a":' + "[" * 100_000)),
    "a number without end": (broken("index"), text('{"a":' + "9" * 100_000 + "}")),
    "a single file beside it": (broken("stale index"), lambda m: save_file({"a": torch.ones(1)}, "m/model.safetensors")),
}  # fmt: skip


def lying(change: Change) -> Callable[[], str]:
    def make() -> str:
        change(shards())
        return "m"

    return make


def test_errors_of_an_empty_shard_and_a_repeated_key_say_what_to_do() -> None:
    Path("m").mkdir()
    Path("m/a.safetensors").write_bytes(b"")
    index(AT, {"a": "a.safetensors"})
    with pytest.raises(cs.FormatError, match=r"is empty\. Fetch or save this file again\."):
        cs.open_checkpoint("m")
    Path(AT).write_text('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}')
    with pytest.raises(cs.FormatError, match=r"occurs twice\. Correct this file, or fetch or save it again\."):
        cs.open_checkpoint("m")


def test_the_hint_on_a_single_file_beside_an_index_has_paths_that_can_be_given() -> None:
    shards()
    save_file({"a": torch.ones(1)}, "m/model.safetensors")
    with pytest.raises(cs.FormatError, match="one of them may be out of date") as caught:
        cs.open_checkpoint("m")
    assert f"m/model.safetensors or {AT}" in caught.value.hint


@each([Case(name, INDEX, refusal, lying(change)) for name, (refusal, change) in CHANGES.items()])
def test_an_index_that_lies_is_refused(case: Any, ckpt: Any) -> None:
    held(case, ckpt)
