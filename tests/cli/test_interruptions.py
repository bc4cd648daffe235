"""How a command ends when it is stopped, or when what it writes to is not as it should be."""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon
import ckptsurgeon as cs
from ckptsurgeon.cli import main
from ckptsurgeon.render import verification as receipt

from ..helpers.nursery import BROKEN, CLOSED, COMMAND, run_apart

Run = Callable[..., Any]
TRANSPLANT = ("transplant", "best.pth", "ru.yaml", "--ignore-mismatch", "-o", "out.safetensors")
CONVERT = ("convert", "best.pth", "-o", "out.safetensors")
"""It writes as the other does, and draws nothing, for which that imports torch."""
STOPS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
NUMBERS = [signal.SIGINT, *(pytest.param(number, marks=pytest.mark.long) for number in (signal.SIGTERM, signal.SIGHUP))]

PROGRAM = """
import atexit, os, signal, sys
from ckptsurgeon.cli import main

def stop(*_):
    os.kill(os.getpid(), {number})

class AtImport:
    def __init__(self, name):
        self.name = name
    def find_spec(self, name, path=None, target=None):
        if name == self.name:
            stop()

{setup}
sys.argv = ["ckpt", *{args!r}]
sys.exit(main())
"""


def program(setup: str, *args: str, number: int = signal.SIGINT) -> subprocess.CompletedProcess[str]:
    """Run ``ckpt`` as its console script does, with something prepared."""
    code = PROGRAM.format(number=int(number), setup=setup, args=list(args))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def prepared(setup: str, *args: str, number: int = signal.SIGINT) -> subprocess.CompletedProcess[str]:
    """Run ``ckpt`` in the same way, but forked: for what happens when it has started."""
    return run_apart(PROGRAM.format(number=int(number), setup=setup, args=list(args)))


def left() -> list[str]:
    return sorted(name for name in os.listdir() if name not in ("best.pth", "ru.yaml", "en.txt", "ru.txt"))


# Signals.


@pytest.mark.long
@pytest.mark.parametrize(
    "module", ["ckptsurgeon.cli.application", "typer", "ckptsurgeon.cli.verbs.inspect", "rich.text"]
)
@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_while_it_starts_is_one_line(files: object, module: str, number: signal.Signals) -> None:
    done = program(f"sys.meta_path.insert(0, AtImport({module!r}))", "inspect", "best.pth", number=number)
    assert done.stderr == f"error: {STOPS[number]}; no incomplete file was left.\n"
    assert (done.returncode, done.stdout) == (128 + number, "")


ENTRY = """
import os, signal, sys
signal.signal(signal.SIGINT, {handler})
{first}

class AtImport:
    def find_spec(self, name, path=None, target=None):
        if name == "ckptsurgeon.cli":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, AtImport())
sys.argv = ["ckpt", "--version"]
{run}
"""
ENTRIES = {
    "script": ("from ckptsurgeon.__main__ import main", "sys.exit(main())"),
    "module": ("import runpy", "runpy.run_module('ckptsurgeon', run_name='__main__')"),
}


@pytest.mark.costly
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(("handler", "code"), [("default_int_handler", -signal.SIGINT), ("SIG_IGN", 0)])
def test_ctrl_c_before_the_command_line_is_imported_is_no_traceback(entry: str, handler: str, code: int) -> None:
    first, run = ENTRIES[entry]
    program = ENTRY.format(handler=f"signal.{handler}", first=first, run=run)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (code, "")


def test_nothing_that_takes_time_is_imported_before_ctrl_c_is_what_it_is_elsewhere() -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import ckptsurgeon.__main__; print(*sys.modules)"
    folder = str(Path(ckptsurgeon.__file__).parents[1])
    done = subprocess.run([sys.executable, "-S", "-c", code, folder], capture_output=True, text=True, timeout=120)
    assert not {"typing", "re", "contextlib"} & {*done.stdout.split()}, done


def test_a_signal_while_it_starts_is_json_if_asked_for(files: object) -> None:
    done = program("sys.meta_path.insert(0, AtImport('typer'))", "inspect", "best.pth", "--json")
    error = json.loads(done.stderr)
    assert (error["kind"], error["exit_code"], done.returncode) == ("ckpt.error", 130, 130)
    assert set(error) == {"kind", "version", "error", "exit_code", "message", "hint", "rule", "details"}


WRITING = """
from ckptsurgeon.storage.write import staged_file
real = staged_file.StagedFile.write
def write(self, offset, data):
    real(self, offset, data)
    {do}
staged_file.StagedFile.write = write
"""


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("command", [TRANSPLANT, (*CONVERT[:-1], "folder")], ids=["file", "folder"])
def test_a_signal_while_it_writes_leaves_nothing(
    files: object, number: signal.Signals, command: tuple[str, ...]
) -> None:
    done = prepared(WRITING.format(do="stop(); signal.pause()"), *command, number=number)
    assert (done.returncode, left()) == (128 + number, [])
    assert done.stderr == f"error: {STOPS[number]}; no incomplete file was left.\n"


def test_a_signal_that_a_finaliser_swallows_stops_all_the_same(files: object) -> None:
    code = "class Last:\n    def __del__(self):\n        stop()\n"
    done = prepared(code + WRITING.format(do="last = Last(); del last; signal.pause()"), *CONVERT)
    assert done.stderr == "error: interrupted; no incomplete file was left.\n"
    assert (done.returncode, left()) == (130, [])


def test_a_signal_that_becomes_another_error_is_still_a_signal(files: object) -> None:
    do = "\n    try:\n        stop()\n        signal.pause()\n    except BaseException:\n        raise RuntimeError('wrapped')"
    done = prepared(WRITING.format(do=do), *CONVERT)
    assert done.stderr == "error: interrupted; no incomplete file was left.\n"
    assert (done.returncode, left()) == (130, [])


SWALLOWED = "\n    try:\n        stop()\n    except BaseException:\n        pass"


@pytest.mark.long
def test_a_signal_that_something_swallows_for_good_is_still_told(files: object) -> None:
    once = "\n    staged_file.StagedFile.write = real"
    done = prepared(WRITING.format(do=once + SWALLOWED), *CONVERT)
    assert done.stderr == "error: interrupted; out.safetensors was already written.\n"
    assert (done.returncode, left()) == (130, ["out.safetensors"])


@pytest.mark.long
def test_whoever_insists_gets_out_at_once_and_is_told_what_stays(files: object) -> None:
    setup = "from ckptsurgeon.cli import stopping\nstopping.IMPATIENT_S = 0\n"
    done = prepared(setup + WRITING.format(do=SWALLOWED + "\n    stop(); signal.pause()"), *CONVERT)
    assert done.stderr == "error: interrupted; a temp file may be left; the next run removes it.\n"
    assert done.returncode == 130
    assert run_apart(COMMAND, *CONVERT).returncode == 0
    assert left() == ["out.safetensors"]


def test_an_impatient_second_signal_does_not_disturb_the_cleaning_up(files: object) -> None:
    setup = WRITING.format(do="stop(); signal.pause()") + "unlink = os.unlink\n"
    setup += "def twice(path, **more):\n    stop()\n    unlink(path, **more)\nos.unlink = twice\n"
    done = prepared(setup, *CONVERT)
    assert (done.returncode, left()) == (130, [])


@pytest.mark.long
@pytest.mark.parametrize("output", ["out.safetensors", "folder"])
def test_a_signal_behind_the_rename_says_that_the_output_is_there(files: object, output: str) -> None:
    setup = "from ckptsurgeon.storage.write import folder_exchange, staged_file\n"
    setup += "folder_exchange.sync_folder = staged_file.sync_folder = lambda path: path.endswith('tmp') or stop()\n"
    done = prepared(setup, *CONVERT[:-1], output)
    assert done.stderr == f"error: interrupted; {output} was already written.\n"
    assert (done.returncode, left()) == (130, [output])


def test_a_signal_behind_the_last_word_changes_nothing(files: object) -> None:
    done = program("atexit.register(stop)", "--version")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.long
def test_what_was_told_to_ignore_the_terminal_goes_on_without_it(files: object) -> None:
    setup = "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + WRITING.format(do="stop()")
    done = prepared(setup, *CONVERT, number=signal.SIGHUP)
    assert (done.returncode, left()) == (0, ["out.safetensors"])


@pytest.mark.long
def test_garbage_is_collected_as_before_when_it_was_called_as_a_function(files: object) -> None:
    frozen, thresholds = gc.get_freeze_count(), gc.get_threshold()
    assert main(["inspect", "best.pth", "-q"]) == 0
    assert gc.get_freeze_count() <= frozen
    assert gc.get_threshold() == thresholds


def test_handlers_are_as_before_when_it_was_called_as_a_function(files: object) -> None:
    before = [signal.getsignal(number) for number in (*STOPS, signal.SIGALRM)]
    hook, out = sys.unraisablehook, sys.stdout
    assert main(["--version"]) == 0
    assert [signal.getsignal(number) for number in (*STOPS, signal.SIGALRM)] == before
    assert (sys.unraisablehook, sys.stdout) == (hook, out)


# Streams.


@pytest.fixture(params=["buffered", pytest.param("unbuffered", marks=pytest.mark.long)])
def _buffering(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that is buffered fails when it is flushed, at the end of the interpreter if need be."""
    monkeypatch.setenv("PYTHONUNBUFFERED", "1" if request.param == "unbuffered" else "")


def shell(command: str, *, stdout: int = subprocess.PIPE, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command in which ``ckpt`` is ours; its exit code is the first command's."""
    ckpt = f'ckpt() {{ {sys.executable} -m ckptsurgeon "$@"; }}; {command}\nexit ${{PIPESTATUS[0]}}'
    env = {**os.environ, **environment}
    return subprocess.run(["bash", "-c", ckpt], stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60, env=env)


def streaming(rest: str, *, out: str = "", err: str = "") -> subprocess.CompletedProcess[str]:
    """Run ``ckpt`` with a stream that is closed, or another file: started by a shell if it inspects, otherwise forked."""
    if rest == "inspect best.pth":
        return shell(f"ckpt {rest}" + "".join(f" {n}>{_to(name)}" for n, name in ((1, out), (2, err)) if name))
    return run_apart(COMMAND, *rest.split(), out=out, err=err, streams=True)


def _to(name: str) -> str:
    return "&-" if name == CLOSED else name


@pytest.mark.long
@pytest.mark.usefixtures("_buffering")
@pytest.mark.parametrize(
    "rest", ["inspect best.pth", "-h", "inspect best.pth --json", "merge --list", " ".join(CONVERT)]
)
def test_a_closed_stdout_loses_no_answer_without_a_word(files: object, rest: str) -> None:
    done = streaming(rest, out=CLOSED)
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.count("error: cannot write the result to stdout: ") + done.stderr.count('"exit_code": 5') == 1
    assert done.stderr.endswith("out.safetensors was written.\n") == ("-o" in rest)


@pytest.mark.long
def test_a_closed_stdout_is_no_fault_where_nothing_is_to_be_said(files: object) -> None:
    done = streaming(f"{' '.join(CONVERT)} -q", out=CLOSED)
    assert (done.returncode, done.stderr, left()) == (0, "", ["out.safetensors"])


@pytest.mark.long
def test_a_closed_stdout_never_lends_its_number_to_an_output(files: object) -> None:
    assert shell(f"ckpt {' '.join(CONVERT)} -v <&- >&- 2>&-").returncode == 5
    assert cs.verify("out.safetensors").ok


@pytest.mark.usefixtures("_buffering")
@pytest.mark.parametrize("to", [CLOSED, "/dev/full"])
@pytest.mark.parametrize(("rest", "code"), [("inspect nothing", 3), ("inspect best.pth", 0), ("nonsense", 2)])
def test_a_broken_stderr_keeps_the_exit_code(files: object, to: str, rest: str, code: int) -> None:
    assert streaming(rest, err=to).returncode == code


@pytest.mark.usefixtures("_buffering")
@pytest.mark.parametrize(
    "rest", ["inspect best.pth", "inspect best.pth --keys", "init best.pth", "-h", "inspect -h", "--version", "inspect best.pth --json"]
)  # fmt: skip
def test_a_full_stdout_is_an_output_that_cannot_be_written(files: object, rest: str) -> None:
    done = streaming(rest, out="/dev/full")
    assert done.returncode == 5
    assert done.stderr.count("cannot write the result to stdout: No space left on device.") == 1
    assert done.stderr.count("\n") == 1


@pytest.mark.long
@pytest.mark.usefixtures("_buffering")
def test_a_full_stdout_does_not_hide_that_the_output_was_written(files: object) -> None:
    done = streaming(" ".join(CONVERT), out="/dev/full")
    assert done.returncode == 5
    assert done.stderr.endswith("device. out.safetensors was written.\n")
    assert left() == ["out.safetensors"]


@pytest.mark.usefixtures("_buffering")
@pytest.mark.parametrize("rest", ["inspect best.pth", "inspect best.pth --keys", "-h", "--version"])
def test_a_closed_pipe_is_quiet_and_141(files: object, rest: str) -> None:
    if rest == "inspect best.pth":
        reading, writing = os.pipe()
        os.close(reading)
        try:
            done = shell(f"ckpt {rest}", stdout=writing)
        finally:
            os.close(writing)
    else:
        done = streaming(rest, out=BROKEN)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.long
@pytest.mark.parametrize("encoding", ["ascii", pytest.param("latin-1", marks=pytest.mark.long), "utf-8"])
def test_what_an_encoding_lacks_is_written_in_another_way(encoding: str) -> None:
    import torch

    torch.save({f"слой{i}.weight_number_{i}": torch.ones(2) for i in range(9)}, "net.pth")
    for words in (("inspect", "net.pth"), ("inspect", "ничего.pth"), ("init", "net.pth")):
        if (encoding, *words) == ("ascii", "inspect", "net.pth"):
            done = shell("ckpt inspect net.pth", PYTHONIOENCODING=encoding)
        else:
            done = run_apart(COMMAND, *words, streams=True, PYTHONIOENCODING=encoding)
        assert done.returncode == (3 if words[1] == "ничего.pth" else 0)
        assert "Traceback" not in done.stderr
        assert "bug" not in done.stderr
        said = done.stdout + done.stderr
        assert "\\u0441" in said or "\\u043d" in said or encoding == "utf-8"


# What else may go wrong.


def test_a_working_directory_that_is_gone_is_named(ckpt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptsurgeon.api import inspect as inspecting

    def broken(*_: object, **__: object) -> None:
        os.getcwd()

    monkeypatch.setattr(inspecting, "inspect", broken)
    Path("gone").mkdir()
    monkeypatch.chdir("gone")
    os.rmdir("../gone")
    done = ckpt("inspect", "x.pth")
    assert (done.code, "the working directory no longer exists" in done.err) == (3, True)


def test_an_error_of_the_system_names_its_file(ckpt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptsurgeon.api import inspect as inspecting

    def broken(*_: object, **__: object) -> None:
        os.listdir("some/where")

    monkeypatch.setattr(inspecting, "inspect", broken)
    done = ckpt("inspect", "x.pth")
    assert (done.code, done.err) == (3, "error: some/where: No such file or directory.\n")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("can't start new thread"),
        ImportError("x.so: failed to map segment from shared object"),
    ],
    ids=["objects", "a thread", "a library"],
)
def test_no_memory_is_said_even_where_there_is_none_for_colours(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ckptsurgeon.cli import failing, printing

    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(printing, "console_of", full)
    assert failing.failed(error, [], as_json=False) == 3
    assert capsys.readouterr().err == "error: not enough memory.\n"


def test_a_module_that_is_damaged_is_not_called_a_lack_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An installation that is being changed, or was half copied, was "not enough memory" for every command."""
    from ckptsurgeon.cli import failing

    monkeypatch.setattr(failing, "_PACKAGE", f"{tmp_path}/")
    for text, code in (("x = 1\n", 3), ("<<<<<<< HEAD\n", 70)):
        Path("some.py").write_text(text)
        error = SyntaxError("invalid syntax", (f"{tmp_path}/some.py", 1, 1, text))
        assert failing.failed(error, [], as_json=False) == code
        err = capsys.readouterr().err
        assert ("not enough memory" in err) is (code == 3)
        assert ("invalid syntax (some.py, line 1)" in err) is (code == 70)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), 0),
        (OSError(errno.ENOMEM, "no room"), 0),
        (SyntaxError("expected ':'", (receipt.__file__, 1, 1, "")), 0),
        (SyntaxError("expected ':'", ("task.py", 1, 1, "")), 70),
        (ValueError("another"), 70),
    ],
)
def test_no_memory_to_show_what_was_written_is_a_note(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(receipt, "receipt_view", fails)
    torch.save({"w": torch.ones(2)}, "s.pth")
    assert main(["convert", "s.pth", "-o", "o.safetensors"]) == code
    assert cs.verify("o.safetensors").ok
    said = "note: o.safetensors is written, but there is not enough memory to show the receipt."
    err = capfd.readouterr().err
    assert (err.splitlines() == [said]) is (code == 0)
    assert "o.safetensors is written" in err
