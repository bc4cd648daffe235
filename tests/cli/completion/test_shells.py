"""The shells' own scripts, in the shells that are there."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ckptsurgeon.cli.completion import script

from .asked import BREAKS
from .terminal import Terminal


def in_bash(line: str) -> list[str]:
    """What bash's own function gives for a line."""
    code = """
        source script.bash
        complete -p ckpt >&2
        COMP_WORDBREAKS=$1 COMP_LINE=$2 COMP_POINT=${#2}
        _ckpt_completion ckpt
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    Path("script.bash").write_text(script("bash"))
    done = subprocess.run(
        ["bash", "--norc", "-c", code, "bash", BREAKS, line], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "complete -F _ckpt_completion ckpt\n"
    return done.stdout.splitlines()


@pytest.mark.usefixtures("nets", "program")
def test_bash_completes(tmp_path: Path) -> None:
    assert in_bash("ckpt insp") == ["inspect"]
    assert in_bash("ckpt inspect src.pth --include encoder.layers.") == [f"encoder.layers.{i}" for i in (0, 1, 2, 10)]
    assert in_bash("ckpt transplant src.pth dst.pth --on-mismatch=ctc=in") == ["init", "interpolate"]
    assert in_bash("ckpt inspect src.pth --include nothing") == [""]
    assert set((tmp_path / "arguments").read_text().split()) == {"0"}  # what was typed is never an argument


@pytest.mark.usefixtures("program")
def test_nothing_of_a_file_runs_in_bash() -> None:
    names = ["$(touch ran)", "`touch ran`", "a;touch ran", "x\ntouch ran", "${IFS}", "fine"]
    torch.save({name: torch.ones(1) for name in names}, "evil.pth")
    assert in_bash("ckpt inspect evil.pth --include ") == ["fine"]
    assert in_bash("ckpt inspect $(touch ran) --include ") == [""]
    assert not Path("ran").exists()


@pytest.fixture
def terminal(program: Path) -> Iterator[Terminal]:
    Path("script.bash").write_text(script("bash"))
    found = Terminal()
    yield found
    os.close(found.fd)
    os.waitpid(found.pid, 0)


@pytest.mark.usefixtures("nets")
def test_tab_at_a_terminal(terminal: Terminal) -> None:
    terminal.types("bind 'set bell-style none'; source script.bash; echo re''ady\n", "ready")
    terminal.types("ckpt insp\t", "inspect $")
    terminal.types("sr\t", r"src\.pth $")  # files are the shell's own
    terminal.types("--incl\t", "--include $")
    terminal.types("enc\t", r"encoder$")  # a module may go on: no blank
    terminal.types(".lay\t", r"\.layers$")
    terminal.types(".10.w\t", r"\.weight $")
    terminal.types("\x15ckpt inspect src.pth --include=sc\t", r"--include=scale $")
    terminal.types("\x15ckpt inspect src.pth --include 'sc\t", r"'scale' $")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_scripts_are_good_for_shells_that_are_there(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    Path("script").write_text(script(shell))
    assert subprocess.run([shell, "-n", "script"], capture_output=True).returncode == 0
