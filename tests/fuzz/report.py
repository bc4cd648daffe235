"""Fuzzes one target after the other and prints what came of it: ``python -m tests.fuzz.report [--page] [NAME …]``.

FUZZ_SECONDS is the time of each; else all of them take ten minutes together. ``--page`` puts the table into
docs/explanation/safety.md.
"""

from __future__ import annotations

import datetime
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.target import names

PAGE = Path(__file__).parents[2] / "docs/explanation/safety.md"
BEGIN, END = "<!-- fuzzed -->\n", "<!-- end of fuzzed -->\n"
TOGETHER = 600
"""Seconds of all targets together."""


@dataclass(frozen=True)
class Run:
    """What fuzzing one target did: inputs, seconds, megabytes, edges of the code that were covered; how it ended."""

    name: str
    inputs: int
    seconds: int
    megabytes: int
    covered: int
    ended: int

    @property
    def row(self) -> str:
        said = "none" if self.ended == 0 else f"one (exit {self.ended})"
        return f"| {self.name} | {self.inputs:,} | {self.seconds} | {self.covered:,} | {self.megabytes} | {said} |"


def fuzzed(name: str, seconds: int) -> Run:
    """Fuzz a target in a process of its own, whose output is shown where it found something."""
    command = [sys.executable, "-m", "tests.fuzz", name]
    with tempfile.TemporaryDirectory() as folder:  # libFuzzer leaves without a word to Python
        env = {**os.environ, "FUZZ_SECONDS": str(seconds), "TMPDIR": folder}
        done = subprocess.run(command, env=env, capture_output=True, text=True, errors="replace")
    if done.returncode:
        sys.stderr.write((done.stdout + done.stderr)[-6000:])
    return _read(name, done.stderr, done.returncode)


def _read(name: str, said: str, ended: int) -> Run:
    """Read what libFuzzer prints at its end."""

    def last(pattern: str) -> int:
        found = re.findall(pattern, said)
        return int(found[-1]) if found else 0

    return Run(
        name,
        last(r"number_of_executed_units: *(\d+)") or last(r"(?m)^#(\d+)\t"),
        last(r"Done \d+ runs in (\d+) second"),
        last(r"peak_rss_mb: *(\d+)") or last(r"rss: (\d+)Mb"),
        last(r"cov: (\d+)"),
        ended,
    )


def table(runs: Sequence[Run]) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    when = f"{datetime.date.today()}, {commit}" if commit else f"{datetime.date.today()}"
    inputs, found = sum(run.inputs for run in runs), sum(run.ended != 0 for run in runs)
    rows = [
        f"| reader ({when}) | inputs | seconds | edges covered | peak MB | findings |",
        "|---|--:|--:|--:|--:|---|",
        *(run.row for run in runs),
        f"| in all | {inputs:,} | {sum(run.seconds for run in runs)} | | | {found or 'none'} |",
    ]
    return "\n".join(rows) + "\n"


def on_page(text: str) -> None:
    before, begin, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + begin + text + END + rest.partition(END)[2])


def main(asked: Sequence[str]) -> int:
    """Return 1 where something was found."""
    chosen = [name for name in asked if name != "--page"] or names()
    seconds = int(os.environ.get("FUZZ_SECONDS") or max(1, TOGETHER // len(chosen)))
    runs = []
    for name in chosen:
        runs.append(fuzzed(name, seconds))
        print(runs[-1].row, flush=True)
    print(f"\n{table(runs)}", end="")
    if "--page" in asked:
        on_page(table(runs))
    return int(any(run.ended for run in runs))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
