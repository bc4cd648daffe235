"""The ``train:`` section: what is read, and what is refused with a word on where and why."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs
from ckptsurgeon.trainer.config.section import apply_overrides, parse_settings

from . import toy


def test_what_is_not_said_has_a_default() -> None:
    made = parse_settings(None, "x.yaml")
    assert (made.task, made.schedule, made.freeze, made.data.max_s) == ("ctc", "cosine", {}, math.inf)


def test_sections_and_lists_are_read() -> None:
    made = parse_settings(
        {
            "steps": 5, "betas": [0.9, 0.98], "lr": 1, "data": {"train": "a.csv", "dev": ["b.csv", "c.csv"]},
            "features": {"kind": "mfcc"}, "freeze": {"encoder": 3, "frontend": None}, "lr_scale": {"ctc": 10},
        },
        "x.yaml",
    )  # fmt: skip
    assert (made.steps, made.betas, made.lr) == (5, (0.9, 0.98), 1.0)
    assert (made.data.train, made.data.dev) == (("a.csv",), ("b.csv", "c.csv"))
    assert (made.features.kind, made.freeze, made.lr_scale) == ("mfcc", {"encoder": 3, "frontend": None}, {"ctc": 10.0})
    assert parse_settings({"freeze": ["encoder"]}, "x.yaml").freeze == {"encoder": None}


@pytest.mark.parametrize(
    ("section", "why"),
    [
        (3, "train is 3, not a section"),
        ({"setps": 1}, "no field 'setps'. Did you mean steps"),
        ({"data": {"trian": "x"}}, "train.data has no field 'trian'. Did you mean train"),
        ({"steps": "a"}, "train.steps is 'a', not a whole number. The default is 1000"),
        ({"steps": True}, "not a whole number"),
        ({"steps": None}, "not a whole number"),
        ({"lr": "fast"}, "not a number"),
        ({"lr": math.nan}, "not a number"),
        ({"lr": -1}, "train.lr is -1.0"),
        ({"deterministic": 1}, "not true or false"),
        ({"task": ""}, "train.task is empty. The default is 'ctc'."),
        ({"freeze": 3}, "a list of patterns, or a map from pattern to step"),
        ({"freeze": {"a": "b"}}, "a list of patterns"),
        ({"lr_scale": {"a": "x"}}, "a map from pattern to number"),
        ({"lr_scale": ["a"]}, "a map from pattern to number"),
        ({"betas": [0.9]}, "train.betas are [0.9]; they must be two numbers, each 0 or more, below 1"),
        ({"betas": 0.9}, "a list of numbers"),
        ({"schedule": "cos"}, "'cos', which is not allowed. Use one of cosine, linear, constant"),
        ({"features": {"kind": "x"}}, "Use one of log_mel, mfcc, waves"),
        ({"steps": 0}, "train.steps is 0; it must be 1 or more"),
        ({"steps": 100, "warmup": 100}, "warmup 100 is not below train.steps 100"),
        ({"batch_size": 0}, "train.batch_size is 0; it must be 1 or more"),
        ({"ema": 1}, "train.ema is 1.0; it must be above 0, below 1"),
        ({"ema": 0}, "train.ema is 0.0"),
        ({"clip": 0}, "train.clip is 0.0; it must be above 0"),
        ({"final_lr": 2}, "train.final_lr is 2.0; it must be 0 or more, at most 1"),
        ({"betas": [0.9, 1]}, "train.betas is 1.0; it must be 0 or more, below 1"),
        ({"weight_decay": -1}, "train.weight_decay is -1.0; it must be 0 or more"),
        ({"weight_decay": math.inf}, "train.weight_decay is inf"),
        ({"eps": 0}, "train.eps is 0.0"),
        ({"eps": -1}, "train.eps is -1.0; it must be above 0"),
        ({"lr": math.inf}, "train.lr is inf"),
        ({"nonfinite": -1}, "train.nonfinite is -1; it must be 0 or more"),
        ({"patience": 0}, "train.patience is 0; it must be 1 or more"),
        ({"lr_scale": {"head": -1}}, "train.lr_scale head is -1.0"),
        ({"lr_scale": {"head": math.inf}}, "train.lr_scale head is inf"),
        ({"freeze": {"body": -5}}, "train.freeze body is -5"),
        ({"warmup": -3}, "train.warmup is -3"),
        ({"seed": -3}, "train.seed is -3"),
        ({"seed": 2**63}, "train.seed is 9223372036854775808; it must be 0 or more, at most 9223372036854775807"),
        ({"seed": 10**400}, "it must be 0 or more"),
        ({"lr": 10**400}, "not a number"),
        ({"beam": 0}, "train.beam is 0; it must be 1 or more"),
        ({"data": {"workers": -1}}, "train.data.workers is -1"),
        ({"data": {"workers": 100_000}}, "train.data.workers is 100000"),
        ({"threads": 0}, "train.threads is 0"),
        ({"threads": 100_000}, "train.threads is 100000; it must be 1 or more, at most 1024"),
        ({"label_smoothing": 1}, "train.label_smoothing is 1.0"),
        ({"evaluate_every": 0}, "train.evaluate_every is 0"),
        ({"accumulate": 0}, "train.accumulate is 0"),
        ({"features": {"rate": 0}}, "train.features.rate is 0"),
        ({"features": {"window_s": -1}}, "train.features.window_s is -1.0; it must be above 0"),
        ({"data": {"max_s": 0}}, "train.data.max_s is 0.0"),
        ({"data": {"min_s": -1}}, "train.data.min_s is -1.0"),
        ({"data": {"min_s": 3, "max_s": 2}}, "every clip would be left out"),
        ({"keep": 0}, "train.keep is 0; it must be 1 or more"),
    ],
)
def test_what_is_wrong_is_said(section: Any, why: str) -> None:
    with pytest.raises(cs.ConfigError) as caught:
        parse_settings(section, "x.yaml")
    assert str(caught.value).startswith("x.yaml: ")
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "lr=0",
            "--set lr=0: train.lr is 0.0; it must be above 0, finite; to leave tensors untrained, list them in train.freeze",
        ),
        ("lr=.inf", "--set lr=.inf: train.lr is inf; it must be above 0, finite"),
        ("clip=-1", "--set clip=-1: train.clip is -1.0; it must be above 0, or null so as not to clip"),
        (
            "betas=[1, 2]",
            "--set betas=[1, 2]: train.betas is 1.0; it must be 0 or more, below 1",
        ),
        ("keep=0", "--set keep=0: train.keep is 0; it must be 1 or more"),
        ("steps=.inf", "--set steps=.inf: train.steps is inf, not a whole number"),
        ("steps=1.5", "--set steps=1.5: train.steps is 1.5, not a whole number"),
    ],
)
def test_a_value_of_the_command_line_is_blamed_on_it(text: str, why: str) -> None:
    from ckptsurgeon.destinations._document import read_document
    from ckptsurgeon.trainer.job.assembly import read_settings

    Path("x.yaml").write_text("train: {steps: 5}\n")
    document = read_document("x.yaml")
    with pytest.raises(cs.ConfigError) as caught:
        read_settings(document, [text])
    assert caught.value.message.startswith(why)
    assert read_settings(document, ["steps=1e3"]).steps == 1000
    Path("y.yaml").write_text("train: {keep: 0}\n")
    with pytest.raises(cs.ConfigError, match=r"y\.yaml: train\.keep is 0"):
        read_settings(read_document("y.yaml"), ["steps=5"])


def test_what_may_be_as_large_as_one_likes_may() -> None:
    made = parse_settings(
        {"clip": math.inf, "data": {"max_s": math.inf}, "lr_scale": {"x": 0}, "freeze": {"x": 0}}, "x"
    )
    assert (made.clip, made.data.max_s) == (math.inf, math.inf)


def test_a_layer_that_thaws_after_the_end_is_a_note() -> None:
    notes = toy.job(freeze={"body": 12, "head": 11}).notes
    assert notes == ("train.freeze body: step 12 is not below train.steps 12, so the tensors are never trained",)


def test_what_only_looks_blames_nothing_that_nobody_said(ckpt: Any) -> None:
    toy.write()
    done = ckpt("train", "toy.yaml", "--check-only", "--set", "warmup=9", "--set", "steps=5")
    said = " ".join(done.err.split())
    assert done.code == 2
    assert "--set warmup=9, --set steps=5: train.warmup 9 is not below" in said
    assert "cache" not in said


@pytest.mark.parametrize("section", ["data", "features", "augment", "pretrain"])
def test_a_field_of_a_section_that_is_set_leaves_the_others(section: str) -> None:
    given = {"data": {"min_s": 1, "max_s": 2}, "features": {"size": 1, "rate": 2}}
    given |= {"augment": {"time_masks": 1, "freq_masks": 2}, "pretrain": {"negatives": 1, "mask_length": 2}}
    first, second = given[section]
    assert apply_overrides(given, [f"{section}.{first}=7"])[section] == {first: 7, second: 2}
