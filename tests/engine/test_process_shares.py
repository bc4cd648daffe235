"""``-n --processes N``: what each process would do is what it does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs
from ckptsurgeon.api.process_shares import sharing

from ..bench.deepseek import SIZES, Stored, write_sparse
from ..bench.deepseek import tensors as deepseek_v3
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
    assert "and 4 other processes, which write at most as much (-v shows all)" in shown.out
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


EVEN = 0.16 * 8
"""Eight processes may take at most 0.16 of the time of one."""


def llama(hidden: int, inner: int, layers: int, words: int = 128_256) -> Stored:
    """The tensors of Llama 3, with 8 heads of 128 channels for keys and values."""
    pairs = {"q": hidden, "k": 1024, "v": 1024}
    found: Stored = {f"{name}.weight": ("BF16", (words, hidden)) for name in ("model.embed_tokens", "lm_head")}
    for layer in (f"model.layers.{number}" for number in range(layers)):
        found |= {f"{layer}.self_attn.{one}_proj.weight": ("BF16", (rows, hidden)) for one, rows in pairs.items()}
        found |= {f"{layer}.mlp.{one}_proj.weight": ("BF16", (inner, hidden)) for one in ("gate", "up")}
        found[f"{layer}.self_attn.o_proj.weight"] = ("BF16", (hidden, hidden))
        found[f"{layer}.mlp.down_proj.weight"] = ("BF16", (hidden, inner))
        found |= {f"{layer}.{one}_layernorm.weight": ("BF16", (hidden,)) for one in ("input", "post_attention")}
    return {**found, "model.norm.weight": ("BF16", (hidden,))}


def moved(one: Any) -> int:
    """The bytes that a process reads and writes."""
    return int(one.nbytes_read + one.nbytes_written)


@pytest.mark.long
@pytest.mark.parametrize("number", [2, 4, 8, 32])
def test_a_model_of_70_billion_values_is_shared_evenly(number: int) -> None:
    write_sparse(Path("model"), llama(8192, 28672, 80), 30)
    found = sharing(cs.rename("model", map=["model=network"]), number, output="out/")
    assert sum(one.nbytes_written for one in found.processes) > 141e9
    assert max(map(moved, found.processes)) * number <= EVEN * sum(map(moved, found.processes))
    assert found.shard_size == ""


@pytest.mark.long
def test_deepseek_v3_is_shared_evenly() -> None:
    write_sparse(Path("model"), deepseek_v3(), 163)
    plan = cs.convert("model", dequantize=True, dtype="bf16")
    for number in (8, 32):
        found = sharing(plan, number, output="out/")
        assert sum(one.nbytes_written for one in found.processes) > 1.3e12
        assert max(map(moved, found.processes)) * number <= EVEN * sum(map(moved, found.processes))
        assert found.shard_size == ""


@pytest.mark.long
@pytest.mark.parametrize(("number", "before", "after"), [(4, "1.2", ""), (8, "2.5", "1.0"), (32, "9.9", "2.1")])
def test_other_shards_are_proposed_if_few_are_shared_unevenly(number: int, before: str, after: str, ckpt: Any) -> None:
    """Llama 8B has four shards of at most 5 GB, and an embedding of 1 GB, which is never divided."""
    write_sparse(Path("model"), llama(4096, 14336, 32), 4)
    words = ["rename", "model", "--map", "model=network", "-o", "out/", "-n", "--processes", number]
    found = json.loads(ckpt(*words, "--json").out)
    said = " ".join(ckpt(*words).out.split())
    sizes = [one["nbytes_written"] for one in found["processes"]]
    assert f"{max(sizes) * number / sum(sizes):.1f}" == before
    if not after:
        assert (found["shard_size"], "shared unevenly" in said) == ("", False)
        return
    size = found["shard_size"]
    assert f"a process writes {before} times the mean; with --max-shard-size {size} at most {after} times" in said
    again = sharing(cs.rename("model", map=["model=network"]), number, output="out/", max_shard_size=size)
    assert again.unevenness == found["shard_unevenness"]
    assert f"{again.unevenness:.1f}" == after


def small(folder: str = "small") -> str:
    """A model of 2 MB, whose largest tensors have 65 kB."""
    stored: Stored = {f"layers.{number}.weight": ("BF16", (64, 512)) for number in range(32)}
    write_sparse(Path(folder), {**stored, "norm": ("BF16", (64,)), "bias": ("BF16", (64,))}, 1)
    return folder


@pytest.mark.parametrize("number", [2, 8, 16])
def test_small_shards_are_proposed_for_a_small_model(number: int) -> None:
    plan = cs.rename(small(), map=["layers=blocks"])
    found = sharing(plan, number, output="out/")
    assert found.unevenness == number
    assert found.shard_size.endswith("KB")
    again = sharing(plan, number, output="out/", max_shard_size=found.shard_size)
    assert again.unevenness == found.shard_unevenness <= 1.25


def test_a_size_that_is_refused_is_not_proposed() -> None:
    """With 64 processes most sizes are smaller than each tensor: ``--max-shard-size`` refuses them."""
    write_sparse(Path("like"), {f"layers.{number}": ("BF16", (64, 512)) for number in range(32)}, 1)
    plan = cs.rename("like", map=["layers=blocks"])
    found = sharing(plan, 16, output="out/", max_shard_size="1MB")
    assert found.shard_unevenness < found.unevenness
    sharing(plan, 16, output="out/", max_shard_size=found.shard_size)
    assert sharing(plan, 64, output="out/").shard_size == ""


def test_it_is_said_that_no_shard_size_helps(ckpt: Any) -> None:
    write_sparse(Path("model"), {"large": ("BF16", (4000, 1000)), "small": ("BF16", (10, 1000))}, 1)
    said = ckpt("rename", "model", "--map", "large=big", "-n", "--processes", "4").out
    assert "4.0 times the mean; no --max-shard-size helps, because a tensor is never divided" in " ".join(said.split())
    said = ckpt("rename", small(), "--map", "layers=blocks", "-o", "one.safetensors", "-n", "--processes", "4").out
    assert "a single file is written by one process: give a folder, as in -o FOLDER/" in " ".join(said.split())


def test_processes_are_shown_in_their_order(ckpt: Any) -> None:
    words = ["rename", small(), "--map", "layers=blocks", "-n", "--max-shard-size", "200KB", "--processes"]
    rows = [row.split()[0] for row in ckpt(*words, "8").out.splitlines() if row[:9].strip().isdigit()]
    assert rows == [str(number) for number in range(8)]
    rows = [row.split()[0] for row in ckpt(*words, "32").out.splitlines() if row[:9].strip().isdigit()]
    assert len(rows) == 8
    assert rows == sorted(rows, key=int)


def test_a_tensor_that_is_most_of_a_model_is_not_divided() -> None:
    write_sparse(Path("model"), {"large": ("BF16", (4000, 1000)), "small": ("BF16", (10, 1000))}, 1)
    found = sharing(cs.rename("model", map=["large=big"]), 4, output="out/")
    assert found.shard_size == ""
    assert SIZES["BF16"] * 4_000_000 <= found.processes[0].nbytes_written


def test_a_plan_from_a_file_is_shared_out_as_it_was_made(ckpt: Any) -> None:
    made = VERBS["rename"]()
    wanted = sharing(made, 2, output="out/", max_shard_size=SHARD)
    Path("plan.json").write_text(json.dumps(made.to_json()))
    done = ckpt("apply", "plan.json", "-n", "--processes", "2", "-o", "out/", "--max-shard-size", SHARD, "--json")
    assert done.code == 0, done
    written = [one["nbytes_written"] for one in json.loads(done.out)["processes"]]
    assert written == [one.nbytes_written for one in wanted.processes]
