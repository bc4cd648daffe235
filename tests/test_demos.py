"""The demos of ``fixtures/``: what they show is so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fixtures import demo_espnet

Run = Callable[..., Any]


def test_the_espnet_demo_runs_and_writes_what_it_says(
    ckpt: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = []

    def in_process(folder: Path, *args: str) -> None:
        monkeypatch.chdir(folder)
        done.append(ckpt(*args))

    monkeypatch.setattr(demo_espnet, "ckpt", in_process)
    monkeypatch.syspath_prepend(str(demo_espnet.HERE))
    demo_espnet.main(Path("demo").resolve())
    assert [result.code for result in done] == [0, 0, 0, 0]
    assert "valid.acc.best.pth is a link to 40epoch.pth" in done[0].err
    assert "91 of 124 tensors are the English model's" in capsys.readouterr().out
