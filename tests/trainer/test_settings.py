"""The ``train:`` section: what is read, and what is refused with a word on where and why."""

from __future__ import annotations

import math
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
        ({"keep": 0}, "below 1"),
    ],
)
def test_what_is_wrong_is_said(section: Any, why: str) -> None:
    with pytest.raises(cs.ConfigError) as caught:
        settings_of(section, "x.yaml")
    assert str(caught.value).startswith("x.yaml: ")
    assert why in str(caught.value)
