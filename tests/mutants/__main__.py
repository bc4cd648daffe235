"""``make mutants``: each change of the table is made in a copy of the project, and the tests that are named have to fail.

``python -m tests.mutants [WORD …]`` takes those whose promise has one of the words; options of pytest stand behind ``--``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from .table import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "site", "screenshots", "demo", "tutorial", "wheels")


def place_of(mutant: Mutant, root: Path) -> Path:
    """Return the one file of the package that has the text."""
    (found,) = [path for path in root.glob("ckptsurgeon/**/*.py") if mutant.before in path.read_text()]
    return found


def tried(mutant: Mutant, copy: Path, options: Sequence[str]) -> tuple[str, str]:
    """Return "caught" or "missed", and the first test that failed; "broken" if that fails anyway."""
    path = place_of(mutant, copy)
    text = path.read_text()
    path.write_text(text.replace(mutant.before, mutant.after))
    try:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider", *options]
        tests = [f"tests/{name}" for name in mutant.tests.split()]
        environment = {**os.environ, "PYTHONPATH": str(copy)}
        done = subprocess.run([*command, *tests], cwd=copy, env=environment, capture_output=True, text=True)
    finally:
        path.write_text(text)
        for compiled in copy.rglob("__pycache__"):  # two texts of one size, written in one second, are one to Python
            shutil.rmtree(compiled)
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+::.*?)(?: - .*)?$", done.stdout, re.M)[:1]
    if failed and subprocess.run([*command, *failed], cwd=copy, env=environment, capture_output=True).returncode:
        return "broken", failed[0]  # it fails without the change, too
    if failed:  # pytest's exit code says less: with workers it is 2 if -x ends the run
        return "caught", failed[0]
    return "missed" if done.returncode == 0 else f"exit {done.returncode}", ""


def main(arguments: Sequence[str]) -> int:
    words, options = list(arguments), ["-m", "not long and not faults and not gpu and not browser", "-n", "2"]
    if "--" in words:
        words, options = words[: words.index("--")], words[words.index("--") + 1 :]
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(ROOT, Path(folder) / "project", ignore=LEFT_OUT, symlinks=True))
        for mutant in MUTANTS:
            if words and not any(word in mutant.promise for word in words):
                continue
            began = time.monotonic()
            end, by = tried(mutant, copy, options)
            missed += end != "caught"
            print(f"{end}  {time.monotonic() - began:4.0f} s  {mutant.promise}  {by[:150]}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
