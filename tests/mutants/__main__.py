"""``make mutants``: each change of the table is made in a copy of the project, and the tests that are named have to fail.

``python -m tests.mutants [WORD …]`` takes those whose promise has one of the words; options of pytest stand behind ``--``.
Two mutants are tried at a time, each in a copy of its own.
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from .table import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
LEFT_OUT = shutil.ignore_patterns(".*", "site", "screenshots", "demo", "tutorial", "wheels")
TOGETHER = 2
"""How many mutants are tried at a time."""


def place_of(mutant: Mutant, root: Path) -> Path:
    """Return the one file of the package that has the text."""
    (found,) = [path for path in root.glob("ckptsurgeon/**/*.py") if mutant.before in path.read_text()]
    return found


def tried(mutant: Mutant, copy: Path, options: Sequence[str]) -> tuple[str, str]:
    """Return "caught" or "missed", and the first test that failed; "broken" if that fails anyway."""
    path = place_of(mutant, copy)
    text = path.read_text()
    _write(path, text.replace(mutant.before, mutant.after))
    try:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider", *options]
        tests = [f"tests/{name}" for name in mutant.tests.split()]
        environment = {**os.environ, "PYTHONPATH": str(copy)}
        done = subprocess.run([*command, *tests], cwd=copy, env=environment, capture_output=True, text=True)
    finally:
        _write(path, text)
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+::.*?)(?: - .*)?$", done.stdout, re.M)[:1]
    if failed and subprocess.run([*command, *failed], cwd=copy, env=environment, capture_output=True).returncode:
        return "broken", failed[0]  # it fails without the change, too
    if failed:  # pytest's exit code says less: with workers it is 2 if -x ends the run
        return "caught", failed[0]
    return "missed" if done.returncode == 0 else f"exit {done.returncode}", ""


def _write(path: Path, text: str) -> None:
    """Write a module, and remove what was compiled of it: two texts of one size and one second are one to Python."""
    path.write_text(text)
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
        compiled.unlink()


def main(arguments: Sequence[str]) -> int:
    words, options = list(arguments), ["-m", "not long and not faults and not gpu and not browser"]
    if "--" in words:
        words, options = words[: words.index("--")], words[words.index("--") + 1 :]
    chosen = [one for one in MUTANTS if not words or any(word in one.promise for word in words)]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(TOGETHER) as pool:
        copies = SimpleQueue[Path]()
        for number in range(TOGETHER):
            copies.put(Path(shutil.copytree(ROOT, Path(folder) / str(number), ignore=LEFT_OUT, symlinks=True)))

        def caught(mutant: Mutant) -> bool:
            copy, began = copies.get(), time.monotonic()
            try:
                end, by = tried(mutant, copy, options)
            finally:
                copies.put(copy)
            print(f"{end}  {time.monotonic() - began:4.0f} s  {mutant.promise}  {by[:150]}", flush=True)
            return end == "caught"

        missed = sum(not one for one in pool.map(caught, chosen))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
