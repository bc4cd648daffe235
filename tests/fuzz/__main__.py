"""Runs one target under atheris: ``python -m tests.fuzz NAME [option of libFuzzer …]``."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
import tempfile
from pathlib import Path

import atheris

SECONDS, MEGABYTES = 10, 2048
"""What one input may take."""
MOST_BYTES = 65536

# What is imported before is not instrumented; the others are code that is no reader's.
LEFT_OUT = ("ckptsurgeon.trainer", "ckptsurgeon.cli", "ckptsurgeon.__main__", "ckptsurgeon.entry")
with atheris.instrument_imports(include=["ckptsurgeon"]):
    import ckptsurgeon as cs

    for module in pkgutil.walk_packages(cs.__path__, "ckptsurgeon."):
        if not module.name.startswith(LEFT_OUT):
            importlib.import_module(module.name)

from tests.fuzz.target import inputs_of, target_of  # noqa: E402 - see above


def main(name: str, options: list[str]) -> None:
    """Fuzz for FUZZ_SECONDS; an error that is not ours, or too much of time or memory, ends it."""
    run = target_of(name).run

    def one(data: bytes) -> None:
        try:
            run(data)
        except cs.CheckpointError:
            pass

    corpus = Path(tempfile.mkdtemp())
    for number, data in enumerate(inputs_of(name)):
        (corpus / str(number)).write_bytes(data)
    seconds = os.environ.get("FUZZ_SECONDS", "20")
    bounds = [
        f"-max_total_time={seconds}",
        f"-timeout={SECONDS}",
        f"-rss_limit_mb={MEGABYTES}",
        f"-max_len={MOST_BYTES}",
    ]
    found = f"-artifact_prefix={os.getcwd()}/{name}-"
    atheris.Setup([sys.argv[0], *bounds, "-print_final_stats=1", found, str(corpus), *options], one)
    atheris.Fuzz()


main(sys.argv[1], sys.argv[2:])
