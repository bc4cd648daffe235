"""Classifiers whose rows stand for other labels: a note where they come together row by row."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

LABELS = ["neg", "neutral", "pos"]


def classifier(name: str, labels: list[str], scale: float = 1.0, key: str = "classifier") -> str:
    Path(name).mkdir(exist_ok=True)
    rows = len(labels)
    state = {f"{key}.weight": torch.ones(rows, 4) * scale, f"{key}.bias": torch.ones(rows) * scale}
    save_file({"encoder.weight": torch.ones(4, 4) * scale, **state}, f"{name}/model.safetensors")
    config = {"model_type": "bert", "id2label": {str(row): label for row, label in enumerate(labels)}}
    Path(name, "config.json").write_text(json.dumps(config))
    return name


def said(plan: cs.Plan) -> list[str]:
    return [note for note in plan.notes if "id2label" in note]


VERBS: dict[str, Callable[[str, str], cs.Plan]] = {
    "average": lambda a, b: cs.average([b, a]),
    "merge": lambda a, b: cs.merge([b, a], method="linear", weights=[1, 1]),
    "transplant": lambda a, b: cs.transplant(a, b),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("key", ["classifier", "score", "classifier.out_proj", "classification_head.out_proj"])
def test_rows_that_stand_for_other_labels_are_said(verb: str, key: str) -> None:
    a, b = classifier("a", LABELS, 2.0, key), classifier("b", LABELS[::-1], 1.0, key)
    assert said(VERBS[verb](a, b)) == [
        f"row 0 of {key}.weight has different labels (id2label): neg in a, pos in b; 1 other row too"
    ]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "labels", [LABELS, ["NEG", "Neutral", "POS"], ["LABEL_0", "LABEL_1", "LABEL_2"]], ids=["same", "case", "numbered"]
)
def test_nothing_is_said_of_labels_that_are_the_same_or_that_nobody_named(verb: str, labels: list[str]) -> None:
    a, b = classifier("a", LABELS, 2.0), classifier("b", labels)
    assert not said(VERBS[verb](a, b))
    assert not said(VERBS[verb](b, a))


@pytest.mark.parametrize(("options", "notes"), [({"exclude": ["classifier"]}, 0), ({}, 1)])
def test_nothing_is_said_of_rows_that_are_not_copied(options: dict[str, Any], notes: int) -> None:
    a, b = classifier("a", LABELS, 2.0), classifier("b", LABELS[::-1])
    assert len(said(cs.transplant(a, b, **options))) == notes


def test_rows_that_a_policy_keeps_are_compared_too() -> None:
    a, b = classifier("a", ["x", *LABELS], 2.0), classifier("b", LABELS)
    (note,) = said(cs.transplant(a, b, on_mismatch={"classifier": "slice"}))
    assert note == "row 0 of classifier.weight has different labels (id2label): x in a, neg in b; 2 other rows too"
    assert not said(cs.transplant(a, b, on_mismatch={"classifier": "init"}))
