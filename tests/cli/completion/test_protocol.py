"""What each shell gives, and what the program says to it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ckptsurgeon.cli import command
from ckptsurgeon.cli.completion.answers import answer
from ckptsurgeon.cli.completion.installing import SHELLS
from ckptsurgeon.cli.completion.parsed import TypedLine, typed_in

from .asked import BREAKS, ROOT, Run, told


@pytest.mark.parametrize("data", [b"", b"\0", b"\xff\0\xfe\0", b"ckpt\0", b"ckpt 'a\0\0", b"no end"])
def test_nothing_is_said_to_a_shell_that_is_unknown(data: bytes) -> None:
    assert answer(command, "tcsh", data) == answer(command, "", data) == ""


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("data", [b"", b"\0", b"ckpt\0", b"no end", b"\xff\0\xfe\0", b"\xff\0", b"a\0no\0b\0"])
def test_nothing_is_said_to_what_no_shell_gives(shell: str, data: bytes) -> None:
    """Not by an error that run() would keep to itself, either."""
    assert answer(command, shell, data) in ("", "words\n")


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("line", ["train --set zzz", "train --set zzz=", "train --set =", "rename x --map zzz"])
def test_what_nothing_begins_with_has_no_candidates(shell: str, line: str) -> None:
    assert told(line, shell) == ("words", [])


@pytest.mark.costly
@pytest.mark.parametrize(("error", "code"), [("ValueError", 0), ("RecursionError", 0), ("SystemExit", 1)])
def test_a_bug_says_nothing_in_a_line_that_is_typed(error: str, code: int) -> None:
    program = (
        "import importlib, sys; home = importlib.import_module('ckptsurgeon.cli.completion.answers')\n"
        f"def answer(*_): print('!', file=sys.stderr); raise {error}(1)\n"
        "home.answer = answer; sys.exit(home.run(None))"
    )
    env = {**os.environ, "_CKPT_COMPLETE": "zsh", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], input=b"", capture_output=True, env=env, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")


@pytest.mark.long
def test_arguments_are_carried_out_whatever_the_environment_holds(
    ckpt_process: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_CKPT_COMPLETE", "bash")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = ckpt_process("verify", "nothing.safetensors", input="\n")
    assert (done.code, "nothing.safetensors" in done.err) == (3, True)


@pytest.mark.usefixtures("nets")
def test_the_protocol_as_a_process(ckpt_asked: Run) -> None:
    for shell in SHELLS:
        said = b"partial\nencoder\n" + (b"encoder.\n" if shell == "fish" else b"")  # where a word alone gets a blank
        assert ckpt_asked(shell, "ckpt inspect src.pth --include enc").stdout == said
    assert ckpt_asked("tcsh", "ckpt inspect ").stdout == b""
    assert ckpt_asked("bash", "", b"\xff").stdout == b""


@pytest.mark.long
@pytest.mark.usefixtures("nets")
def test_it_loads_no_torch() -> None:
    code = (
        "import sys, os; from ckptsurgeon.cli import command; from ckptsurgeon.cli.completion.answers import answer\n"
        "print(answer(command, 'zsh', b'ckpt\\0inspect\\0src.pth\\0--include\\0enc\\0').split(), "
        "answer(command, 'zsh', b'ckpt\\0train\\0--set\\0task=ct\\0').split(), *{'torch', 'numpy'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.stdout == "['partial', 'encoder'] ['words', 'task=ctc']\n", done.stderr


@pytest.mark.parametrize(
    ("line", "words", "current", "kept", "plain"),
    [
        ("ckpt inspect a", ("inspect",), "a", "", True),
        ("ckpt inspect ", ("inspect",), "", "", True),
        ("ckpt", None, "", "", True),
        ("X=1 ckpt inspect 'a b' c", ("inspect", "a b"), "c", "", True),
        ("ckpt inspect a\\ b.pth --in", ("inspect", "a b.pth"), "--in", "", True),
        ('ckpt inspect "a\\$b" x', ("inspect", "a$b"), "x", "", True),
        ("ckpt inspect a --include 'enc", ("inspect", "a", "--include"), "enc", "", True),
        ("ckpt inspect a --include=enc", ("inspect", "a"), "--include=enc", "--include=", True),
        ("ckpt inspect a --include='enc", ("inspect", "a"), "--include=enc", "", False),
        ("ckpt inspect a --include e\\nc", ("inspect", "a", "--include"), "enc", "", False),
        ("ckpt x hf://a/b", ("x",), "hf://a/b", "hf:", True),
    ],
)
def test_a_line_of_bash_is_read_by_its_rules(
    line: str, words: tuple[str, ...] | None, current: str, kept: str, plain: bool
) -> None:
    expected = None if words is None else TypedLine(words, current, kept, plain)
    assert typed_in("bash", f"{line}\0{BREAKS}\0") == expected


@pytest.mark.usefixtures("nets")
def test_bash_gets_what_it_replaces() -> None:
    assert told("inspect src.pth --include=enc", "bash") == ("partial", ["encoder"])
    assert told("transplant src.pth dst.pth --on-mismatch head=p", "bash")[1][0] == "pad"
    assert told("inspect src.pth --include 'enc", "bash") == ("partial", ["encoder"])
