"""``-n --processes N``: what each process would do is what it does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs
from ckptsurgeon.api.process_shares import sharing

from .sharded import SHARD, VERBS, write_sources


@pytest.fixture(autouse=True)
def inputs() -> None:
    write_sources()


@pytest.mark.parametrize("verb", VERBS)
def test_the_shares_together_are_the_output(verb: str) -> None:
    found = sharing(VERBS[verb](), 3, output="out/", max_shard_size=SHARD)
    assert not Path("out").exists()
    cs.apply(VERBS[verb](), "out", max_shard_size=SHARD)
    shards = sorted(Path("out").glob("*.safetensors"))
    assert sum(one.shards for one in found.processes) == len(shards)
    assert sum(one.nbytes_written for one in found.processes) == sum(path.stat().st_size for path in shards)
    assert max(one.shards for one in found.processes) - min(one.shards for one in found.processes) <= 1
    assert all(one.nbytes_read > 0 or verb == "transplant" for one in found.processes)
    assert found.rate is not None
    assert all(one.seconds == one.nbytes_written / found.rate for one in found.processes)


def test_a_single_file_is_written_by_the_first() -> None:
    found = sharing(VERBS["rename"](), 3, output="out.safetensors")
    assert [one.shards for one in found.processes] == [1, 0, 0]
    assert found.processes[1].nbytes_read == found.processes[1].nbytes_written == 0


def test_it_is_shown_and_said_in_json(ckpt: Any) -> None:
    command = ["convert", "a.safetensors", "--dtype", "float64", "-o", "out/", "--max-shard-size", SHARD, "-n"]
    shown = ckpt(*command, "--processes", "12")
    assert shown.code == 0, shown
    assert "and 4 others, none of which writes more than these (-v shows all)" in shown.out
    assert "measured here with one process, without writing" in shown.out
    data = json.loads(ckpt(*command, "--processes", "2", "--json").out)
    assert (data["kind"], [one["shards"] for one in data["processes"]]) == ("ckpt.sharing", [3, 2])
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("options", "said"), [(["-n", "--processes", "0"], "from 1 to 4096"), (["--processes", "2"], "torchrun")]
)
def test_what_makes_no_sense_is_refused(options: list[str], said: str, ckpt: Any) -> None:
    done = ckpt("convert", "a.safetensors", "-o", "out/", *options)
    assert done.code == 2
    assert said in " ".join(done.err.split())


@pytest.mark.parametrize("options", [["-o", "memory://b/out"], ["-o", "out/", "--to", "fsdp", "--ranks", "2"]])
def test_what_one_process_writes_is_not_shared_out(options: list[str], ckpt: Any) -> None:
    done = ckpt("convert", "a.safetensors", *options, "-n", "--processes", "2")
    assert done.code == 2
    assert "one process" in " ".join(done.err.split())
