"""The metadata of a folder of torch.distributed.checkpoint."""

import os
import tempfile
from pathlib import Path

import torch

from tests.fuzz.target import fuzz, opened

# isort: split
# what is imported before atheris is not instrumented
from tests.formats.test_torch_dcp import save

FOLDER = os.path.join(tempfile.mkdtemp(), "d")

if __name__ == "__main__":
    save({"model": {"w": torch.ones(2), "v": torch.ones(3, 2)}, "epoch": 7}, FOLDER)
    fuzz(opened(".metadata", FOLDER), [Path(FOLDER, ".metadata").read_bytes()])
