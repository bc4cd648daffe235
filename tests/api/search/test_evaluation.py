"""The evaluation command: which number is the score, and every way in which it can fail makes an outcome, no crash."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import pytest

from ckptsurgeon.api.search.evaluation import Command, Runner
from ckptsurgeon.api.search.evaluator import Outcome
from ckptsurgeon.errors import ConfigError

from ...helpers.waiting import wait_until


def command(body: str, **options: object) -> Command:
    Path("script.py").write_text(f"import sys, os, signal, subprocess\n{body}\n")
    return Command.parsed("--evaluate", f"{sys.executable} -I -S script.py {{model}}", **options)  # type: ignore[arg-type]


def run(body: str, **options: object) -> Outcome:
    return Runner(command(body, **options)).evaluate("the model.pth")


@pytest.mark.parametrize(
    ("printed", "score"),
    [
        ("0.5", 0.5), ("accuracy: 0.25", 0.25), ("loss = 1e-3\n", 1e-3), ("WER: 12.5 %", 12.5), ("a\n1\nb\n2\n", 2.0),
        ("accuracy: 0.8\nof 100 clips", 0.8), ("got 3 of 4 right", 4.0), ("score: -1.5E+2", -150.0),
        ('{"wer": 0.125}', 0.125), ("\x1b[1maccuracy: 0.75\x1b[0m", 0.75), ("0.5, 0.25", 0.25), ("layer2 has 7", 7.0), (".5", 0.5), ("loss: 1\nepoch done\nloss: 0.5\n\n", 0.5),
        ("food: 0.3 on 40\nmean accuracy: 0.575 (n=120)", 0.575), ("%WER 12.30 [ 45 / 366, 3 ins, 2 del, 1 sub ]", 12.3),
        ("acc (dev): 0.5", 0.5), ("accuracy: 0.93 ± 0.02", 0.93), ("0.93 +/- 0.02 (95 %)", 0.93), ("f1: 91.5% +- 1%", 91.5), ("[0.25]", 0.25), ("(n=7)", 7.0),
    ],
)  # fmt: skip
def test_the_score_is_the_last_line_with_a_value_or_the_last_number(printed: str, score: float) -> None:
    assert command("").score(printed) == Outcome(score)


@pytest.mark.parametrize(
    "printed",
    [
        "read out.study/models/1", "read /tmp/out.study/7/model.pth", "C:\\runs\\3", "75/100 right", "2026-11-30",
        "at 12:30:05", "epoch-3", "3-fold done",
    ],
)  # fmt: skip
def test_numbers_in_paths_fractions_dates_and_times_are_no_score(printed: str) -> None:
    assert command("").score(printed).why == "the command printed no number"
    assert command("").score(f"{printed}\nthe score is 0.5 ({printed})").score == 0.5


@pytest.mark.costly
@pytest.mark.parametrize(
    ("printed", "note"),
    [
        ("accuracy: 0.9\nloss: 0.2", "(accuracy, loss), of which the last one is the score: loss"),
        ("loss: 0.2\n0.9", "(loss, a number alone), of which the last one is the score: a number alone"),
        ("0.5 0.7", "a line with several numbers (0.5, 0.7), of which the last one is the score: 0.7"),
        ("accuracy: 0.9, loss: 0.2", "a line with several numbers (0.9, 0.2), of which the last one is the score: 0.2"),
        ("got 3 of 4 right (n=9)\nthe end", "a line with several numbers (3, 4), of which the last one is the score: 4"),
        ("loss: 1\nloss: 0.5", ""), ("read 7 clips\naccuracy: 0.9", ""), ("0.5\n0.6", ""),
        ("0.5 0.7\n0.6", ""), ("0.5 0.7\nthe score is 0.6 (of 2, 3)", ""), ("0.5 0.7\nloss: 0.6", ""),
    ],
)  # fmt: skip
def test_several_scores_are_noted(printed: str, note: str) -> None:
    """Else a search may make a loss larger, because the command prints it behind the accuracy."""
    runner = Runner(command(f"print({printed!r})"))
    assert None not in (runner.evaluate("a.pth").score, runner.evaluate("b.pth").score)
    assert len(runner.notes) == bool(note)
    assert not note or note in runner.notes[0]
    chosen = Runner(command(f"print({printed!r})", metric="loss"))
    chosen.evaluate("a.pth")
    assert not chosen.notes


@pytest.mark.parametrize("filling", [" ", "1", "1 ", "a", ".", "-", "1."])
def test_long_lines_take_no_time(filling: str) -> None:
    """Progress bars fill lines; the regular expressions are quadratic in the length of a line."""
    begin = time.monotonic()
    command("").score(filling * (65536 // len(filling)) + "x")
    assert command("").score(filling * (65536 // len(filling)) + "\nscore: 0.5").score == 0.5
    assert time.monotonic() - begin < 2


def test_a_metric_chooses_its_line() -> None:
    by_metric = command("", metric="wer")
    assert by_metric.score("wer: 0.5\ncer: 0.25\n").score == 0.5
    assert by_metric.score("wer: 0.5\nwer: 0.4\ncer: 0.25\n").score == 0.4
    assert command("", metric="acc (dev)").score("acc (dev): 0.5 (n=3)\n0.25").score == 0.5
    assert by_metric.score("wer: 0.5 (3 of 6)\nbest wer: 0.1\n").score == 0.5
    assert by_metric.score("cer: 0.25\n3\n").why == "the command printed no line of the form wer: NUMBER"


@pytest.mark.parametrize("printed", ["score: nan", "NaN", "inf", "score: -inf", "score: -Infinity", "score is nan"])
def test_a_score_that_is_not_finite_is_none(printed: str) -> None:
    found = command("").score(printed)
    assert found.score is None
    assert found.why.endswith("not a finite number")


def test_the_model_is_one_word_of_the_command_and_no_shell_reads_it() -> None:
    assert run("print(len(sys.argv), sys.argv[1] == 'the model.pth', 1)").score == 1
    words = Command.parsed("--evaluate", f"{sys.executable} --on={{model}} '$(touch x)' ; touch y").of("m; touch z")
    assert words[1:] == ["--on=m; touch z", "$(touch x)", ";", "touch", "y"]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("pass", "the command printed no number"),
        ("print('fine')", "the command printed no number"),
        ("print('accuracy: 0,83')", "the command printed no number; a number with a comma is not read"),
        ("print('score: nan')", "the score is nan, not a finite number"),
        ("print(1); sys.exit(1)", "the command failed with exit status 1"),
        ("print(1); raise ValueError('no data')", "the command failed with exit status 1: ValueError: no data"),
        ("print(1, flush=True); os.kill(os.getpid(), 9)", "the command was killed by signal 9"),
        (
            "sys.stderr.write('cannot read dev.csv\\n')",
            "the command printed no number; the last line of its stderr: cannot read dev.csv",
        ),
        ("print(1, file=sys.stderr)", "the command printed no number; the last line of its stderr: 1"),
        ("os.write(1, b'\\xff\\xfe\\n')", "the command printed no number"),
        ("assert sys.stdin.read() == ''", "the command printed no number"),
    ],
)
def test_a_command_that_fails_is_an_outcome_with_its_reason(body: str, why: str) -> None:
    found = run(body)
    assert (found.score, found.why) == (None, why)


def test_a_command_that_writes_much_neither_waits_nor_fills_memory() -> None:
    body = (
        "for _ in range(64): sys.stderr.write('x' * 65536 + '\\n'); sys.stdout.write('9 ' * 32768 + '\\n')\nprint(0.5)"
    )
    assert run(body).score == 0.5


def test_a_command_that_hangs_is_killed() -> None:
    assert run("signal.pause()", timeout=0.125).why == "the command ran for more than 0.125 s, and was killed"


@pytest.mark.long
def test_a_command_that_hangs_is_killed_with_what_it_started() -> None:
    body = "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
    body += "open('pid', 'w').write(str(child.pid))\nprint(1, flush=True)\nsignal.pause()"
    begin = time.monotonic()
    found = run(body, timeout=5.0)
    assert found.why == "the command ran for more than 5 s, and was killed"
    assert time.monotonic() - begin < 60
    wait_until(lambda: not is_alive(int(Path("pid").read_text())))


def test_what_a_command_leaves_running_is_killed_and_keeps_no_one_waiting() -> None:
    body = "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
    body += "open('pid', 'w').write(str(child.pid))\nprint(0.25)"
    begin = time.monotonic()
    assert run(body).score == 0.25
    assert time.monotonic() - begin < 60
    wait_until(lambda: not is_alive(int(Path("pid").read_text())))


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_stopping_kills_what_runs_and_starts_no_more() -> None:
    runner, found = Runner(command("open('begun', 'w'); signal.pause()")), list[Outcome]()
    thread = threading.Thread(target=lambda: found.append(runner.evaluate("m")))
    thread.start()
    wait_until(lambda: os.path.exists("begun"))
    runner.stop()
    thread.join(60)
    assert found[0].why == "the command was killed by signal 9"
    assert "interrupted" in runner.evaluate("m").why


def test_a_script_that_is_not_executable_is_told_how_to_become_so() -> None:
    Path("judge.sh").write_text("#!/bin/sh\n")
    with pytest.raises(ConfigError, match=r"Make the file executable: chmod \+x ./judge\.sh\."):
        Command.parsed("--evaluate", "./judge.sh {model}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no {model}"),
        ("python evaluate.py", "has no {model}"),
        ("python 'evaluate.py {model}", "is not a command: No closing quotation"),
        ("no-such-program {model}", "there is no program no-such-program that can be run"),
    ],
)
def test_a_command_that_cannot_run_is_an_error_before_any_trial(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Command.parsed("--evaluate", text)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_time_that_is_none_is_an_error(seconds: float) -> None:
    with pytest.raises(ConfigError, match="trial_timeout"):  # as the argument of Python is called
        Command.parsed("--evaluate", f"{sys.executable} {{model}}", timeout=seconds)


def test_a_program_that_goes_away_makes_a_failed_trial() -> None:
    Path("tool").write_text("#!/bin/sh\necho 1\n")
    Path("tool").chmod(0o755)
    gone = Command.parsed("--evaluate", "./tool {model}")
    assert Runner(gone).evaluate("m").score == 1
    Path("tool").unlink()
    assert Runner(gone).evaluate("m").why.startswith("the command cannot be started: No such file")
