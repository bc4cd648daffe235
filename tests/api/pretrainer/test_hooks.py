"""Hooks of a ``Pretrainer``: its own, a class's, and those that SpeechBrain knows."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from torch import nn

import ckptsurgeon as cs

from .cases import CASES, pretrainer


def test_hooks_are_called_after_everything_was_checked_and_before_anything_is_written(server: SimpleNamespace) -> None:
    enc, head = CASES.encoder(), CASES.head()
    before = CASES.values_of(enc)
    calls = []

    def fails(thing: Any, path: Any) -> None:
        calls.append(CASES.count_changed(before, CASES.values_of(enc)))
        raise OSError("the labels are gone")

    ours = cs.Pretrainer(
        "collected", {"enc": enc, "head": head, "labels": {}}, {"head": "source/wide.ckpt"}, {"labels": fails}
    )
    ours.add_paths({"labels": "source/labels.txt"})
    ours.collect_files("source")
    with pytest.raises(cs.PlanError, match="head: shape mismatch"):
        ours.load_collected()
    assert not calls
    with pytest.raises(OSError, match="the labels are gone") as error:
        ours.load_collected({"head": {"on_mismatch": "slice"}})
    assert calls == ["0 of 4"]
    assert "the hook of 'labels' raised this" in error.value.__notes__[0]
    assert CASES.count_changed(before, CASES.values_of(enc)) == "0 of 4"


def test_a_hook_that_is_no_function_is_said(server: SimpleNamespace) -> None:
    ours, _ = pretrainer(custom_hooks={"enc": "load"})
    ours.collect_files("source")
    with pytest.raises(cs.ConfigError, match="the custom hook for enc is an object of type str, not a function"):
        ours.load_collected()


class Labels:
    """An object with a loader of its own, as SpeechBrain's label encoders have."""

    def __init__(self) -> None:
        self.got: list[Any] = []


def test_hooks_that_a_class_registered_with_speechbrain_are_found(
    server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Marked(nn.Linear):
        pass

    checkpoints = ModuleType("speechbrain.utils.checkpoints")
    checkpoints.DEFAULT_LOAD_HOOKS = {Labels: lambda thing, path, end: thing.got.append((path, end))}  # type: ignore[attr-defined]
    checkpoints.DEFAULT_TRANSFER_HOOKS = {  # type: ignore[attr-defined]
        nn.Module: lambda thing, path: pytest.fail("the planner loads modules"),
        Marked: lambda thing, path: setattr(thing, "got", path),
    }
    monkeypatch.setitem(sys.modules, "speechbrain.utils.checkpoints", checkpoints)
    labels, marked, head = type("Derived", (Labels,), {})(), Marked(3, 5), CASES.head()
    ours = cs.Pretrainer("collected", {"labels": labels, "marked": marked, "head": head})
    ours.add_paths({"labels": "source/labels.txt", "marked": "source/head.ckpt"})
    paths = ours.collect_files("source")
    report = ours.load_collected()
    assert labels.got == [(str(paths["labels"]), False)]
    assert marked.got == str(paths["marked"])
    assert report.hooked == ("labels", "marked")
    assert list(report.plans) == ["head"]


def test_a_sentencepiece_model_is_loaded_as_such(server: SimpleNamespace) -> None:
    import sentencepiece

    thing = sentencepiece.SentencePieceProcessor()
    ours = cs.Pretrainer("collected", {"spm": thing}, {"spm": "source/labels.txt"})
    ours.collect_files()
    with pytest.raises((OSError, RuntimeError)):
        ours.load_collected()  # no such model; but it was asked to load it
