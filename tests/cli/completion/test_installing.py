"""Completion is put where a shell finds it, once, and nothing else is changed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ckptsurgeon.cli.completion import install, script
from ckptsurgeon.errors import OutputError

from .asked import Run


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize(
    ("shell", "written", "start"),
    [
        ("bash", ".local/share/ckptsurgeon/completion.bash", ".bashrc"),
        ("zsh", ".local/share/ckptsurgeon/completion.zsh", ".zshrc"),
        ("fish", ".config/fish/completions/ckpt.fish", ""),
    ],
)
def test_it_is_installed_once_and_changes_nothing_else(shell: str, written: str, start: str, ckpt: Run) -> None:
    home = Path.home()
    if start:
        (home / start).write_text("alias x=y  # no newline behind")
    for _ in range(2):
        done = ckpt("--install-completion", shell)
        assert done.code == 0, done
        assert written.rpartition("/")[2] in done.out
    assert (home / written).read_text() == script(shell) == ckpt("--show-completion", shell).out
    if start:
        assert (home / start).read_text() == f"alias x=y  # no newline behind\nsource {home / written}\n"
    assert {path.name for path in home.iterdir()} <= {".local", ".config", start}


def test_what_bash_reads_when_it_starts_completes(program: Path, ckpt: Run) -> None:
    assert ckpt("--install-completion", "bash").code == 0
    done = subprocess.run(["bash", "-c", "source ~/.bashrc; complete -p ckpt"], capture_output=True, text=True)
    assert done.stdout == "complete -F _ckpt_completion ckpt\n"


@pytest.mark.usefixtures("program")
def test_the_shell_is_told_by_who_runs_it(ckpt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.run(["bash", "-c", "ckpt --show-completion; true"], capture_output=True, text=True)
    assert done.stdout == script("bash")
    monkeypatch.setattr("ckptsurgeon.cli.completion.installing._parent", lambda: "python3")
    monkeypatch.setenv("SHELL", "/bin/fish")
    assert ckpt("--show-completion").out == script("fish")
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    done = ckpt("--show-completion")
    assert (done.code, "cannot be told" in done.err) == (2, True)
    done = ckpt("--show-completion", "tcsh")
    assert (done.code, "bash, zsh, fish" in done.err) == (2, True)


@pytest.mark.usefixtures("program")
def test_a_home_that_cannot_be_written_is_an_error() -> None:
    Path.home().joinpath(".local").write_text("a file")
    with pytest.raises(OutputError, match="cannot be written"):
        install("bash")
