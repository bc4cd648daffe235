"""Runs the user's evaluation command on a model, and reads the score that it prints.

The command runs without a shell, in a process group of its own that is killed when the command has ended, failed or
run for too long. If anything goes wrong with the command, only this trial fails.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from ...errors import ConfigError
from ...util.text import brief_repr, escape, listing
from .evaluator import Outcome, check_timeout, finite_score

__all__ = ["MODEL", "SAID", "Command", "Runner", "Tail", "last_line"]

MODEL = "{model}"
"""The text in the command that stands for the path of the model."""
KEPT_BYTES = 64 << 10
"""Only the last bytes of each output stream of the command are kept, at most this many."""
LINE = 1000
"""Only the last characters of a line are read, at most this many."""
SAID = 300
"""At most this many characters of the command's error are recorded in a trial."""
NAMES = 5
"""A note lists at most this many names of numbers."""
GRACE_S = 5.0
"""After all processes of the command have been killed, the rest of its output is read for at most this many seconds."""

_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?|[-+]?(?:nan|inf(?:inity)?)\b"
# Text such as 0,5 or 1,500 is not read as a number, because it is ambiguous: a comma may mark decimals or thousands.
# Numbers in paths (the path of the model has the trial's number), fractions, dates and times are not read, either.
_NUMBERS = re.compile(rf"(?<![\w./\\-])(?<!\d[,:])(?:{_NUMBER})(?![\w.]*\w)(?![/\\]|-\w|[,:]\d)", re.IGNORECASE)
# What follows a score in a line is not the score: a percent sign, a margin ("± 0.02"), text in brackets ("(n=120)").
_AFTER = rf"\s*%?(?:\s*(?:±|\+/?-)\s*(?:{_NUMBER})\s*%?)?(?:\s*[(\[].*)?"
_LINE = re.compile(rf"([^:=]*)[:=]\s*({_NUMBER}){_AFTER}", re.IGNORECASE)
_ALONE = re.compile(rf"({_NUMBER}){_AFTER}", re.IGNORECASE)
_BRACKETS = re.compile(r"\([^()]*\)|\[[^][]*\]")


@dataclass(frozen=True)
class Command:
    """An evaluation command: its words, and how its score is read.

    ``metric`` is the name of the score in the lines that the command prints, '' if its last number is the score.
    ``timeout`` is the number of seconds after which the command is killed, None for no limit.
    """

    words: tuple[str, ...]
    metric: str = ""
    timeout: float | None = None

    @classmethod
    def parsed(cls, option: str, text: str, *, metric: str = "", timeout: float | None = None) -> Command:
        """Return the command in ``text``, the value of an option; raises ConfigError if it cannot be run."""
        try:
            words = tuple(shlex.split(text))
        except ValueError as error:
            raise ConfigError(
                f"{option} {brief_repr(text, 200)} is not a command: {error}.", hint="Close each quotation mark."
            ) from None
        if not words or not any(MODEL in word for word in words):
            raise ConfigError(
                f"{option} {brief_repr(text, 200)} has no {MODEL}, which stands for the path of the model.",
                hint=f"Write {MODEL} in place of the path of the model: python evaluate.py {MODEL}.",
            )
        if shutil.which(words[0]) is None:
            raise ConfigError(
                f"{option}: there is no program {escape(words[0])} that can be run.",
                hint=f"Make the file executable: chmod +x {escape(words[0])}."
                if os.path.isfile(words[0])
                else "The command runs without a shell: give a program and its arguments.",
            )
        check_timeout(timeout)
        return cls(words, metric, timeout)

    def of(self, model: str) -> list[str]:
        """Return the words of the command, with the path of the model in place of ``{model}``."""
        return [word.replace(MODEL, model) for word in self.words]

    def score(self, text: str) -> Outcome:
        """Return the score in ``text``, the output of the command, or the reason why there is none.

        The score is the value in the last line ``metric: value``. If no ``metric`` is set, it is the value in the last
        line that is ``name: value`` or only a number; if there is no such line, the last number that is not in
        brackets, or else the last number.
        """
        lines = [line[-LINE:].strip() for line in text.splitlines()]
        if self.metric:
            named = [found for line in lines if (found := _LINE.fullmatch(line)) and found[1].strip() == self.metric]
            if not named:
                return Outcome(None, f"the command printed no line of the form {escape(self.metric)}: NUMBER")
            return _finite(named[-1][2])
        for line in reversed(lines):
            if found := _LINE.fullmatch(line) or _ALONE.fullmatch(line):
                return _finite(found[found.lastindex or 1])
        if numbers := _last_numbers(lines):
            return _finite(numbers[-1])
        has_comma = re.search(r"\d,\d", text) is not None
        return Outcome(
            None, f"the command printed no number{'; a number with a comma is not read' if has_comma else ''}"
        )

    def note(self, text: str) -> str:
        """Return a note if it is not clear which number in ``text``, the output of the command, is the score; else ''.

        It is not clear if there are scores with different names, or several numbers in the line that has the score.
        """
        lines = [line[-LINE:].strip() for line in text.splitlines()]
        found = [one for line in lines if (one := _LINE.fullmatch(line) or _ALONE.fullmatch(line))]
        names = [one[1].strip() if one.re is _LINE else "a number alone" for one in found]
        numbers = [] if found else _last_numbers(lines)
        if self.metric or max(len(set(names)), len(numbers)) < 2:
            return ""
        what = "several numbers" if found else "a line with several numbers"
        listed = list(dict.fromkeys(names)) if found else numbers
        return (
            f"the evaluation prints {what} ({listing(listed, NAMES, where='')}), of which the last one is the score: "
            f"{escape((names or numbers)[-1], SAID)}; --metric NAME reads a line NAME: NUMBER"
        )


def _last_numbers(lines: Sequence[str]) -> list[str]:
    """Return the numbers of the last line with a number that is not in brackets, or else of the last with a number."""
    for line in (*(_BRACKETS.sub("", line) for line in reversed(lines)), *reversed(lines)):
        if numbers := _NUMBERS.findall(line):
            return numbers
    return []


def _finite(text: str) -> Outcome:
    return finite_score(float(text), text.strip())


class Runner:
    """Runs a command on models, several at a time if called from several threads; ``stop`` kills running commands.

    ``notes`` has a note if the command printed several scores.
    """

    def __init__(self, command: Command) -> None:
        self._command = command
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False
        self.notes: list[str] = []

    def evaluate(self, model: str) -> Outcome:
        """Run the command on a model, and return its score; a failure of the command is an outcome without a score."""
        begin = time.monotonic()
        try:
            process = self._started(self._command.of(model))
        except OSError as error:
            return Outcome(None, f"the command cannot be started: {error.strerror or error}", time.monotonic() - begin)
        found = self._outcome(self._command, process)
        return Outcome(found.score, found.why, time.monotonic() - begin)

    def stop(self) -> None:
        """Kill all commands that are running, and start no more."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                _kill_group(process)

    def _started(self, words: Sequence[str]) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._stopped:
                raise OSError("ckpt search was interrupted")
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
            )
            self._running.add(process)
        return process

    def _outcome(self, command: Command, process: subprocess.Popen[bytes]) -> Outcome:
        assert process.stdout is not None
        assert process.stderr is not None
        out, err = Tail(process.stdout), Tail(process.stderr)
        try:
            code = process.wait(command.timeout)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with self._lock:
                self._running.discard(process)
            _kill_group(process)  # also kills what the command left running
            process.wait()
        printed, complained = out.text(), err.text()
        if code is None:
            return Outcome(None, f"the command ran for more than {command.timeout:g} s, and was killed")
        if code != 0:
            how = f"was killed by signal {-code}" if code < 0 else f"failed with exit status {code}"
            return Outcome(None, f"the command {how}{last_line(complained)}")
        found = command.score(printed)
        if found.score is None:
            said = last_line(complained)
            return Outcome(None, f"{found.why}; the last line of its stderr{said}" if said else found.why)
        self.notes = self.notes or list(filter(None, [command.note(printed)]))
        return found


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)


def last_line(text: str) -> str:
    """Return ": " and the last line that is not empty, to be added to a message; '' if there is no such line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f": {escape(lines[-1], SAID)}" if lines else ""


class Tail:
    """Reads a stream to its end in a thread, so that the command never waits, and keeps its last bytes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._kept, self._dropped = stream, b"", 0
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with suppress(OSError, ValueError), self._stream:
            while data := os.read(self._stream.fileno(), KEPT_BYTES):
                kept = (self._kept + data)[-KEPT_BYTES:]
                self._dropped += len(self._kept) + len(data) - len(kept)
                self._kept = kept

    def text(self) -> str:
        """Return the last lines of the stream; the first line is left out if its beginning was dropped."""
        self._thread.join(GRACE_S)
        text = self._kept.decode("utf-8", "replace")
        return text.partition("\n")[2] if self._dropped and "\n" in text else text
