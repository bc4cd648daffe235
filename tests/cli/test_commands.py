"""The command line: what a person sees, what a program reads, how it ends."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.cli.application import MORE, SECTIONS, verbs

VERBS = ("inspect", "transplant", "apply", "verify", "init")

Run = Callable[..., Any]
Golden = Callable[[str, str], None]


@pytest.fixture(autouse=True)
def _width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("CKPT_DEBUG", raising=False)


# What a person sees.


@pytest.mark.parametrize("columns", [80, 120])
def test_inspect_is_a_pleasure_to_read(
    files: object, ckpt: Run, golden: Golden, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    done = ckpt("inspect", "best.pth")
    assert (done.code, done.err) == (0, "")
    assert max(map(len, done.out.splitlines())) <= columns
    assert not any(line != line.rstrip() for line in done.out.splitlines())
    golden(f"inspect-{columns}.txt", done.out)


@pytest.mark.costly
@pytest.mark.parametrize("columns", [80, 120])
def test_transplant_says_what_became_of_everything(
    files: object, ckpt: Run, golden: Golden, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    done = ckpt("transplant", "best.pth", "ru.yaml", "--exclude", "decoder", "--vocab", "en.txt:ru.txt")
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= columns
    assert not any(line != line.rstrip() for line in done.out.splitlines())
    golden(f"transplant-{columns}.txt", done.out)
    golden(f"transplant-notes-{columns}.txt", done.err)
    assert Path("ru.init.safetensors").exists()
    done = ckpt("verify", "ru.init.safetensors")
    golden(f"verify-{columns}.txt", done.out)


def test_every_tensor_is_listed_when_asked(files: object, ckpt: Run) -> None:
    done = ckpt("transplant", "best.pth", "ru.yaml", "--exclude", "decoder", "--ignore-mismatch", "-n", "-v")
    assert done.code == 0
    for key in cs.load_target("ru.yaml").tensors:
        assert f"  {key} " in done.out
    assert not Path("ru.init.safetensors").exists()


def test_a_failed_verification_names_what_failed(files: object, ckpt: Run, golden: Golden) -> None:
    ckpt("transplant", "best.pth", "ru.yaml", "--exclude", "decoder", "--ignore-mismatch")
    info = cs.open_checkpoint("ru.init.safetensors")["encoder.layers.2.linear1.weight"]
    assert "PASS  values as expected           56 of 56 tensors" in ckpt("verify", "ru.init.safetensors").out
    data = bytearray(Path("ru.init.safetensors").read_bytes())
    assert info.storage is not None
    data[info.storage.offset + info.offset] ^= 1
    Path("ru.init.safetensors").write_bytes(bytes(data))
    done = ckpt("verify", "ru.init.safetensors")
    assert done.code == 1
    assert "FAIL  values as expected           55 of 56 tensors" in done.out
    assert "FAIL  encoder.layers.2.linear1.weight" in done.out


def test_a_moved_source_is_not_compared(files: object, ckpt: Run, golden: Golden) -> None:
    ckpt("transplant", "best.pth", "ru.yaml", "--exclude", "decoder", "--ignore-mismatch")
    os.rename("best.pth", "old.pth")
    done = ckpt("verify", "ru.init.safetensors")
    assert done.code == 0
    assert "NOT COMPARED" in done.out
    assert "best.pth is no longer at its path" in " ".join(done.out.split())
    assert "NOT COMPARED" not in ckpt("verify", "ru.init.safetensors", "--source", "best.pth=old.pth").out


def test_a_source_that_changed_is_said_in_one_sentence(files: object, ckpt: Run) -> None:
    ckpt("transplant", "best.pth", "ru.yaml", "--exclude", "decoder", "--ignore-mismatch")
    torch.save({"encoder": torch.ones(2)}, "best.pth")
    said = " ".join(ckpt("verify", "ru.init.safetensors").out.split())
    assert "; checksums hold" in said
    assert ".;" not in said


def test_a_plan_is_held_against_a_file_without_a_recipe(files: object, ckpt: Run) -> None:
    ckpt("transplant", "best.pth", "ru.yaml", "--exclude", "decoder", "--ignore-mismatch", "-o", "out.safetensors")
    plan = ckpt("transplant", "best.pth", "ru.yaml", "--exclude", "decoder", "--ignore-mismatch", "-n", "--json").out
    Path("plan.json").write_text(plan)
    save_file(load_file("out.safetensors"), "bare.safetensors")
    done = ckpt("verify", "bare.safetensors", "--plan", "plan.json")
    assert done.code == 0
    assert "no recipe in it" in done.out
    assert "as they were written" not in done.out
    drawn = json.loads(ckpt("verify", "bare.safetensors", "--plan", "plan.json", "--json").out)["drawn"]
    right = f"{56 - drawn} of {56 - drawn} tensors"
    assert f"PASS  values as expected  {right} that were compared" in done.out
    assert f"the values of {drawn} tensors were not compared" in " ".join(done.out.split())
    assert "checksum recorded" not in done.out


def test_failures_of_keys_that_were_never_checked_are_not_counted_as_checked(files: object, ckpt: Run) -> None:
    plan = ckpt("transplant", "best.pth", "ru.yaml", "--exclude", "decoder", "--ignore-mismatch", "-n", "--json").out
    Path("plan.json").write_text(plan)
    weights = {"ctc.weight": torch.zeros(40, 16), **{f"other.{i}": torch.ones(1) for i in range(9)}}
    save_file(weights, "other.safetensors")
    done = ckpt("verify", "other.safetensors", "--plan", "plan.json")
    assert done.code == 1
    assert "values as expected" not in done.out  # the only tensor of the plan was drawn: its values are not compared
    assert "55 tensors is not in the output: encoder.embed.0.weight, " in " ".join(done.out.split())
    assert "FAILED other.safetensors" in done.out
    assert done.out.count("is not in the output") == 1
    every = ckpt("verify", "other.safetensors", "--plan", "plan.json", "-v")
    assert every.out.count("is not in the output") == 55


def test_keys_one_a_line(files: object, ckpt: Run) -> None:
    done = ckpt("inspect", "best.pth", "--keys")
    assert done.out.splitlines() == list(cs.open_checkpoint("best.pth"))
    by_size = ckpt("inspect", "best.pth", "--keys", "--sort", "size", "-q").out.splitlines()
    sizes = [cs.open_checkpoint("best.pth")[key].nbytes for key in by_size]
    assert sizes == sorted(sizes, reverse=True)
    assert sorted(by_size) == sorted(done.out.splitlines())


def test_verbose_inspect_folds_and_cuts_nothing(ckpt: Run) -> None:
    deep = {".".join("abcdefgh"[:n]) + f".w{i}": torch.ones(n) for n in range(1, 9) for i in range(9)}
    torch.save({"model": deep, **{f"extra{i}": i for i in range(20)}, "text": "x" * 200}, "deep.pth")
    short, full = ckpt("inspect", "deep.pth"), ckpt("inspect", "deep.pth", "-v")
    assert "more" in short.out
    assert "x" * 200 not in short.out
    for key in deep:
        assert sum(line.startswith(f"  {key} ") for line in full.out.splitlines()) == 1
    assert all(f"extra{i} = {i}" in " ".join(full.out.split()) for i in range(20))
    assert "x" * 200 in full.out.replace("\n", "").replace(" ", "")
    assert "more" not in full.out
    first = ckpt("inspect", "deep.pth", "-v", "--sort", "size").out.splitlines()
    assert [line.split()[0] for line in first if "float32" in line][:9] == [f"a.b.c.d.e.f.g.h.w{i}" for i in range(9)]


@pytest.mark.costly
@pytest.mark.parametrize("columns", ["0", "-5", "7", "30", "wide", "99999999999"])
def test_a_width_that_makes_no_sense_hides_nothing(
    files: object, ckpt: Run, columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    done = ckpt("inspect", "best.pth")
    lines = done.out.splitlines()
    assert len(lines) >= 18
    assert max(map(len, lines)) <= 100
    monkeypatch.setenv("COLUMNS", "60" if columns in ("7", "30") else "100")
    assert done.out == ckpt("inspect", "best.pth").out


def test_what_is_copied_from_the_screen_is_whole_however_long(files: object, ckpt: Run) -> None:
    long = "/".join(["folder" * 5] * 4)
    os.makedirs(long)
    done = ckpt("transplant", "best.pth", "ru.yaml", "--ignore-mismatch", "-o", f"{long}/out.pth")
    assert done.out.endswith(f"  next: ckpt verify {long}/out.pth\n")
    torch.save({"k" * 200: torch.ones(2)}, "long.pth")
    for flag in ("-v", "--stats", "--keys"):
        assert "k" * 200 in ckpt("inspect", "long.pth", flag).out


def test_progress_is_for_work_that_takes_longer(files: object, ckpt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from ckptsurgeon.cli import progress_bar

    bar = progress_bar.ProgressBar("writing", Console())
    bar.update(1, 100)
    assert bar._progress is None
    monkeypatch.setattr(progress_bar, "PROGRESS_AFTER_S", 0.0)
    bar.update(2, 100)
    assert bar._progress is not None
    bar.stop()
    done = progress_bar.ProgressBar("writing", Console())
    done.update(100, 100)
    assert done._progress is None


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (("--ignore-mismatch", "--on-mismatch", "pad"), ("--ignore-mismatch", "--on-mismatch pad")),
        (("--on-mismatch", "pad", "--ignore-mismatch"), ("--ignore-mismatch", "--on-mismatch pad")),
        (("--on-mismatch", "error", "--ignore-mismatch"), ("--ignore-mismatch", "--on-mismatch error")),
        (("--on-mismatch", "pad", "--on-mismatch", "slice"), ("--on-mismatch pad", "--on-mismatch slice")),
    ],
)
def test_two_policies_for_everything_contradict(
    files: object, ckpt: Run, flags: tuple[str, ...], names: tuple[str, str]
) -> None:
    done = ckpt("transplant", "best.pth", "ru.yaml", *flags)
    assert done.code == 2
    assert all(name in done.err for name in names)


@pytest.mark.parametrize(
    "flags",
    [
        ("--ignore-mismatch", "--on-mismatch", "init"),
        ("--on-mismatch", "pad", "--on-mismatch", "pad"),
        ("--ignore-mismatch", "--on-mismatch", "ctc=pad"),
        ("--on-mismatch", "ctc=pad", "--ignore-mismatch"),
    ],
)
def test_a_scoped_policy_goes_with_one_for_everything(files: object, ckpt: Run, flags: tuple[str, ...]) -> None:
    done = ckpt("transplant", "best.pth", "ru.yaml", *flags, "-n", "--json")
    assert done.code == 0
    policies = {step["key"]: step["policy"] for step in json.loads(done.out)["steps"]}
    assert policies["ctc.weight"] == ("pad" if "ctc=pad" in flags or "pad" in flags else "init")


@pytest.mark.parametrize(
    ("flags", "output"),
    [
        ((), "ru.init.safetensors"),
        (("--to", "safetensors"), "ru.init.safetensors"),
        (("--to", "pth"), "ru.init.pth"),
        (("--to", "hdf5"), "ru.init.h5"),
        (("--to", "dcp"), "ru.init"),
        (("--max-shard-size", "10kB"), "ru.init"),
        (("--max-shard-size", "10kB", "--to", "pth"), "ru.init"),
    ],
)
def test_the_default_output_is_named_after_its_format(
    files: object, ckpt: Run, flags: tuple[str, ...], output: str
) -> None:
    done = ckpt("transplant", "best.pth", "ru.yaml", "--ignore-mismatch", *flags)
    assert done.code == 0
    assert f"next: ckpt verify {output}\n" in done.out
    assert Path(output).exists()
    assert ckpt("verify", output).code == 0


@pytest.mark.parametrize(
    "options",
    [
        ["--max-shard-size", "0"], ["--max-shard-size", "5"], ["--max-shard-size", "5B"], ["--max-shard-size", "5 5"], ["--max-shard-size", "5PB"], ["--to", "magic"],
        ["-o", "out.xyz"], ["--max-shard-size", ""],
    ],
)  # fmt: skip
def test_a_dry_run_refuses_what_writing_would(options: list[str], files: object, ckpt: Run) -> None:
    dry = ckpt("transplant", "best.pth", "best.pth", *options, "-n")
    wet = ckpt("transplant", "best.pth", "best.pth", *options)
    assert (dry.code, dry.err) == (wet.code, wet.err)
    assert dry.code == 2


def test_depth_sort_include_and_stats(files: object, ckpt: Run) -> None:
    shallow = ckpt("inspect", "best.pth", "--depth", "1").out
    assert "layers." not in shallow
    assert "--depth shows more" in shallow
    by_size = [
        line.split()[0]
        for line in ckpt("inspect", "best.pth", "--depth", "1", "--sort", "size").out.splitlines()
        if line.startswith("  ")
    ]
    assert by_size[0] == "encoder"
    done = ckpt("inspect", "best.pth", "--include", "ctc", "--stats")
    assert "ctc.weight" in done.out
    assert "std" in done.out
    weight = cs.open_checkpoint("best.pth").tensor("ctc.weight")
    assert f"{weight.mean().item():.4g}" in done.out


def test_figures_beyond_float64_are_none_and_not_a_warning(ckpt: Run) -> None:
    torch.save({"w": torch.tensor([1e308, -1e308, 1e308], dtype=torch.float64)}, "far.pth")
    done = ckpt("inspect", "far.pth", "--stats", "--json")
    (tensor,) = json.loads(done.out)["tensors"]
    assert (done.code, done.err, tensor["stats"]["std"], tensor["stats"]["max"]) == (0, "", None, 1e308)


def test_stats_are_those_of_torch(files: object) -> None:
    values = torch.randn(1000, 300) * 3 + 5
    values[0, :3] = torch.tensor([float("nan"), float("inf"), 0.0])
    save_file(
        {
            "a": values,
            "b": values.bfloat16(),
            "n": torch.arange(7),
            "e": torch.empty(0),
            "t": torch.tensor([True, False]),
        },
        "s.safetensors",
    )
    found = cs.inspect("s.safetensors", stats=True).stats
    assert found is not None
    finite = values[torch.isfinite(values)].double()
    a = found["a"]
    assert a is not None
    assert a.mean == pytest.approx(finite.mean().item(), rel=1e-12)
    assert a.std == pytest.approx(finite.std(correction=0).item(), rel=1e-12)
    assert (a.min, a.max) == (finite.min().item(), finite.max().item())
    assert (a.zeros, a.nan, a.inf) == (1, 1, 1)
    assert found["n"] is not None
    assert found["n"].mean == 3
    assert found["e"] is not None
    assert found["e"].mean is None
    assert found["t"] is not None
    assert found["t"].mean == 0.5


def test_init_prints_or_writes(files: object, ckpt: Run) -> None:
    printed = ckpt("init", "best.pth").out
    done = ckpt("init", "best.pth", "-o", "new.yaml")
    assert Path("new.yaml").read_text() == printed
    assert "next:" in done.out
    assert ckpt("transplant", "best.pth", "new.yaml").code == 0
    assert ckpt("init", "best.pth", "-o", "new.yaml").code == 5


@pytest.mark.long
def test_an_output_can_be_a_source_again(files: object, ckpt: Run) -> None:
    ckpt("transplant", "best.pth", "ru.yaml", "--ignore-mismatch", "-o", "a.pth")
    assert ckpt("transplant", "a.pth", "ru.yaml", "-o", "b.safetensors").code == 0
    assert all(torch.equal(v, torch.load("a.pth", weights_only=True)[k]) for k, v in load_file("b.safetensors").items())


# What a program reads.


def test_inspect_as_json(files: object, ckpt: Run) -> None:
    data = json.loads(ckpt("inspect", "best.pth", "--json").out)
    assert list(data)[:5] == ["kind", "version", "path", "format", "root"]
    assert (data["kind"], data["version"], data["root"], data["stripped"]) == ("ckpt.inspect", 1, "model", ["module"])
    first = data["tensors"][0]
    assert first == {
        "key": "encoder.embed.0.weight", "dtype": "float32", "shape": [16, 1, 3, 3], "nbytes": 576, "file": "", "tied_to": None,
        "opaque": None,
    }  # fmt: skip
    tied = {row["key"]: row["tied_to"] for row in data["tensors"] if row["tied_to"]}
    assert tied == {"decoder.out.weight": "decoder.embed.weight"}
    assert {"key": "epoch", "type": "int", "value": 41} in data["extras"]
    net = training_parameters(files)
    assert data["totals"]["parameters"] == net


def training_parameters(net: Any) -> int:
    buffers = sum(b.numel() for b in net.buffers() if b.is_floating_point())
    return sum(p.numel() for p in net.parameters()) + buffers


def test_a_dry_run_as_json_is_the_plan(files: object, ckpt: Run) -> None:
    done = ckpt("transplant", "best.pth", "ru.yaml", "--exclude", "decoder", "--ignore-mismatch", "-n", "--json")
    assert done.err == ""
    Path("plan.json").write_text(done.out)
    assert json.loads(done.out)["kind"] == "ckpt.plan"
    receipt = json.loads(ckpt("apply", "plan.json", "-o", "long.safetensors", "--json").out)
    ckpt("transplant", "best.pth", "ru.yaml", "--exclude", "decoder", "--ignore-mismatch", "-o", "short.safetensors")
    assert Path("long.safetensors").read_bytes() == Path("short.safetensors").read_bytes()
    assert receipt["counts"] == json.loads(done.out)["counts"]
    assert set(receipt) >= {
        "output",
        "counts",
        "unexpected",
        "nbytes_read",
        "nbytes_written",
        "elapsed_s",
        "plan_sha256",
    }
    assert json.loads(ckpt("verify", "long.safetensors", "--plan", "plan.json", "--json").out)["failed"] == []


@pytest.mark.parametrize("place", ["before", "behind"])
def test_global_options_stand_before_or_behind_the_verb(files: object, ckpt: Run, place: str) -> None:
    args = ("--json", "inspect", "best.pth") if place == "before" else ("inspect", "best.pth", "--json")
    assert json.loads(ckpt(*args).out)["kind"] == "ckpt.inspect"


def test_errors_under_json_are_json_on_stderr(files: object, ckpt: Run) -> None:
    done = ckpt("transplant", "best.pth", "ru.yaml", "--json")
    assert (done.code, done.out) == (4, "")
    error = json.loads(done.err)
    assert (error["kind"], error["error"], error["exit_code"]) == ("ckpt.error", "PlanError", 4)
    assert len(error["details"]) == 3  # ctc twice, and the tied tensor once
    assert json.loads(ckpt("inspect", "--json", "--nonsense").err)["exit_code"] == 2


def test_a_path_that_looks_like_an_option_is_explained(files: object, ckpt: Run) -> None:
    os.rename("best.pth", "-best.pth")
    done = ckpt("inspect", "-best.pth")
    assert (done.code, "write ./-best.pth" in done.err) == (2, True)
    assert ckpt("inspect", "./-best.pth").code == 0
    assert ckpt("inspect", "--", "-best.pth").code == 0


def test_quiet_prints_only_data_that_was_asked_for(files: object, ckpt: Run) -> None:
    assert ckpt("inspect", "best.pth", "-q").out == ""
    assert ckpt("inspect", "best.pth", "-q", "--keys").out == ckpt("inspect", "best.pth", "--keys").out
    assert ckpt("init", "best.pth", "-q").out == ckpt("init", "best.pth").out
    assert ckpt("inspect", "best.pth", "-q", "--json").out == ckpt("inspect", "best.pth", "--json").out
    assert ckpt("verify", "best.pth", "-q").code == 2


def test_quiet_says_nothing(files: object, ckpt: Run) -> None:
    done = ckpt("transplant", "best.pth", "ru.yaml", "--ignore-mismatch", "-q")
    assert (done.code, done.out, done.err) == (0, "", "")


# How it ends.


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("inspect",), 2, "SRC"),
        (("inspect", "best.pth", "--nonsense"), 2, "No such option"),
        (("convert", "best.pth", "--dtype", "-o", "x"), 2, "Give --dtype a value: -o was taken as its value."),
        (("nonsense",), 2, "No such command"),
        (("inspect", "best.pth", "--depth", "x"), 2, "--depth"),
        (("inspect", "best.pth", "--sort", "x"), 2, "--sort x is not a known order"),
        (("inspect", "nothing.pth"), 3, "nothing.pth does not exist"),
        (("inspect", "ru.yaml"), 3, "not a checkpoint"),
        (("inspect", "best.pth", "--root", "zzz"), 2, "--root zzz has no tensors"),
        (("inspect", "best.pth", "--include", "zzz"), 2, "--include zzz matches none"),
        (("inspect", ""), 2, "SRC is empty"),
        (("inspect", "best.pth", "--root", ""), 2, "--root is empty"),
        (("inspect", "best.pth", "--keys", "--stats"), 2, "--stats"),
        (("inspect", "best.pth", "--keys", "--depth", "2"), 2, "--depth"),
        (("inspect", "best.pth", "-v", "--depth", "2"), 2, "--depth"),
        (("inspect", "-dash.pth"), 2, "-h"),
        (("transplant", "best.pth", "ru.yaml", "-o", ""), 2, "--output is empty"),
        (("transplant", "best.pth", "ru.yaml", "-o", "-"), 2, "-o - is not a file name"),
        (("transplant", "best.pth", "ru.yaml", "--dtype", ""), 2, "--dtype is empty"),
        (("transplant", "best.pth", "ru.yaml", "--max-shard-size", ""), 2, "--max-shard-size is empty"),
        (("transplant", "best.pth", "ru.yaml", "--exclude", ""), 2, "--exclude is empty"),
        (("transplant", "best.pth", "ru.yaml", "-n", "--to", "onnx"), 2, "--to onnx is unknown"),
        (
            ("transplant", "best.pth", "ru.yaml", "-n", "--max-shard-size", "big"),
            2,
            "--max-shard-size big is not a valid size",
        ),
        (
            ("transplant", "best.pth", "ru.yaml", "-n", "-o", "out.onnx"),
            2,
            "the suffix of out.onnx does not belong to a known format",
        ),
        (("transplant", "best.pth", "s3://x/ru.yaml"), 2, "-o"),
        (("apply", "plan.json", "-o", "-"), 3, "the plan plan.json cannot be read"),
        (("init", "best.pth", "-o", "-"), 2, "-o - is not a file name"),
        (("init", "best.pth", "-o", ""), 2, "--output is empty"),
        (("verify", ""), 2, "OUT is empty"),
        (("transplant", "best.pth"), 2, "exactly one source and one destination"),
        (("transplant", "a", "b", "c"), 2, "exactly one source and one destination"),
        (("transplant", "--source", "best.pth", "x", "ru.yaml"), 2, "only the destination"),
        (("transplant", "best.pth", "ru.yaml"), 4, "shape mismatch"),
        (("transplant", "best.pth", "ru.yaml", "--exclude", "decodr"), 2, "Did you mean decoder (2 keys)?"),
        (
            ("rename", "best.pth", "--map", r"re:(decoder)(.*)=\1_old\2", "-o", "x.pth"),
            2,
            "Write re:(decoder)(.*)={1}_old{2}; ",
        ),
        (("transplant", "best.pth", "missing.yaml"), 2, "missing.yaml cannot be read"),
        (("transplant", "best.pth", "missing.pth"), 3, "missing.pth does not exist"),
        (("transplant", "nothing.pth", "ru.yaml"), 3, "nothing.pth does not exist"),
        (("transplant", "best.pth", "ru.yaml", "--map-file", "nothing"), 2, "--map-file nothing cannot be read"),
        (("transplant", "best.pth", "ru.yaml", "--ignore-mismatch", "-o", "best.pth", "--force"), 5, "is an input"),
        (("apply", "nothing.json", "-o", "x.pth"), 3, "nothing.json cannot be read"),
        (("apply", "ru.yaml", "-o", "x.pth"), 2, "it has no verb"),
        (("apply", "plan.json"), 3, "the plan plan.json cannot be read"),
        (("verify", "best.pth"), 2, "has no recipe"),
        (("verify", "nothing"), 3, "does not exist"),
        (("verify", "best.pth", "--source", "x"), 2, "does not have the form NAME=PATH"),
        (("init", "nothing.pth"), 3, "does not exist"),
    ],
)
def test_what_goes_wrong_says_so_and_ends_as_documented(
    files: object, ckpt: Run, args: tuple[str, ...], code: int, says: str
) -> None:
    before = sorted(os.listdir())
    done = ckpt(*args)
    assert done.code == code, done
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert says in done.err
    assert "Traceback" not in done.err
    assert sorted(os.listdir()) == before


def test_a_bug_is_no_traceback_unless_asked_for(files: object, ckpt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptsurgeon.api import inspect as inspecting

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("oops")

    monkeypatch.setattr(inspecting, "inspect", broken)
    done = ckpt("inspect", "best.pth")
    assert done.code == 70
    assert "this is a bug in ckpt: RuntimeError: oops" in done.err
    monkeypatch.setenv("CKPT_DEBUG", "1")
    with pytest.raises(RuntimeError, match="oops"):
        ckpt("inspect", "best.pth")


def test_too_little_memory_is_said(files: object, ckpt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptsurgeon.api import inspect as inspecting

    def broken(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(inspecting, "inspect", broken)
    done = ckpt("inspect", "best.pth")
    assert (done.code, "not enough memory" in done.err) == (3, True)


@pytest.mark.long
def test_version_and_help(ckpt: Run) -> None:
    assert ckpt("--version").out == f"ckpt {cs.__version__}\n"
    for args in (("--version", "--json"), ("--json", "--version")):
        assert json.loads(ckpt(*args).out) == {"kind": "ckpt.version", "version": 1, "ckptsurgeon": cs.__version__}
    bare = ckpt()
    assert (bare.code, bare.out, bare.err) == (2, "", ckpt("-h").out)
    done = ckpt("-h")
    assert done.code == 0
    assert all(verb in done.out for verb in VERBS)
    for title, names in SECTIONS.items():  # each verb in its section, once
        section = done.out.partition(f"\n{title}:\n")[2].partition("\n\n")[0]
        assert set(re.findall(r"^  (\S+)", section, re.MULTILINE)) == {name.split()[0] for name in names}
        assert "..." not in section
    assert sorted(chain(*SECTIONS.values())) == sorted(verb.NAME for verb in verbs())
    assert f"\n{MORE}:" not in done.out
    assert "Exit status: 0 done; 1 the answer is no" in " ".join(done.out.split())


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_two_examples(ckpt: Run, verb: str) -> None:
    for flag in ("-h", "--help"):
        done = ckpt(verb, flag)
        assert done.code == 0
        examples = done.out.partition("Examples:")[2]
        assert examples.count(f"ckpt {verb} ") >= 1
        assert examples.count("  ckpt ") >= 2
        assert "--json" in done.out
        assert max(map(len, done.out.splitlines())) <= 110


def test_every_verb_is_a_function_of_the_same_meaning() -> None:
    twins = {"init": "init_config"}
    for verb in VERBS:
        assert callable(getattr(cs, twins.get(verb, verb)))


# Terminals.


def on_a_terminal(*args: str, **environment: str) -> str:
    """Run a command with a terminal as stdout and stderr."""
    parent, child = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", **environment}
    process = subprocess.Popen([sys.executable, "-m", "ckptsurgeon", *args], stdout=child, stderr=child, env=env)
    os.close(child)
    out = b""
    while True:
        try:
            data = os.read(parent, 65536)
        except OSError:
            break
        if not data:
            break
        out += data
    process.wait(timeout=60)
    os.close(parent)
    return out.decode()


@pytest.mark.long
def test_colour_is_for_terminals_and_no_color_is_heeded(files: object, ckpt: Run) -> None:
    assert "\x1b[" not in ckpt("inspect", "best.pth").out
    assert "\x1b[" in on_a_terminal("inspect", "best.pth")
    plain = on_a_terminal("inspect", "best.pth", NO_COLOR="1")
    assert "\x1b[3" not in plain


HOSTILE = [
    "\x1b[31mred",
    "\x1b]0;title\x07",
    "‮reversed",
    "a\nb",
    "[bold]markup[/bold]",
    "\x00zero",
    "x" * 4000,
    "\u2028line",
    "a\rb",
]


def test_hostile_names_reach_no_terminal(ckpt: Run) -> None:
    torch.save({**{name: torch.ones(1) for name in HOSTILE}, "extra \x1b[2J": 3, "e": "\x1b[2J"}, "evil.pth")
    outputs = [ckpt("inspect", "evil.pth"), ckpt("inspect", "evil.pth", "--keys"), ckpt("init", "evil.pth")]
    outputs += [
        ckpt("transplant", "evil.pth", "evil.pth", "-o", "o.pth", "-v"),
        ckpt("inspect", "evil.pth", "--include", "zzz"),
    ]
    outputs += [ckpt("transplant", "evil.pth", "evil.pth", "-n", "--exclude", "\x1b[31mred")]
    for done in outputs:
        for bad in ("\x1b[31m", "\x1b[2J", "\x07", "‮", "\x00", "\u2028"):
            assert bad not in done.out + done.err, done
    assert "[bold]markup[/bold]" in outputs[1].out
    assert len(ckpt("inspect", "evil.pth", "--keys").out.splitlines()) == len(HOSTILE)
    assert {row["key"] for row in json.loads(ckpt("inspect", "evil.pth", "--json").out)["tensors"]} == set(HOSTILE)


def test_no_verb_with_a_plan_declares_the_options_of_its_output() -> None:
    """They are declared once, in a group; only one verb has one of them, for its place in the help."""
    from inspect import signature

    from ckptsurgeon.cli.application import verbs

    own = {verb.NAME: {*signature(verb.run).parameters} & {"force", "wait", "key", "dry_run"} for verb in verbs()}
    assert [name for name, options in own.items() if "dry_run" in options or "key" in options] == ["verify"]
