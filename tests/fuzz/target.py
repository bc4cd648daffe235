"""Runs a reader under atheris: whatever is in a file, it is read or refused with an error of ours."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import atheris

ROOMS = ("formats", "checkpoint", "sources", "scanning", "keys", "plan", "configs", "vocabulary", "api", "recipe")

with atheris.instrument_imports(include=["ckptsurgeon"]):
    import ckptsurgeon as cs

    for room in ROOMS:  # now: what is imported later is not instrumented
        package = importlib.import_module(f"ckptsurgeon.{room}")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"ckptsurgeon.{room}.{module.name}")

SECONDS, MEGABYTES = 10, 2048
"""What one input may take."""


def written(name: str, use: Callable[[str], object]) -> Callable[[bytes], None]:
    """A target that writes the input to a file of this name, in a folder of its own, and uses its path."""
    path = os.path.join(tempfile.mkdtemp(), name)

    def run(data: bytes) -> None:
        Path(path).write_bytes(data)
        use(path)

    return run


def opened(name: str, folder: str | None = None) -> Callable[[bytes], None]:
    """A target that opens the input as a file of this name, or the folder it is written to, and reads a few tensors."""
    path = os.path.join(folder or tempfile.mkdtemp(), name)

    def run(data: bytes) -> None:
        Path(path).write_bytes(data)
        with cs.open_checkpoint(folder or path) as found:
            for key in list(found)[:3]:
                found.tensor(key)

    return run


def fuzz(run: Callable[[bytes], object], seeds: Sequence[bytes]) -> None:
    """Run a target on mutations of the seeds for FUZZ_SECONDS; an error that is not ours ends it."""

    def one(data: bytes) -> None:
        try:
            run(data)
        except cs.CheckpointError:
            pass

    corpus = Path(tempfile.mkdtemp())
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)
    seconds = os.environ.get("FUZZ_SECONDS", "35")
    options = [f"-max_total_time={seconds}", f"-timeout={SECONDS}", f"-rss_limit_mb={MEGABYTES}", "-max_len=65536"]
    atheris.Setup([sys.argv[0], *options, "-print_final_stats=1", f"-artifact_prefix={os.getcwd()}/", str(corpus)], one)
    atheris.Fuzz()
