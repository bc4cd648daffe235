"""Completion is put where a shell finds it, once, and nothing else is changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ckptsurgeon.cli.completion.installing import SHELLS, install, program, script
from ckptsurgeon.errors import OutputError

from .asked import ROOT, Run

OURS = (sys.executable, "-P", "-m", "ckptsurgeon")
"""What runs the program where no file named ckpt did."""


@pytest.mark.costly
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
    assert (home / written).read_text() == script(shell, program()) == ckpt("--show-completion", shell).out
    if start:
        assert (home / start).read_text() == f"alias x=y  # no newline behind\nsource {home / written}\n"
    assert {path.name for path in home.iterdir()} <= {".local", ".config", start}


@pytest.mark.usefixtures("program")
def test_what_bash_reads_when_it_starts_completes(ckpt: Run) -> None:
    assert ckpt("--install-completion", "bash").code == 0
    done = subprocess.run(["bash", "-c", "source ~/.bashrc; complete -p ckpt"], capture_output=True, text=True)
    assert done.stdout == "complete -F _ckpt_completion ckpt\n"


@pytest.mark.long
@pytest.mark.usefixtures("program")
def test_the_shell_is_told_by_who_runs_it(ckpt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.run(["bash", "-c", "ckpt --show-completion; true"], capture_output=True, text=True)
    assert done.stdout == script("bash", OURS)
    monkeypatch.setattr("ckptsurgeon.cli.completion.installing._parent", lambda: "python3")
    monkeypatch.setenv("SHELL", "/bin/fish")
    assert ckpt("--show-completion").out == script("fish", program())
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    done = ckpt("--show-completion")
    assert (done.code, "cannot tell which shell" in done.err) == (2, True)
    done = ckpt("--show-completion", "tcsh")
    assert (done.code, "bash, zsh, fish" in done.err) == (2, True)


@pytest.mark.usefixtures("program")
def test_a_home_that_cannot_be_written_is_an_error() -> None:
    Path.home().joinpath(".local").write_text("a file")
    with pytest.raises(OutputError, match="cannot write"):
        install("bash")


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize("shell", SHELLS)
def test_a_home_whose_name_is_no_utf8(shell: str, ckpt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Path.home() / os.fsdecode(b"caf\xe9")
    monkeypatch.setenv("HOME", str(home))
    home.mkdir()
    for _ in range(2):
        done = ckpt("--install-completion", shell)
        assert (done.code, done.err) == (0, "")
    if shell == "bash":
        assert (home / ".bashrc").read_bytes().count(b"source ") == 1
        done = subprocess.run(["bash", "-c", "source ~/.bashrc; complete -p ckpt"], capture_output=True, text=True)
        assert done.stdout == "complete -F _ckpt_completion ckpt\n"


@pytest.mark.long
def test_a_program_whose_path_is_no_utf8(program: Path) -> None:
    moved = program.parent / os.fsdecode(b"caf\xe9") / "ckpt"
    moved.parent.mkdir()
    moved.write_text(
        f"#!{sys.executable}\nimport sys; sys.path[0] = {str(ROOT)!r}\n"
        "from ckptsurgeon.__main__ import main; sys.exit(main())\n"
    )
    moved.chmod(0o755)
    done = subprocess.run([moved, "--show-completion", "bash"], capture_output=True)
    assert os.fsencode(f"'{moved}'") in done.stdout, done.stderr
    assert done.stdout == os.fsencode(script("bash", [str(moved)]))
    done = subprocess.run(
        ["ckpt", "--show-completion", "bash"],
        cwd=moved.parent,
        capture_output=True,
        env={**os.environ, "PATH": f".:{os.environ['PATH']}"},
    )
    assert done.stdout == os.fsencode(script("bash", [str(moved)]))


@pytest.mark.usefixtures("program")
def test_what_was_installed_is_replaced_whole(ckpt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path.home() / ".local/share/ckptsurgeon/completion.bash"
    path.parent.mkdir(parents=True)
    path.write_text("before")
    with path.open() as before:
        assert ckpt("--install-completion", "bash").code == 0
        assert before.read() == "before"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.usefixtures("program")
def test_a_start_up_file_stays_the_link_that_it_is(ckpt: Run) -> None:
    Path("dotfiles").mkdir()
    Path("dotfiles/bashrc").write_text("x=1\n")
    Path.home().joinpath(".bashrc").symlink_to(Path("dotfiles/bashrc").absolute())
    assert ckpt("--install-completion", "bash").code == 0
    assert Path.home().joinpath(".bashrc").is_symlink()
    assert Path("dotfiles/bashrc").read_text().startswith("x=1\nsource ")


@pytest.mark.costly
@pytest.mark.usefixtures("program")
@pytest.mark.parametrize("order", [("--json", "SHOW", "bash"), ("SHOW", "bash", "--json"), ("SHOW", "--json")])
def test_completion_is_answered_as_json(order: tuple[str, ...], ckpt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptsurgeon.cli.completion.installing._parent", lambda: "bash")
    said = {"kind": "ckpt.completion", "version": 1, "shell": "bash", "script": script("bash", program())}
    done = ckpt(*(word.replace("SHOW", "--show-completion") for word in order))
    assert json.loads(done.out) == {**said, "path": None, "read_by": None}
    done = ckpt(*(word.replace("SHOW", "--install-completion") for word in order))
    home = Path.home()
    places = {"path": str(home / ".local/share/ckptsurgeon/completion.bash"), "read_by": str(home / ".bashrc")}
    assert json.loads(done.out) == {**said, **places}
    done = ckpt("--json", "--show-completion", "tcsh")
    assert (done.code, json.loads(done.err)["error"]) == (2, "ConfigError")
