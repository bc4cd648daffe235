"""Writes the sound files that fuzzing begins with: ``python -m tests.fuzz.seeds [NAME …]``."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile

from tests.fuzz.target import KEPT, names, target_of


def write(name: str) -> int:
    """Write the files of one target; return how many bytes they have."""
    files = target_of(name).make()
    shutil.rmtree(KEPT / name, ignore_errors=True)
    (KEPT / name).mkdir(parents=True)
    for path, data in files.items():
        (KEPT / name / path).write_bytes(data)
    return sum(map(len, files.values()))


if __name__ == "__main__":
    os.chdir(tempfile.mkdtemp())
    for one in sys.argv[1:] or names():
        print(f"{one}  {write(one)} bytes")
