"""Lays out the packages that a machine without network lacks, so that the tests run there from a checkout, uninstalled.

    python -m tests.wheels [--python 3.12] [--also NAME ...] [--limit 64]

The machine has a GPU, Python, torch, numpy, transformers and pytest. What else the code imports is fetched by pip, as wheels for
that Python on x86-64 Linux, in the versions of ``constraints.txt``, and unpacked into ``wheels/3.12/``, which git ignores. Take
the checkout there with this folder in it: ``tests/__init__.py`` finds it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from . import ROOT

LACKING = (
    "cffi", "fnmatch2", "httpcore2", "httpx2", "isal", "jiwer", "pycparser", "rapidfuzz", "soundfile", "soxr", "truststore",
)  # fmt: skip
"""What a machine for training with transformers lacks."""
BARE = (
    "annotated-doc", "anyio", "certifi", "click", "execnet", "filelock", "fsspec", "h11", "hf-xet", "huggingface_hub", "hypothesis",
    "idna", "iniconfig", "markdown-it-py", "mdurl", "packaging", "pluggy", "pygments", "pytest", "pytest-timeout",
    "pytest-xdist", "PyYAML", "rich", "safetensors", "shellingham", "sortedcontainers", "tqdm", "typer", "typing_extensions",
)  # fmt: skip
"""What one lacks besides that has torch, numpy and transformers alone."""
PLATFORMS = ("manylinux1", "manylinux2014", "manylinux_2_17", "manylinux_2_27", "manylinux_2_28")
MIB = 2**20


def main(given: Sequence[str] | None = None, *, to: Path = ROOT / "wheels", packages: Sequence[str] = LACKING) -> None:
    """Make the folder anew; exits if it would be larger than it may be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="3.12", help="the version of Python there")
    parser.add_argument("--bare", action="store_true", help="the machine has torch, numpy and transformers alone")
    parser.add_argument(
        "--also", nargs="+", default=[], metavar="NAME", help="more packages; what they need is not added"
    )
    parser.add_argument("--limit", type=float, default=64, help="the most MiB that the folder may have")
    options = parser.parse_args(given)
    names = [*packages, *(BARE if options.bare else ()), *options.also]
    to.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to) as folder:
        fresh = Path(folder, "fresh")
        unpack(names, fresh, python=options.python)
        size = nbytes(fresh)
        if size > options.limit * MIB:
            sys.exit(
                f"{to / options.python} would have {size / MIB:.1f} MiB, more than {options.limit:g}.{largest(fresh)}"
            )
        shutil.rmtree(to / options.python, ignore_errors=True)
        fresh.rename(to / options.python)
    print(f"{to / options.python}: {len(names)} packages, {size / MIB:.1f} MiB")
    if options.bare:  # pytest is among them, which Python looks for before it imports the tests
        print(f"Run there: PYTHONPATH={to.name}/{options.python} python3 -m pytest -m gpu")


def unpack(names: Sequence[str], to: Path, *, python: str) -> None:
    """Let pip fetch wheels for another Python, and unpack them; nothing of them runs here."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-compile",
    ]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    command += [part for name in PLATFORMS for part in ("--platform", f"{name}_x86_64")]
    command += ["-c", str(ROOT / "constraints.txt"), "--target", str(to), *names]
    done = subprocess.run(command, env={**os.environ, "PIP_ROOT_USER_ACTION": "ignore"})
    if done.returncode:
        sys.exit(f"pip could not fetch {' '.join(names)} for Python {python}.")
    shutil.rmtree(to / "bin", ignore_errors=True)  # commands that name the Python of this machine


def nbytes(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def largest(folder: Path) -> str:
    """Return a line on the packages that are largest."""
    sizes = sorted(((nbytes(path), path.name) for path in folder.iterdir() if path.is_dir()), reverse=True)
    return " Largest: " + ", ".join(f"{name} {size / MIB:.1f}" for size, name in sizes[:3])


if __name__ == "__main__":
    main()
