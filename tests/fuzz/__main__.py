"""Runs one target under atheris: ``python -m tests.fuzz NAME [option of libFuzzer …]``."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import atheris

SECONDS, MEGABYTES = 10, 2048
"""What one input may take."""
MOST_BYTES = 65536

# What is imported from here on is instrumented, whenever that is.
atheris.instrument_imports(include=["ckptsurgeon"]).__enter__()

from tests.fuzz.target import cs, inputs_of, target_of  # noqa: E402 - see above


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
        one(data)  # which imports what a reader imports late
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
