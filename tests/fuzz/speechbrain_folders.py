"""Folders of SpeechBrain's Checkpointer: CKPT.yaml and what was saved, in turn."""

import torch

from ..helpers.torch_files import saved
from .target import Files, Target, in_parts, numbered


def make() -> Files:
    return {
        "CKPT.yaml": b"# yamllint disable\nWER: 1.5\nend-of-epoch: true\nunixtime: 1700000000.0\n",
        "model.ckpt": saved({"a": torch.ones(2)}),
        "counter.ckpt": b"3\n",
    }


TARGET = Target(in_parts("speechbrain_folders"), make, numbered)
