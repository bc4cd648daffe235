"""What every hostile file is held to: refused in words, in time, and without a trace."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ckptsurgeon.formats.base import limits

from ..helpers.pace import in_time
from .case import Case

_WATCHED = {"os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pickle.find_class"}
_seen: list[list[str]] = []


def _audit(event: str, _: object) -> None:
    if _seen and event in _WATCHED:
        _seen[-1].append(event)


sys.addaudithook(_audit)  # no hook can be removed, so that there is one, which mostly does nothing


@contextmanager
def nothing_executed() -> Iterator[None]:
    """Fail when a process is started, or a name is looked up by the unpickler of Python itself."""
    _seen.append([])
    try:
        yield
    finally:
        seen = _seen.pop()
    assert seen == []


@contextmanager
def nothing_changed() -> Iterator[None]:
    """Fail when a file has appeared, gone or changed in the working directory."""
    before = _files()
    yield
    assert _files() == before


def _files() -> dict[str, str]:
    found = {}
    for folder, folders, names in os.walk("."):
        found.update({f"{folder}/{name}": "a folder" for name in folders})
        for name in names:
            path = Path(folder, name)
            regular = path.is_file() and not path.is_symlink()
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest() if regular else "special"
    return found


def divide(names: Iterable[str], by: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower limits: of what would cost as much as they allow, a part shows the rule as the whole does."""
    for name in names:
        monkeypatch.setattr(limits, name, getattr(limits, name) // by)


def held(case: Case, ckpt: Any, share: int = 1) -> None:
    """Run the case's commands for programs, and the first of them for people, too; ``share`` is that of ``in_time``."""
    path = case.make()
    for number, command in enumerate(case.commands):
        arguments = [path if argument == "{}" else argument for argument in command]
        with nothing_changed(), nothing_executed(), in_time(share):
            told = ckpt(*arguments, "--json")
            shown = ckpt(*arguments) if number == 0 else None
        _check_json(case, told)
        if shown is None:
            continue
        assert (shown.code, shown.out) == (case.refusal.exit_code, ""), shown
        assert shown.err.startswith("error: "), shown
        assert "Traceback" not in shown.err
        assert len(shown.err) < 2000


def _check_json(case: Case, told: Any) -> None:
    assert (told.code, told.out) == (case.refusal.exit_code, ""), told
    said = json.loads(told.err)
    assert (said["kind"], said["error"], said["rule"] or "") == ("ckpt.error", case.refusal.error, case.refusal.rule), (
        said
    )
