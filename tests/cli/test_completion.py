"""Completion: what each shell is told for what was typed, from keys that may be anything, and in shells that are there."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ckptsurgeon.cli.completion import SHELLS, install, script
from ckptsurgeon.cli.completion.answer import answer
from ckptsurgeon.cli.completion.keys import MOST, few, segments
from ckptsurgeon.cli.completion.typed import Typed, typed_in
from ckptsurgeon.errors import OutputError

Run = Callable[..., Any]
ROOT = Path(__file__).parents[2]
BREAKS = " \t\n\"'><=;|&(:"
"""bash's own COMP_WORDBREAKS."""


def given(shell: str, line: str) -> bytes:
    """What a shell's script writes for a line whose cursor is at its end."""
    if shell == "bash":
        return f"{line}\0{BREAKS}\0".encode()
    return "".join(f"{word}\0" for word in line.split(" ")).encode()


def told(line: str, shell: str = "zsh") -> tuple[str, list[str]]:
    """The kind of the answer to ``ckpt`` and a line behind it, and its candidates."""
    kind, *values = answer(shell, given(shell, f"ckpt {line}")).splitlines()
    return kind, values


@pytest.fixture
def nets() -> None:
    tensors = {f"encoder.layers.{i}.{name}": torch.ones(2) for i in (0, 1, 2, 10) for name in ("weight", "bias")}
    torch.save({**tensors, "ctc.weight": torch.ones(3), "scale": torch.ones(1)}, "src.pth")
    torch.save({"body.weight": torch.ones(2), "head.weight": torch.ones(2)}, "dst.pth")
    torch.save({"model": {"module.a": torch.ones(1)}, "model_ema": {"b": torch.ones(1)}}, "two.pth")


def test_verbs_and_groups() -> None:
    assert told("tr") == ("words", ["transplant", "train"])
    assert told("lora ") == ("words", ["merge", "extract"])
    assert told("lora merge --we") == ("words", ["--weights"])
    assert {"inspect", "lora", "verify"} <= set(told("")[1])
    assert told("no-such-verb ") == ("words", [])


def test_options_of_the_verb() -> None:
    assert told("inspect --s") == ("words", ["--sort", "--stats"])
    assert "--include" in told("--json inspect -")[1]
    assert "--help" in told("verify --h")[1]
    assert told("--inst") == ("words", ["--install-completion"])


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("inspect --sort ", ["size", "key"]),
        ("inspect --sort=s", ["--sort=size"]),
        ("convert x --to ", ["dcp", "pth", "safetensors"]),
        ("transplant a b --on-missing ", ["init", "error"]),
        ("transplant a b --new-tokens m", ["mean"]),
        ("transplant a b --dtype bf", ["bfloat16"]),
        ("transplant a b --dtype k", ["keep"]),
        ("transplant a b --on-mismatch p", ["pad", "positions-1d", "positions-2d", "patch"]),
        ("transplant a b --on-mismatch ctc=i", ["ctc=init", "ctc=interpolate"]),
        ("transplant a b --ruleset light", ["lightning"]),
        ("merge a b --method nea", ["nearswap"]),
        ("merge a b -m nea", ["nearswap"]),
        ("merge --int-buffers ", ["last", "first", "max"]),
        ("train --strategy ", ["ddp", "fsdp"]),
        ("train --set st", ["steps="]),
        ("train --set task=c", ["task=classify", "task=ctc"]),
    ],
)
def test_values_of_options(line: str, values: list[str]) -> None:
    assert told(line)[1] == values


@pytest.mark.parametrize(
    "line", ["inspect ", "inspect sr", "transplant a ", "inspect -- --", "merge a --base ", "filter a -o ", "apply "]
)
def test_files_are_left_to_the_shell(line: str) -> None:
    for shell in SHELLS:
        assert told(line, shell) == ("files", [])


@pytest.mark.usefixtures("nets")
def test_keys_come_module_by_module() -> None:
    assert told("inspect src.pth --include ") == ("words", ["ctc", "encoder", "scale"])
    assert told("inspect src.pth --include enc") == ("partial", ["encoder"])
    assert told("inspect src.pth --include encoder") == ("words", ["encoder", "encoder.layers"])
    assert told("inspect src.pth --include encoder.layers.")[1] == [f"encoder.layers.{i}" for i in (0, 1, 2, 10)]
    assert told("inspect src.pth --include encoder.layers.1.w") == ("words", ["encoder.layers.1.weight"])
    assert told("inspect src.pth --include=sc") == ("words", ["--include=scale"])
    assert told("inspect src.pth --include sc") == ("words", ["scale"])
    assert told("inspect src.pth --include x") == ("words", [])


@pytest.mark.usefixtures("nets")
def test_keys_are_those_of_the_side_that_an_option_speaks_of() -> None:
    for option in ("--include", "--exclude"):
        assert told(f"transplant src.pth dst.pth {option} ")[1] == ["ctc", "encoder", "scale"]
    for option in ("--reinit", "--require", "--explain", "--vocab-keys"):
        assert told(f"transplant src.pth dst.pth {option} ")[1] == ["body", "head"]
    assert told("transplant src.pth dst.pth --on-mismatch h") == ("partial", ["head"])
    assert told("transplant dst.pth --source src.pth --include c") == ("partial", ["ctc"])
    assert told("transplant dst.pth --source src.pth:encoder:body --reinit h") == ("partial", ["head"])


@pytest.mark.usefixtures("nets")
def test_a_rule_goes_on_behind_its_source() -> None:
    assert told("rename src.pth --map sca") == ("partial", ["scale="])
    assert told("rename src.pth --map enc") == ("partial", ["encoder"])
    assert told("rename src.pth --map scale=") == ("words", [])


@pytest.mark.usefixtures("nets")
def test_roots_and_wrappers() -> None:
    assert told("inspect two.pth --root ") == ("words", ["model", "model_ema"])
    assert told("inspect two.pth --include ")[1] == ["a"]
    assert told("inspect two.pth --root model_ema --include ")[1] == ["b"]
    assert told("filter two.pth --include ")[1] == ["module"]
    assert told("filter two.pth --unwrap --include ")[1] == ["a"]


def test_a_configuration_is_never_loaded() -> None:
    Path("dst.yaml").write_text("model: {_target_: evil.Net}")
    Path("evil.py").write_text("open('ran', 'w')")
    torch.save({"a": torch.ones(1)}, "src.pth")
    assert told("transplant src.pth dst.yaml --reinit ") == ("words", [])
    assert told("inspect dst.yaml --include ") == ("words", [])
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "name",
    [
        "$(touch ran)", "`touch ran`", "a b", "a'b", 'a"b', "a;b", "a|b", "a&b", "a>b", "a\nb", "a\tb", "\x1b[31m", "*",
        "a*", "?", "[a]", "{a,b}", "a\\b", "~", "!x", "#x", "a=b", "re:a", "\u202ea", "\u200b", "", "-o", "--force", "(a)",
        "\ud800", "%1", "^a", "$HOME", "\x00",
    ],
    ids=ascii,
)  # fmt: skip
def test_a_key_that_means_more_than_itself_is_left_out(name: str) -> None:
    torch.save(
        {name: torch.ones(1), f"{name}.b": torch.ones(1), f"a.{name}": torch.ones(1), "a.w": torch.ones(1)}, "x.pth"
    )
    for shell in SHELLS:
        assert told("filter x.pth --include ", shell) == ("partial", ["a", "a."] if shell == "fish" else ["a"])
        assert told("filter x.pth --include a.", shell) == ("words", ["a.w"])


def test_keys_of_every_script_and_of_tensorflow_are_offered() -> None:
    torch.save({"wärme.größe": torch.ones(1), "h1/Adam_1": torch.ones(1), "x-y": torch.ones(1)}, "x.pth")
    assert told("inspect x.pth --include ")[1] == ["h1/Adam_1", "wärme", "x-y"]


def test_ninety_thousand_keys_do_not_spill() -> None:
    flat = segments([f"k{i}" for i in range(92_000)], "k1")
    found = few(list(flat))
    assert 10 < len(found) <= MOST
    assert {key for key in flat if not key.startswith(tuple(found))} == set()
    assert len(segments([f"m{i % 7}.k{i}" for i in range(92_000)], "")) == 7


@pytest.fixture
def unreadable() -> list[str]:
    """What holds no keys, would block or never end, or lies elsewhere."""
    Path("broken.pth").write_bytes(b"PK\x03\x04 and no more")
    Path("empty.pth").touch()
    Path("folder").mkdir()
    os.mkfifo("pipe.pth")
    addresses = ["https://127.0.0.1:9/x.pth", "hf://org/x", "memory://x.pth"]
    return ["broken.pth", "empty.pth", "folder", "pipe.pth", "gone.pth", "/dev/zero", *addresses]


def test_what_cannot_be_read_is_passed_over(unreadable: list[str], ckpt_asked: Run) -> None:
    for name in unreadable:
        assert told(f"inspect {name} --include a") == ("words", []), name
        assert told(f"transplant {name} {name} --on-mismatch pa") == ("words", ["pad", "patch"]), name
    done = ckpt_asked("zsh", "ckpt inspect broken.pth --root a")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


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


# ---- shells ----


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


class Terminal:
    """A bash at a terminal, into which is typed."""

    def __init__(self) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(PS1="", TERM="dumb", INPUTRC="/dev/null", LC_ALL="C.UTF-8")
            os.execvp("bash", ["bash", "--noprofile", "--norc", "-i"])

    def types(self, text: str, until: str) -> str:
        """Type, and return what is seen once it matches ``until``."""
        os.write(self.fd, text.encode())
        seen, end = "", time.monotonic() + 60
        while not re.search(until, seen) and time.monotonic() < end:
            if select.select([self.fd], [], [], 0.2)[0]:
                seen += os.read(self.fd, 65536).decode()
        assert re.search(until, seen), seen
        return seen


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
