"""safetensors."""

import torch
from safetensors.torch import save

from tests.fuzz.target import fuzz, opened

SEEDS = [save({"a": torch.ones(2), "b.c": torch.zeros(1, 3).half()}, {"format": "pt"}), save({})]

if __name__ == "__main__":
    fuzz(opened("x.safetensors"), SEEDS)
