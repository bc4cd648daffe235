"""The index of a folder of shards."""

import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.fuzz.target import fuzz, opened

FOLDER = tempfile.mkdtemp()
SOUND = b'{"metadata":{"total_size":12},"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}}'

if __name__ == "__main__":
    for key, name in (("a", "m-1.safetensors"), ("b", "m-2.safetensors")):
        save_file({key: torch.ones(3)}, Path(FOLDER, name))
    fuzz(opened("model.safetensors.index.json", FOLDER), [SOUND])
