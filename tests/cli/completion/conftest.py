"""Checkpoints whose keys are completed, and a program that is asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .asked import ROOT, Run, given


@pytest.fixture
def nets() -> None:
    tensors = {f"encoder.layers.{i}.{name}": torch.ones(2) for i in (0, 1, 2, 10) for name in ("weight", "bias")}
    torch.save({**tensors, "ctc.weight": torch.ones(3), "scale": torch.ones(1)}, "src.pth")
    torch.save({"body.weight": torch.ones(2), "head.weight": torch.ones(2)}, "dst.pth")
    torch.save({"model": {"module.a": torch.ones(1)}, "model_ema": {"b": torch.ones(1)}}, "two.pth")


@pytest.fixture
def ckpt_asked() -> Run:
    """Ask the program, as a process of its own, as a shell does."""

    def ask(shell: str, line: str, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "ckptsurgeon"],
            input=given(shell, line) if data is None else data,
            env={**os.environ, "_CKPT_COMPLETE": shell, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            timeout=60,
        )

    return ask


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ``ckpt`` in a folder of its own, which notes what arguments it was given, and a home."""
    folder = tmp_path / "bin"
    folder.mkdir()
    path = folder / "ckpt"
    path.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$#" >> "{tmp_path}/arguments"\n'
        f'PYTHONPATH="{ROOT}" exec "{sys.executable}" -m ckptsurgeon "$@"\n'
    )
    path.chmod(0o755)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR"):
        monkeypatch.delenv(name, raising=False)
    return path
