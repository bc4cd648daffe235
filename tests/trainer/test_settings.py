"""The ``train:`` section: what is read, and what is refused with a word on where and why."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs
from ckptsurgeon.trainer.settings import settings_of


def test_what_is_not_said_has_a_default() -> None:
    made = settings_of(None, "x.yaml")
    assert (made.task, made.schedule, made.freeze, made.data.max_s) == ("ctc", "cosine", {}, math.inf)


def test_sections_and_lists_are_read() -> None:
    made = settings_of(
        {
            "steps": 5, "betas": [0.9, 0.98], "lr": 1, "data": {"train": "a.csv", "dev": ["b.csv", "c.csv"]},
            "features": {"kind": "mfcc"}, "freeze": {"encoder": 3, "frontend": None}, "lr_scale": {"ctc": 10},
        },
        "x.yaml",
    )  # fmt: skip
    assert (made.steps, made.betas, made.lr) == (5, (0.9, 0.98), 1.0)
    assert (made.data.train, made.data.dev) == (("a.csv",), ("b.csv", "c.csv"))
    assert (made.features.kind, made.freeze, made.lr_scale) == ("mfcc", {"encoder": 3, "frontend": None}, {"ctc": 10.0})
    assert settings_of({"freeze": ["encoder"]}, "x.yaml").freeze == {"encoder": None}


@pytest.mark.parametrize(
    ("section", "why"),
    [
        (3, "train is 3, not a section"),
        ({"setps": 1}, "no field 'setps'. Did you mean steps"),
        ({"data": {"trian": "x"}}, "train.data has no field 'trian'. Did you mean train"),
        ({"steps": "a"}, "train.steps is 'a', not a whole number. It is 1000 where"),
        ({"steps": True}, "not a whole number"),
        ({"steps": None}, "not a whole number"),
        ({"lr": "fast"}, "not a number"),
        ({"lr": math.nan}, "not a number"),
        ({"lr": -1}, "train.lr is -1.0"),
        ({"deterministic": 1}, "not true or false"),
        ({"task": ""}, "not a text"),
        ({"freeze": 3}, "a list of patterns, or a map from pattern to step"),
        ({"freeze": {"a": "b"}}, "a list of patterns"),
        ({"lr_scale": {"a": "x"}}, "a map from pattern to number"),
        ({"lr_scale": ["a"]}, "a map from pattern to number"),
        ({"betas": [0.9]}, "train.betas are"),
        ({"betas": 0.9}, "a list of numbers"),
        ({"schedule": "cos"}, "'cos'. Use one of cosine, linear, constant"),
        ({"features": {"kind": "x"}}, "Use one of log_mel, mfcc, waves"),
        ({"steps": 0}, "there is nothing to do"),
        ({"steps": 100, "warmup": 100}, "warmup 100 is not below train.steps 100"),
        ({"batch_size": 0}, "1 or more"),
        ({"ema": 1}, "no decay between 0 and 1"),
        ({"clip": 0}, "train.clip is 0.0"),
        ({"final_lr": 2}, "a share of lr"),
        ({"data": {"min_s": 3, "max_s": 2}}, "leaves nothing"),
        ({"keep": 0}, "it is 1 or more"),
    ],
)
def test_what_is_wrong_is_said(section: Any, why: str) -> None:
    with pytest.raises(cs.ConfigError) as caught:
        settings_of(section, "x.yaml")
    assert str(caught.value).startswith("x.yaml: ")
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("lr=0", "--set lr=0: train.lr is 0.0: it is a finite number above 0"),
        ("lr=.inf", "--set lr=.inf: train.lr is inf: it is a finite number above 0"),
        ("clip=-1", "--set clip=-1: train.clip is -1.0: it is above 0, or null so as not to clip"),
        (
            "betas=[1, 2]",
            "--set betas=[1, 2]: train.betas are [1.0, 2.0]: they are two numbers, each from 0 to below 1",
        ),
        ("keep=0", "--set keep=0: train.keep is 0: it is 1 or more"),
        ("steps=.inf", "--set steps=.inf: train.steps is inf, not a whole number"),
        ("steps=1.5", "--set steps=1.5: train.steps is 1.5, not a whole number"),
    ],
)
def test_a_value_of_the_command_line_is_blamed_on_it(text: str, why: str) -> None:
    from ckptsurgeon.configs import read_document
    from ckptsurgeon.trainer.assembly import settings_in

    Path("x.yaml").write_text("train: {steps: 5}\n")
    document = read_document("x.yaml")
    with pytest.raises(cs.ConfigError) as caught:
        settings_in(document, [text])
    assert caught.value.message.startswith(why)
    assert settings_in(document, ["steps=1e3"]).steps == 1000
    Path("y.yaml").write_text("train: {keep: 0}\n")
    with pytest.raises(cs.ConfigError, match=r"y\.yaml: train\.keep is 0"):
        settings_in(read_document("y.yaml"), ["steps=5"])
