"""Verbs, options and their values are completed; files are left to the shell."""

from __future__ import annotations

import pytest

from ckptsurgeon.cli.completion.installing import SHELLS

from .asked import told


def test_verbs_and_groups() -> None:
    assert told("tr") == ("words", ["transplant", "train", "transcribe"])
    assert told("lora ") == ("words", ["merge", "extract", "concat", "convert", "resize"])
    assert told("lora merge --we") == ("words", ["--weights"])
    assert {"inspect", "lora", "verify"} <= set(told("")[1])
    assert told("no-such-verb ") == ("words", [])


def test_options_of_the_verb() -> None:
    assert told("inspect --s") == ("words", ["--sort", "--stats"])
    assert "--include" in told("--json inspect -")[1]
    assert "--help" in told("verify --h")[1]
    assert told("--inst") == ("words", ["--install-completion"])


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("inspect --sort ", ["size", "key"]),
        ("inspect --sort=s", ["--sort=size"]),
        (
            "convert x --to ",
            ["dcp", "diffusers", "flax", "fsdp", "gguf", "hdf5", "npz", "pth", "safetensors", "tensorflow", "tp"],
        ),
        ("transplant a b --on-missing ", ["init", "error"]),
        ("transplant a b --new-tokens m", ["mean"]),
        ("transplant a b --new-tokens o", ["omp"]),
        ("resize a --new-tokens o", ["omp"]),
        ("transplant a b --dtype bf", ["bfloat16"]),
        ("transplant a b --dtype k", ["keep"]),
        ("transplant a b --on-mismatch p", ["pad", "positions-1d", "positions-2d", "patch"]),
        ("transplant a b --on-mismatch ctc=i", ["ctc=init", "ctc=interpolate"]),
        ("transplant a b --ruleset light", ["lightning"]),
        ("merge a b --method nea", ["nearswap"]),
        ("merge a b -m nea", ["nearswap"]),
        ("merge --int-buffers ", ["last", "first", "max"]),
        ("train --strategy ", ["ddp", "fsdp"]),
        ("train --set st", ["steps="]),
        ("train --set task=c", ["task=classify", "task=ctc"]),
    ],
)
def test_values_of_options(line: str, values: list[str]) -> None:
    assert told(line)[1] == values


@pytest.mark.parametrize(
    "line",
    [
        "inspect ",
        "inspect sr",
        "transplant a ",
        "inspect -- --",
        "merge a --base ",
        "merge a --page ",
        "filter a -o ",
        "apply ",
    ],
)
def test_files_are_left_to_the_shell(line: str) -> None:
    for shell in SHELLS:
        assert told(line, shell) == ("files", [])
