"""The model's states in a folder of DeepSpeed ZeRO."""

import os
import tempfile
from pathlib import Path

from tests.fuzz.target import fuzz, opened

# isort: split
# what is imported before atheris is not instrumented
from tests.formats.test_deepspeed_zero import zero_folder

FOLDER = os.path.join(tempfile.mkdtemp(), "d")
NAME = "mp_rank_00_model_states.pt"

if __name__ == "__main__":
    zero_folder(FOLDER, 2, 2)
    fuzz(opened(NAME, FOLDER), [Path(FOLDER, NAME).read_bytes()])
