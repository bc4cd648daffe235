"""Files that cost neither time nor memory: each is opened in a process that may take 1 GiB and whose own time is limited."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ..helpers.pace import bounded
from ..promises.clauses import COSTS, clause
from .bombs import BOMB, FILES, LARGE, OPENS, model_with, tensor, zipped
from .case import Case, all_named, broken, by_refusal, each, unsafe
from .holding import divide, nothing_changed

MEMORY = 1 << 30

RULES = {
    broken("key length"): ("long names in a script", "a key of three thousand segments", "a key of a million characters"),
    unsafe("module tree"): ("a long path to many tensors of a script", "a long path to many modules of a script", "modules shared by modules", "modules over shared modules", "objects of a shared module", "parameters shared by modules"),
    broken("persistent id"): ("a persistent id of itself", "a storage of itself"),
    broken("no state dict"): ("an extra that is a tuple of itself", "a million tuples deep", "a tuple of itself as a key", "billion laughs", "a list that holds itself", "a mapping that holds itself"),
    broken("tensor dtype"): ("a tensor of a type that is a tuple of itself",),
    unsafe("pickle length"): ("millions of empty mappings", "millions of memos", "containers in a list", "lists in a list", "millions of short texts", "millions of keys"),
    unsafe("pickle depth"): ("a million marks", "rebuilding that is rebuilt"),
    broken("pickle"): ("a false length", "an object named by a tuple of itself", "a memo index of four billion", "only the legacy magic"),
    broken("sparse"): ("a sparse tensor whose layout has no end",),
    unsafe("deflate bomb"): ("a deflate bomb", "wide text"),
    broken("unknown format"): ("a million records claimed", "a safetensors header of a terabyte", "text", "zeros"),
    broken("InvalidHeaderDeserialization"): ("a deep safetensors header", "a safetensors header of numbers", "metadata of lists", "metadata of objects"),
    broken("empty"): ("nothing",),
    unsafe("key length"): ("TensorFlow's index of long keys that share", "TensorFlow's index of keys that are too long"),
    broken("snappy"): ("TensorFlow's index of blocks that unpack without end",),
    unsafe("tensors"): ("TensorFlow's index of too many tensors", "TensorFlow's index of millions of fields", "TensorFlow's index of slices that are nowhere"),
    broken("table"): ("TensorFlow's index of blocks of nothing",),
    broken("name"): ("TensorFlow's index of blocks of one long key",),
    broken("protobuf"): ("TensorFlow's index of dimensions",),
    broken("shards"): ("TensorFlow's index of restart points",),
    unsafe("index size"): ("TensorFlow's index of nothing, and long",),
    broken("missing shard"): ("TensorFlow's index of tensors of exabytes",),
    broken("legacy"): ("legacy storage keys without end",),
    unsafe("pickle copies"): ("ordered dicts of a dict", "sets of a list", "sizes of a list", "bytes of a text"),
    unsafe("pickle names"): ("millions of names",),
    unsafe("pickle calls"): ("millions of tensors",),
    unsafe("pickle text"): ("texts that are wide together",),
    broken("index"): ("an index of lists",),
    broken("nested"): ("a nested tensor of an array",),
    unsafe("segments"): ("keys of three million segments",),
    broken("tensor size"): ("sizes that collide",),
    unsafe("zip entries"): ("half a million records",),
}  # fmt: skip


def made(name: str):
    def make() -> str:
        path = "x.index.json" if "an index" in name else "x.pth"
        Path(path).write_bytes({**FILES, **LARGE}[name]())
        return path

    return make


CASES = by_refusal(COSTS, RULES, made)
LONG = (
    "TensorFlow's index of too many tensors", "TensorFlow's index of slices that are nowhere", "millions of short texts",
    "only the legacy magic", "texts that are wide together", "millions of keys", "millions of memos",
    "TensorFlow's index of blocks of nothing", "TensorFlow's index of blocks of one long key", "wide text",
    "lists in a list", "containers in a list", "a million tuples deep", "half a million records",
    "modules over shared modules", "parameters shared by modules", "metadata of objects", "metadata of lists",
    "millions of tensors", "millions of empty mappings", "modules shared by modules",
)  # fmt: skip
"""Those that take longest; each rule that they break has another case, or one that is as large elsewhere."""

SHARE = 4
SHARED = {*LONG, "objects of a shared module", "TensorFlow's index of nothing, and long"} - {"millions of memos"}
"""Those whose cost is in proportion to a limit: of limit, file, memory and time a quarter shows it as the whole does."""

DIVIDED = (
    "PICKLE_OPS", "PICKLE_RARE", "PICKLE_CALLS", "PICKLE_FREE", "PICKLE_TEXT", "INFLATED_FREE", "TENSORS", "ZIP_ENTRIES",
    "JSON_HEADER_BYTES", "JSON_OPENED", "JSON_COMMAS", "TABLE_BYTES", "TABLE_MESSAGES", "PIECES", "TREE_NODES", "TREE_TENSORS",
)  # fmt: skip


@each(CASES, LONG)
def test_a_file_that_would_cost_too_much_is_refused(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    share = SHARE if case.name in SHARED else 1
    divide(DIVIDED, share, monkeypatch)
    path = case.make()
    with nothing_changed():
        done = bounded("inspect", path, "--json", memory=MEMORY, share=share)
    assert done.returncode == 3, (done.returncode, done.err[-500:])
    assert len(done.err) < 2000
    said = json.loads(done.err)
    assert (said["error"], said["rule"]) == (case.refusal.error, case.refusal.rule), said


def test_every_file_has_a_case() -> None:
    assert all_named(CASES, [*FILES, *LARGE])


@pytest.mark.long
@clause(COSTS)
@pytest.mark.parametrize("name", OPENS)
def test_an_odd_file_is_opened_in_time_and_memory(name: str) -> None:
    Path("x.pth").write_bytes(OPENS[name]())
    done = bounded("inspect", "x.pth", memory=MEMORY)
    assert done.returncode == 0, (done.returncode, done.err[-500:])


@clause(COSTS)
def test_a_tensor_over_no_storage_is_shown_with_the_reason() -> None:
    Path("x.pth").write_bytes(zipped(model_with(tensor(storage=BOMB))))
    done = bounded("inspect", "x.pth", memory=MEMORY)
    assert (done.returncode, "its storage is a tuple, not a storage of torch" in done.out) == (0, True)
