"""Python's garbage collector looks through the objects of a command neither during nor after it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest

from ckptsurgeon.cli.run import run


@pytest.fixture
def unfrozen() -> Iterator[None]:
    """Nothing is frozen, as in a new process; a process of tests has frozen what it imported."""
    number = gc.get_freeze_count()
    gc.unfreeze()
    yield
    gc.unfreeze()
    if number:
        gc.freeze()


@pytest.fixture
def collected(unfrozen: None) -> Iterator[list[int]]:
    """A list that gets the generation of each collection."""
    found: list[int] = []

    def note(phase: str, info: dict[str, Any]) -> None:
        if phase == "start":
            found.append(info["generation"])

    gc.callbacks.append(note)
    yield found
    gc.callbacks.remove(note)


def test_nothing_is_collected_during_a_command_or_because_of_it(
    collected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[list[int]] = []
    during: list[int] = []

    def invoke(args: list[str], as_json: bool) -> int:
        collected.clear()
        kept.extend([one] for one in range(50_000))
        during.extend(collected)
        return 0

    monkeypatch.setattr("ckptsurgeon.cli.run._invoke", invoke)
    assert run(["inspect"]) == 0
    few = [[one] for one in range(100)]
    assert during == collected == []
    assert gc.get_freeze_count() == 0
    assert len(kept) + len(few) == 50_100


def test_what_is_frozen_stays_frozen(unfrozen: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptsurgeon.cli.run._invoke", lambda args, as_json: 0)
    gc.freeze()
    before = gc.get_freeze_count()
    assert run(["inspect"]) == 0
    assert 0 < gc.get_freeze_count() <= before
