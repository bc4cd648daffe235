"""What each shell gives, and what the program says to it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ckptsurgeon.cli.completion import SHELLS
from ckptsurgeon.cli.completion.answer import answer
from ckptsurgeon.cli.completion.typed import Typed, typed_in

from .asked import BREAKS, ROOT, Run, told


@pytest.mark.parametrize("shell", [*SHELLS, "tcsh", ""])
@pytest.mark.parametrize("data", [b"", b"\0", b"\xff\0\xfe\0", b"ckpt\0", b"ckpt 'a\0\0", b"no end"])
def test_nothing_is_said_to_what_no_shell_gives(shell: str, data: bytes) -> None:
    try:
        said = answer(shell, data)
    except Exception:  # which run() keeps to itself
        return
    assert said.split("\n")[0] in ("", "words", "files")


@pytest.mark.usefixtures("nets")
def test_the_protocol_as_a_process(ckpt_asked: Run) -> None:
    for shell in SHELLS:
        said = b"partial\nencoder\n" + (b"encoder.\n" if shell == "fish" else b"")  # where a word alone gets a blank
        assert ckpt_asked(shell, "ckpt inspect src.pth --include enc").stdout == said
    assert ckpt_asked("tcsh", "ckpt inspect ").stdout == b""
    assert ckpt_asked("bash", "", b"\xff").stdout == b""


@pytest.mark.usefixtures("nets")
def test_it_loads_no_torch() -> None:
    code = (
        "import sys, os; from ckptsurgeon.cli.completion.answer import answer\n"
        "print(answer('zsh', b'ckpt\\0inspect\\0src.pth\\0--include\\0enc\\0').split(), "
        "answer('zsh', b'ckpt\\0train\\0--set\\0task=ct\\0').split(), *{'torch', 'numpy'} & sys.modules.keys())"
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
    expected = None if words is None else Typed(words, current, kept, plain)
    assert typed_in("bash", f"{line}\0{BREAKS}\0") == expected


@pytest.mark.usefixtures("nets")
def test_bash_gets_what_it_replaces() -> None:
    assert told("inspect src.pth --include=enc", "bash") == ("partial", ["encoder"])
    assert told("transplant src.pth dst.pth --on-mismatch head=p", "bash")[1][0] == "pad"
    assert told("inspect src.pth --include 'enc", "bash") == ("partial", ["encoder"])
