"""The shells' own scripts, in the shells that are there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from ckptsurgeon.cli.completion.installing import SHELLS, script

from .asked import BREAKS
from .terminal import Terminal


def in_bash(line: str, program: Path) -> list[str]:
    """What bash's own function gives for a line."""
    code = """
        source script.bash
        complete -p ckpt >&2
        COMP_WORDBREAKS=$1 COMP_LINE=$2 COMP_POINT=${#2}
        _ckpt_completion "${2%% *}"
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    Path("script.bash").write_text(script("bash", [str(program)]))
    done = subprocess.run(
        ["bash", "--norc", "-c", code, "bash", BREAKS, line], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "complete -F _ckpt_completion ckpt\n"
    return done.stdout.splitlines()


@pytest.mark.usefixtures("nets")
def test_bash_completes(tmp_path: Path, program: Path) -> None:
    assert in_bash("ckpt insp", program) == ["inspect"]
    layers = [f"encoder.layers.{i}" for i in (0, 1, 2, 10)]
    assert in_bash("ckpt inspect src.pth --include encoder.layers.", program) == layers
    assert in_bash("ckpt transplant src.pth dst.pth --on-mismatch=ctc=in", program) == ["init", "interpolate"]
    assert in_bash("ckpt inspect src.pth --include nothing", program) == [""]
    assert set((tmp_path / "arguments").read_text().split()) == {"0"}  # what was typed is never an argument


@pytest.mark.long
def test_nothing_of_a_file_runs_in_bash(program: Path) -> None:
    names = ["$(touch ran)", "`touch ran`", "a;touch ran", "x\ntouch ran", "${IFS}", "fine"]
    torch.save({name: torch.ones(1) for name in names}, "evil.pth")
    assert in_bash("ckpt inspect evil.pth --include ", program) == ["fine"]
    assert in_bash("ckpt inspect $(touch ran) --include ", program) == [""]
    assert not Path("ran").exists()


@pytest.fixture
def evil() -> None:
    """A program of the same name in a folder, as a shell knows it by its last part."""
    Path("evil").mkdir()
    Path("evil/ckpt").write_text("#!/bin/sh\ntouch ran\necho words\necho owned\n")
    Path("evil/ckpt").chmod(0o755)


HOSTILE = ["a b", "it's", "$(touch ran)", 'say "x"', "a=b", "back\\slash", "a;b", "--", "*"]


@pytest.mark.long
@pytest.mark.usefixtures("evil")
@pytest.mark.parametrize("folder", HOSTILE)
def test_only_the_program_that_made_the_script_runs_in_bash(folder: str, program: Path) -> None:
    moved = program.parent / folder / "ckpt"
    moved.parent.mkdir()
    program.rename(moved)
    assert in_bash("evil/ckpt insp", moved) == ["inspect"]
    assert in_bash("X=1 evil/ckpt insp", moved) == ["inspect"]
    assert not Path("ran").exists()


def in_fish(line: str, program: Path) -> list[str]:
    """What fish completes a line to."""
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    Path("script.fish").write_text(script("fish", [str(program)]))
    code = "source script.fish; complete -C $argv[1]"
    done = subprocess.run(["fish", "--no-config", "-c", code, line], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return [found.partition("\t")[0] for found in done.stdout.splitlines()]


@pytest.mark.usefixtures("nets")
def test_fish_completes(tmp_path: Path, program: Path) -> None:
    assert in_fish("ckpt insp", program) == ["inspect"]
    layers = {f"encoder.layers.{i}" for i in (0, 1, 2, 10)}
    assert set(in_fish("ckpt inspect src.pth --include encoder.layers.", program)) == layers
    assert in_fish("ckpt inspect sr", program) == ["src.pth"]
    assert in_fish("ckpt train --set zzz", program) == []
    assert set((tmp_path / "arguments").read_text().split()) == {"0"}


@pytest.mark.usefixtures("evil")
@pytest.mark.parametrize("folder", HOSTILE)
def test_only_the_program_that_made_the_script_runs_in_fish(folder: str, program: Path) -> None:
    moved = program.parent / folder / "ckpt"
    moved.parent.mkdir()
    program.rename(moved)
    assert in_fish("evil/ckpt insp", moved) == ["inspect"]
    assert in_fish("A=1 ckpt insp", moved) == ["inspect"]
    assert not Path("ran").exists()


@contextmanager
def terminal(*command: str) -> Iterator[Terminal]:
    found = Terminal(*command)
    try:
        yield found
    finally:
        os.close(found.fd)
        os.waitpid(found.pid, 0)


@pytest.mark.long
@pytest.mark.usefixtures("nets", "evil")
def test_tab_at_a_terminal(program: Path) -> None:
    Path("script.bash").write_text(script("bash", [str(program)]))
    with terminal("bash", "--noprofile", "--norc", "-i") as bash:
        bash.types("bind 'set bell-style none'; source script.bash; echo re''ady\n", "ready")
        bash.types("ckpt insp\t", "inspect $")
        bash.types("sr\t", r"src\.pth $")  # files are the shell's own
        bash.types("--incl\t", "--include $")
        bash.types("enc\t", r"encoder$")  # a module may go on: no blank
        bash.types(".lay\t", r"\.layers$")
        bash.types(".10.w\t", r"\.weight $")
        bash.types("\x15ckpt inspect src.pth --include=sc\t", r"--include=scale $")
        bash.types("\x15ckpt inspect src.pth --include 'sc\t", r"'scale' $")
        bash.types("\x15evil/ckpt insp\t", "inspect $")
    assert not Path("ran").exists()


@pytest.mark.usefixtures("nets", "evil")
def test_tab_at_a_terminal_in_zsh(program: Path) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    Path("script.zsh").write_text(script("zsh", [str(program)]))
    with terminal("zsh", "-f", "-i") as zsh:
        zsh.types("PROMPT=; unsetopt zle_bracketed_paste; source ./script.zsh; echo re''ady\r", "ready")
        zsh.types("ckpt insp\t", "inspect ")
        zsh.types("sr\t", r"src\.pth")
        zsh.types(" --include enc\t", r"encoder")
        zsh.types(".lay\t", r"layers")
        zsh.types(".10.w\t", r"weight")
        zsh.types("\x15evil/ckpt insp\t", "inspect ")
        zsh.types("\x15A=1 evil/ckpt insp\t", "inspect ")
    assert not Path("ran").exists()


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_scripts_are_good_for_shells_that_are_there(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    Path("script").write_text(script(shell, ["/opt/it's/ckpt"]))
    assert subprocess.run([shell, "-n", "script"], capture_output=True).returncode == 0


def test_no_other_command_pays_for_completion() -> None:
    """And the help, which is written without it, names the shells that there are."""
    code = (
        "import sys; from ckptsurgeon.cli import main; main(['-h']); print('ckptsurgeon.cli.completion' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
    assert f"[{'|'.join(SHELLS)}]" in done.stdout
